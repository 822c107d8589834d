// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ground truth, in test builds only (make LIVEDUMP_TEST=y): a hash of every page
 * is taken inside the stop and compared with what the session hands out.
 * This makes the stop as long as memory is large; never ship it.
 *
 * Results: /sys/module/livedump/parameters/truth_*, the first pages that differ in the log.
 */
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "livedump.h"

#define LOGGED_MAX	64

static u64 *hashes;		/* by page frame; 0: none was taken */
static atomic_t logged;

static unsigned long truth_pages;
module_param(truth_pages, ulong, 0444);
MODULE_PARM_DESC(truth_pages, "Pages compared in this session");

/* Differs, though nothing said that it might: a defect of the module. */
static atomic_long_t mismatches = ATOMIC_LONG_INIT(0);
/* Differs, and was reported as uncovered. */
static atomic_long_t uncovered_mismatches = ATOMIC_LONG_INIT(0);

static int get_atomic(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(kp->arg));
}

static const struct kernel_param_ops atomic_ops = { .get = get_atomic };
module_param_cb(truth_mismatches, &atomic_ops, &mismatches, 0444);
module_param_cb(truth_uncovered_mismatches, &atomic_ops, &uncovered_mismatches, 0444);

static u64 hash_page(const void *p)
{
	const u64 *w = p;
	u64 h = 0xcbf29ce484222325ULL;
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*w); i++)
		h = (h ^ w[i] ^ (h >> 29)) * 0x100000001b3ULL;
	return h ?: 1;
}

int ld_truth_prepare(void)
{
	hashes = vzalloc(array_size(ld_max_pfn, sizeof(*hashes)));
	/* It is filled while pages are looked at, its own among them. */
	ld_wp_add_own(hashes, array_size(ld_max_pfn, sizeof(*hashes)));
	truth_pages = 0;
	atomic_set(&logged, 0);
	atomic_long_set(&mismatches, 0);
	atomic_long_set(&uncovered_mismatches, 0);
	return hashes ? 0 : -ENOMEM;
}

void ld_truth_release(void)
{
	vfree(hashes);
	hashes = NULL;
}

/* On the leader, in the stop, after the copies and before the entries change. */
void ld_truth_take(void)
{
	unsigned long pfn;

	for (pfn = 0; pfn < ld_max_pfn; pfn++) {
		struct page *page;
		const void *va;

		if (!ld_page_is_ram(pfn))
			continue;
		page = pfn_to_page(pfn);
		if (PageBuddy(page)) {
			pfn += (1UL << page_private(page)) - 1;
			continue;
		}
		va = ld_page_stop_content(pfn);
		if (va)
			hashes[pfn] = hash_page(va);
	}
}

void ld_truth_compare(const void *content, const struct livedump_page *d)
{
	if (!hashes || !hashes[d->pfn] || d->flags & LIVEDUMP_PAGE_LOST)
		return;
	truth_pages++;
	if (hash_page(content) == hashes[d->pfn])
		return;
	if (d->flags & LIVEDUMP_PAGE_UNCOVERED) {
		atomic_long_inc(&uncovered_mismatches);
		return;
	}
	atomic_long_inc(&mismatches);
	if (atomic_inc_return(&logged) <= LOGGED_MAX) {
		struct page *page = pfn_to_page(d->pfn);

		pr_info("truth: page %llx of class %u (flags %x) differs; now flags %lx mapping %lx\n",
			d->pfn, d->class_id, d->flags, *ld_page_flags(page), (unsigned long)page->mapping);
	}
}

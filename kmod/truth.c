// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ground truth, in test builds only (make LIVEDUMP_TEST=y): a hash of every page is
 * taken inside the stop, for the test to compare with the finished dump.
 * This makes the stop as long as memory is large; never ship it.
 *
 *	/sys/kernel/debug/livedump_truth/pages
 *		struct ld_truth_page of each page that the session reported, in that order
 *	/sys/kernel/debug/livedump_truth/content
 *		pages as they were in the stop (those with a kept index), 4 KiB each
 *
 * Both stay after the session has ended, until the next one is prepared.
 *
 * The parameter leave_uncovered spoils the module on purpose, so that the test can show
 * that it would notice: the mappings of that range are left writable, pages in flight are not
 * looked for, or marks are not taken off page tables, and nothing says so.
 */
#include <linux/debugfs.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "entry.h"

/* Which mappings a page had in the stop, besides that of the direct map. */
enum ld_truth_alias {
	ALIAS_VMALLOC	= BIT(0),
	ALIAS_MODULES	= BIT(1),
	ALIAS_IMAGE	= BIT(2),
	ALIAS_WRITABLE	= BIT(3),	/* at least one of the above was */
	ALIAS_EXEC	= BIT(4),	/* at least one of the above was */
	ALIAS_VMEMMAP	= BIT(5),	/* it holds struct pages */
	ALIAS_HOT	= BIT(6),	/* stays writable in the direct map */
	ALIAS_UNMAPPED	= BIT(7),	/* is not in the direct map */
};

/* Little-endian, 64 bytes; test/truth reads it. */
struct ld_truth_page {
	u64 pfn;
	u64 hash;		/* 0: none was taken */
	u64 hash_unaccessed;	/* the same without Accessed and Dirty of page-table entries */
	u64 flags;		/* struct page, as of the stop */
	u64 mapping;
	u32 refcount;
	u32 mapcount;		/* or the page type */
	u32 aliases;
	u32 kept;		/* index + 1 in content; 0: not there */
	u32 class_id;		/* as reported */
	u32 page_flags;
};

struct ld_truth {
	u64 hash, hash_unaccessed;
	u64 flags, mapping;
	u32 refcount, mapcount;
	u32 aliases, kept;
	u8 class_id, page_flags;
};

static struct ld_truth *truth;		/* by page frame */
static u32 *order;			/* page frames in the order they were reported */
static atomic_t nr_reported;
static unsigned long nr_pfns;
static u8 *content;
static unsigned long nr_kept, room_kept;
static struct dentry *dir;

static char *leave_uncovered = "";
module_param(leave_uncovered, charp, 0644);
MODULE_PARM_DESC(leave_uncovered, "Spoil: vmalloc, modules, image, vmemmap, inflight or marks");

static unsigned int truth_keep_mib;
module_param(truth_keep_mib, uint, 0644);
MODULE_PARM_DESC(truth_keep_mib, "Keep that much content of the stop, to see what differs");

/*
 * Where the stop is measured nothing of all this happens, nor is there memory for it: to hash
 * would be most of the stop, and 60 bytes for each page of RAM have tables that it copies.
 */
static bool measure;
module_param(measure, bool, 0644);
MODULE_PARM_DESC(measure, "Take no hashes in the stop, for it is to be measured");

/* For what is read in other ways than by the session's owner: is it as it was in the stop? */
static unsigned long truth_compared;
module_param(truth_compared, ulong, 0444);
MODULE_PARM_DESC(truth_compared, "Pages of the frozen core that were read");

static unsigned long truth_mismatches;
module_param(truth_mismatches, ulong, 0444);
MODULE_PARM_DESC(truth_mismatches, "Pages of the frozen core that differed though they were not flagged");

bool ld_truth_spoils(const struct ld_va_range *r)
{
	return (r == &ld_vmalloc && sysfs_streq(leave_uncovered, "vmalloc")) ||
	       (r == &ld_modules && sysfs_streq(leave_uncovered, "modules")) ||
	       (r == &ld_image && sysfs_streq(leave_uncovered, "image")) ||
	       (r == &ld_vmemmap && sysfs_streq(leave_uncovered, "vmemmap"));
}

bool ld_truth_skips(const char *what)
{
	return sysfs_streq(leave_uncovered, what);
}

static inline u64 hash_step(u64 h, u64 w)
{
	return (h ^ w ^ (h >> 29)) * 0x100000001b3ULL;
}

/* It reads all memory, that of freed objects as well, which KASAN would report. */
static void __no_sanitize_address hash_page(const void *p, u64 *plain, u64 *unaccessed)
{
	const u64 *w = p;
	u64 a = 0xcbf29ce484222325ULL, b = a;
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*w); i++) {
		a = hash_step(a, w[i]);
		b = hash_step(b, w[i] & ~(u64)(_PAGE_ACCESSED | _PAGE_DIRTY));
	}
	*plain = a ?: 1;
	*unaccessed = b ?: 1;
}

static ssize_t read_pages(struct file *file, char __user *buf, size_t n, loff_t *pos)
{
	struct ld_truth_page p;
	size_t done = 0;

	if (*pos % sizeof(p))
		return -EINVAL;
	for (; n - done >= sizeof(p); done += sizeof(p), *pos += sizeof(p)) {
		u64 i = *pos / sizeof(p);
		const struct ld_truth *t;

		if (!truth || i >= min_t(u64, atomic_read(&nr_reported), nr_pfns))
			break;
		t = &truth[order[i]];
		p = (struct ld_truth_page){
			.pfn = order[i], .hash = t->hash, .hash_unaccessed = t->hash_unaccessed,
			.flags = t->flags, .mapping = t->mapping, .refcount = t->refcount,
			.mapcount = t->mapcount, .aliases = t->aliases, .kept = t->kept,
			.class_id = t->class_id, .page_flags = t->page_flags,
		};
		if (copy_to_user(buf + done, &p, sizeof(p)))
			return -EFAULT;
	}
	return done;
}

static ssize_t read_content(struct file *file, char __user *buf, size_t n, loff_t *pos)
{
	return simple_read_from_buffer(buf, n, pos, content, nr_kept * PAGE_SIZE);
}

static const struct file_operations pages_fops = {
	.owner = THIS_MODULE, .open = simple_open, .read = read_pages, .llseek = default_llseek,
};

static const struct file_operations content_fops = {
	.owner = THIS_MODULE, .open = simple_open, .read = read_content, .llseek = default_llseek,
};

void ld_truth_init(void)
{
	dir = debugfs_create_dir("livedump_truth", NULL);
	debugfs_create_file("pages", 0400, dir, NULL, &pages_fops);
	debugfs_create_file("content", 0400, dir, NULL, &content_fops);
}

static void release(void)
{
	vfree(truth);
	vfree(order);
	vfree(content);
	truth = NULL;
	order = NULL;
	content = NULL;
	nr_kept = 0;
	room_kept = 0;
	nr_pfns = 0;
	atomic_set(&nr_reported, 0);
}

void ld_truth_exit(void)
{
	debugfs_remove(dir);
	release();
}

/* What is filled while pages are looked at must not be protected, or hashed half-way. */
int ld_truth_prepare(void)
{
	release();
	if (measure)
		return 0;
	truth = ld_zalloc(array_size(ld_max_pfn, sizeof(*truth)));
	order = ld_zalloc(array_size(ld_max_pfn, sizeof(*order)));
	room_kept = (unsigned long)truth_keep_mib << (20 - PAGE_SHIFT);
	if (room_kept)
		content = ld_alloc(array_size(room_kept, PAGE_SIZE));
	if (!truth || !order || (room_kept && !content)) {
		release();
		return -ENOMEM;
	}
	nr_pfns = ld_max_pfn;
	truth_compared = 0;
	truth_mismatches = 0;
	ld_wp_add_own(truth, array_size(ld_max_pfn, sizeof(*truth)));
	ld_wp_add_own(order, array_size(ld_max_pfn, sizeof(*order)));
	if (content)
		ld_wp_add_own(content, array_size(room_kept, PAGE_SIZE));
	return 0;
}

static void note_leaf(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	const struct ld_va_range *r = arg;
	unsigned long pfn = leaf_pfn(v, level), nr = level_size(level) >> PAGE_SHIFT;
	u32 alias = r == &ld_vmalloc ? ALIAS_VMALLOC :
		    r == &ld_modules ? ALIAS_MODULES :
		    r == &ld_image ? ALIAS_IMAGE : ALIAS_VMEMMAP;

	if (r != &ld_vmemmap) {
		alias |= v & _PAGE_RW ? ALIAS_WRITABLE : 0;
		alias |= v & _PAGE_NX ? 0 : ALIAS_EXEC;
	}
	for (; nr && pfn < ld_max_pfn; nr--, pfn++)
		truth[pfn].aliases |= alias;
}

static void note_page(unsigned long pfn)
{
	struct ld_truth *t = &truth[pfn];
	struct page *page = pfn_to_page(pfn);
	const void *va = ld_page_stop_content(pfn);

	t->flags = *ld_page_flags(page);
	t->mapping = (unsigned long)page->mapping;
	t->refcount = page_ref_count(page);
	t->mapcount = atomic_read(&page->_mapcount);
	if (test_bit(pfn, ld_hot))
		t->aliases |= ALIAS_HOT;
	if (!va) {
		t->aliases |= ALIAS_UNMAPPED;
		return;
	}
	hash_page(va, &t->hash, &t->hash_unaccessed);
	/* What is left out by default is not what one wants to look at. */
	if (nr_kept < room_kept && t->refcount && !PageLRU(page) &&
	    !((unsigned long)page->mapping & LD_MAPPING_ANON) && !test_bit(pfn, ld_self)) {
		/* Not memcpy(), for the same reason. */
		if (ld_copy_page_safe(content + nr_kept * PAGE_SIZE, va))
			t->kept = ++nr_kept;
	}
}

/* On the leader, in the stop, after the copies and before the entries change. */
void ld_truth_take(void)
{
	struct ld_va_range *r[] = { &ld_vmalloc, &ld_modules, &ld_image, &ld_vmemmap };
	unsigned long pfn;
	int i;

	if (!truth)
		return;
	/* An attempt that was given up may have been here before. */
	memset(truth, 0, array_size(ld_max_pfn, sizeof(*truth)));
	nr_kept = 0;
	for (i = 0; i < ARRAY_SIZE(r); i++)
		ld_for_each_leaf(r[i], note_leaf, r[i]);
	for (pfn = 0; pfn < ld_max_pfn; pfn++)
		if (ld_page_is_ram(pfn))
			note_page(pfn);
}

void ld_truth_compare(const void *page, const struct livedump_page *d)
{
	const struct ld_truth *t = &truth[d->pfn];
	u64 plain, unaccessed;

	if (!truth)
		return;
	hash_page(page, &plain, &unaccessed);
	truth_compared++;
	if (d->flags & LIVEDUMP_PAGE_UNCOVERED || plain == t->hash ||
	    (d->flags & LIVEDUMP_PAGE_TABLE && unaccessed == t->hash_unaccessed))
		return;
	truth_mismatches++;
	pr_info("truth: page %llx of class %u (flags %x) differs\n", d->pfn, d->class_id, d->flags);
}

void ld_truth_reported(const struct livedump_page *d)
{
	int i = atomic_inc_return(&nr_reported) - 1;

	if (i >= nr_pfns)
		return;
	truth[d->pfn].class_id = d->class_id;
	truth[d->pfn].page_flags = d->flags;
	order[i] = d->pfn;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a fault costs, in test builds only (make LIVEDUMP_TEST=y).
 *
 * /sys/module/livedump/parameters/cost:
 *
 *	write "prepare" before the freeze	allocates pages, which are then in use
 *	write "run" while memory is frozen	writes to them, and to pages that were free
 *	read					one line for every kind of fault
 *
 * A line is the kind, how many writes of that kind were timed and their median and largest
 * time, and the same of the handler alone for all faults of that kind since "prepare",
 * whoever caused them; times in nanoseconds.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/vmalloc.h>
#include <asm/tsc.h>
#include "compat.h"
#include "livedump.h"
#include "trace.h"

#define BLOCKS		24
#define BLOCK_ORDER	9
#define WRITES		40	/* in each block */
#define FREE_PAGES	512
#define SAMPLES		2048

enum kind { PLAIN, COPY, EXCLUDED, SPLIT, PUSHDOWN, LEAF, NR_KINDS };

static const char * const names[] = {
	"plain", "copy", "excluded", "split", "pushdown", "leaf",
};

struct samples {
	atomic_t n;
	u32 ns[SAMPLES];
};

/* Written in the fault path: the module's own data, which is never protected. */
static struct samples handler[NR_KINDS], writes[NR_KINDS];
static u32 last_what[NR_CPUS];

bool ld_no_leaves;
module_param_named(no_leaves, ld_no_leaves, bool, 0644);
MODULE_PARM_DESC(no_leaves, "Split huge leaves even if nothing in them needs a copy (tests only)");

static unsigned int lost_at_once;
module_param(lost_at_once, uint, 0644);
MODULE_PARM_DESC(lost_at_once, "The most pages that a fault has lost since 0 was written here");

/* In the fault path. */
void ld_cost_lost(unsigned int pages)
{
	unsigned int most = READ_ONCE(lost_at_once);

	while (pages > most) {
		unsigned int was = cmpxchg(&lost_at_once, most, pages);

		if (was == most)
			return;
		most = was;
	}
}

static DEFINE_MUTEX(cost_lock);
static struct page *blocks[BLOCKS];

static u32 to_ns(u64 tsc)
{
	return min_t(u64, mul_u64_u64_div_u64(tsc, 1000000, tsc_khz), U32_MAX);
}

/* By the dearest part of it. */
static enum kind kind_of(u32 what)
{
	if (what & LD_FAULT_PUSHDOWN)
		return PUSHDOWN;
	if (what & LD_FAULT_SPLIT)
		return SPLIT;
	if (what & LD_FAULT_LEAF)
		return LEAF;
	if (what & LD_FAULT_COPY)
		return COPY;
	return what ? EXCLUDED : PLAIN;
}

static void add(struct samples *to, u32 ns)
{
	int i = atomic_inc_return(&to->n) - 1;

	if (i < SAMPLES)
		to->ns[i] = ns;
}

u64 ld_cost_begin(void)
{
	return rdtsc_ordered();
}

void ld_cost_end(u64 began, u32 what)
{
	last_what[raw_smp_processor_id()] = what;
	add(&handler[kind_of(what)], to_ns(rdtsc_ordered() - began));
}

static void timed_write(struct page *page)
{
	u64 *word = page_address(page);
	unsigned long flags;
	u64 began, took;
	u32 what;

	local_irq_save(flags);
	/* The fault writes it in between, of which the compiler knows nothing. */
	WRITE_ONCE(last_what[smp_processor_id()], 0);
	began = rdtsc_ordered();
	WRITE_ONCE(*word, *word + 1);
	took = rdtsc_ordered() - began;
	what = READ_ONCE(last_what[smp_processor_id()]);
	local_irq_restore(flags);
	add(&writes[kind_of(what)], to_ns(took));
}

static void forget(void)
{
	int i;

	for (i = 0; i < BLOCKS; i++) {
		if (blocks[i])
			__free_pages(blocks[i], BLOCK_ORDER);
		blocks[i] = NULL;
	}
}

static int prepare(void)
{
	int i;

	forget();
	for (i = 0; i < NR_KINDS; i++) {
		atomic_set(&handler[i].n, 0);
		atomic_set(&writes[i].n, 0);
	}
	for (i = 0; i < BLOCKS; i++) {
		blocks[i] = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_COMP, BLOCK_ORDER);
		if (!blocks[i]) {
			forget();
			return -ENOMEM;
		}
	}
	return 0;
}

static int run(void)
{
	struct page **pages;
	int i, j;

	if (!blocks[0])
		return -EINVAL;
	pages = kcalloc(FREE_PAGES, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	for (i = 0; i < BLOCKS; i++)
		for (j = 0; j < WRITES; j++) {
			timed_write(blocks[i] + j);
			timed_write(blocks[i] + j);
		}
	/* All at once: a page given back would be the next one got, writable by then. */
	for (i = 0; i < FREE_PAGES; i++) {
		pages[i] = alloc_page(GFP_KERNEL);
		if (pages[i])
			timed_write(pages[i]);
	}
	for (i = 0; i < FREE_PAGES; i++)
		if (pages[i])
			__free_page(pages[i]);
	kfree(pages);
	return 0;
}

static int compare(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return x < y ? -1 : x > y;
}

static ssize_t print(const struct samples *s, u32 *sorted, char *buf, ssize_t at)
{
	int n = min(atomic_read(&s->n), SAMPLES);

	memcpy(sorted, s->ns, n * sizeof(*sorted));
	sort(sorted, n, sizeof(*sorted), compare, NULL);
	return sysfs_emit_at(buf, at, " %d %u %u", n, n ? sorted[n / 2] : 0,
			     n ? sorted[n - 1] : 0);
}

static int get(char *buf, const struct kernel_param *kp)
{
	u32 *sorted = vmalloc(SAMPLES * sizeof(*sorted));
	ssize_t at = 0;
	int i;

	if (!sorted)
		return -ENOMEM;
	mutex_lock(&cost_lock);
	for (i = 0; i < NR_KINDS; i++) {
		at += sysfs_emit_at(buf, at, "%s", names[i]);
		at += print(&writes[i], sorted, buf, at);
		at += print(&handler[i], sorted, buf, at);
		at += sysfs_emit_at(buf, at, "\n");
	}
	mutex_unlock(&cost_lock);
	vfree(sorted);
	return at;
}

static int set(const char *val, const struct kernel_param *kp)
{
	int err = -EINVAL;

	mutex_lock(&cost_lock);
	if (sysfs_streq(val, "prepare")) {
		err = prepare();
	} else if (sysfs_streq(val, "run")) {
		err = run();
	} else if (sysfs_streq(val, "forget")) {
		forget();
		err = 0;
	}
	mutex_unlock(&cost_lock);
	return err;
}

static const struct kernel_param_ops cost_ops = { .get = get, .set = set };
module_param_cb(cost, &cost_ops, NULL, 0600);
MODULE_PARM_DESC(cost, "Cost of faults by kind (tests only)");

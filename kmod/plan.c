// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is protected in the stop, and doing it.
 *
 * The direct map and vmemmap are protected by level: a plan made before the stop lists
 * the entries, as high up as what must stay writable allows.  The other ranges are protected at
 * their leaves, which are found in the stop itself: mappings come and go all the time
 * there, and there are few.
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "entry.h"

struct ld_wp_counts ld_wp_counts;

/* The entries to protect by level; the low bits are the level. */
static unsigned long *plan;
static unsigned long plan_len, plan_room;
static u64 plan_fingerprint;

static bool has_hot(const struct ld_va_range *r, unsigned long va, unsigned long size)
{
	unsigned long first, last;

	if (r != &ld_direct_map)
		return false;	/* what is hot there, is so by its direct-map address */
	first = __pa(va) >> PAGE_SHIFT;
	last = min(first + (size >> PAGE_SHIFT), ld_max_pfn);
	return first < last && find_next_bit(ld_hot, last, first) < last;
}

/* Nothing to protect in here: no use splitting it. */
static bool all_hot(const struct ld_va_range *r, unsigned long va, unsigned long size)
{
	unsigned long first, end;

	if (r != &ld_direct_map)
		return false;
	first = __pa(va) >> PAGE_SHIFT;
	end = first + (size >> PAGE_SHIFT);
	return end <= ld_max_pfn && find_next_zero_bit(ld_hot, end, first) >= end;
}

static int plan_add(ld_entry *e, int level)
{
	if (plan_len == plan_room) {
		unsigned long room = plan_room ? plan_room * 2 : 16384;
		unsigned long *n = vmalloc(array_size(room, sizeof(*n)));

		if (!n)
			return -ENOMEM;
		if (plan_len)
			memcpy(n, plan, plan_len * sizeof(*n));
		vfree(plan);
		plan = n;
		plan_room = room;
	}
	plan[plan_len++] = (unsigned long)e | level;
	return 0;
}

/*
 * Splits a huge leaf that holds something hot, before the stop.  The pages allow what
 * they allowed, only in smaller pieces.
 */
static int split_for_plan(ld_entry *e, ld_entry v, int level, bool *split)
{
	u32 slot;

	if (!ld_split_leaf(e, v, level, &slot))
		return -ENOSPC;
	if (slot != LD_NO_SLOT) {
		/* It is one of the kernel's page tables at the stop: it belongs in the dump. */
		ld_page_set_class(__pa(ld_reserve_page(slot)) >> PAGE_SHIFT,
				  LIVEDUMP_CLASS_KERNEL);
		*split = true;
	}
	return 0;
}

static int plan_table(const struct ld_va_range *r, ld_entry *table, int level,
		      unsigned long base, bool *split)
{
	int i, err;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long size = level_size(level);
		unsigned long va = base + i * size;
		ld_entry v;

		if (!entry_touches(r, va, level))
			continue;
again:
		v = READ_ONCE(table[i]);
		if (!(v & _PAGE_PRESENT))
			continue;
		if (level <= LEVEL_PUD && !has_hot(r, va, size) &&
		    (is_leaf(v, level) || level == LEVEL_PUD)) {
			if (v & _PAGE_RW) {
				err = plan_add(&table[i], level);
				if (err)
					return err;
			}
			continue;
		}
		if (is_leaf(v, level)) {
			if (level == LEVEL_PTE || all_hot(r, va, size))
				continue;	/* stays writable */
			err = split_for_plan(&table[i], v, level, split);
			if (err)
				return err;
			goto again;
		}
		err = plan_table(r, child_table(v), level - 1, va, split);
		if (err)
			return err;
		cond_resched();
	}
	return 0;
}

/*
 * A number that changes when a table is added, removed or replaced below the
 * ranges.  Every entry of levels 3 and 2 is read: 4 KiB for a gigabyte.
 */
static u64 fingerprint(const struct ld_va_range *r, ld_entry *table, int level,
		       unsigned long base, u64 h)
{
	int i;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (!entry_touches(r, va, level))
			continue;
		v = READ_ONCE(table[i]);
		if (!(v & _PAGE_PRESENT) || is_leaf(v, level))
			continue;
		h = h * 0x9e3779b97f4a7c15ULL + (va ^ (v & PTE_PFN_MASK));
		if (level > LEVEL_PMD)
			h = fingerprint(r, child_table(v), level - 1, va, h);
	}
	return h;
}

static u64 fingerprint_all(void)
{
	u64 h = fingerprint(&ld_direct_map, top_table(), top_level(), top_base(), 1);

	return fingerprint(&ld_vmemmap, top_table(), top_level(), top_base(), h);
}

int ld_add_tables(const struct ld_va_range *r, ld_entry *table, int level,
		      unsigned long base, int (*add)(unsigned long pfn))
{
	int i, err;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (!entry_touches(r, va, level))
			continue;
		v = READ_ONCE(table[i]);
		/* A table lies in RAM; what does not is no table any more. */
		if (!(v & _PAGE_PRESENT) || is_leaf(v, level) ||
		    !ld_page_is_ram((v & PTE_PFN_MASK) >> PAGE_SHIFT))
			continue;
		err = add((v & PTE_PFN_MASK) >> PAGE_SHIFT);
		if (!err && level > LEVEL_PMD)
			err = ld_add_tables(r, child_table(v), level - 1, va, add);
		if (err)
			return err;
		cond_resched();
	}
	return 0;
}

static int mark_hot(unsigned long pfn)
{
	if (pfn < ld_max_pfn)
		set_bit(pfn, ld_hot);
	return 0;
}

static int add_level_tables(int (*add)(unsigned long pfn))
{
	int err = ld_add_tables(&ld_direct_map, top_table(), top_level(), top_base(), add);

	return err ?: ld_add_tables(&ld_vmemmap, top_table(), top_level(), top_base(), add);
}
/* ---- ranges protected at their leaves ---- */

/*
 * Calls fn for every present leaf of a range.  Interrupts are off while a table is
 * looked at: the kernel frees tables of these ranges only after it has
 * interrupted every CPU.
 */
void ld_for_each_leaf(const struct ld_va_range *r, bool in_stop, ld_entry_fn fn, void *arg)
{
	unsigned long va = r->start, next;

	for (;; va = next) {
		unsigned long flags;
		ld_entry v, *e;
		int level, i;

		local_irq_save(flags);
		e = ld_walk(va, &level, &v);
		if (level > LEVEL_PTE) {
			next = (va | (level_size(level) - 1)) + 1;
			if (v & _PAGE_PRESENT)
				fn(e, v, level, next - level_size(level), arg);
		} else {
			ld_entry *table = (ld_entry *)((unsigned long)e & PAGE_MASK);

			va &= PMD_MASK;
			next = va + PMD_SIZE;
			for (i = 0; i < PT_ENTRIES; i++) {
				v = READ_ONCE(table[i]);
				if (v & _PAGE_PRESENT)
					fn(&table[i], v, LEVEL_PTE, va + i * PAGE_SIZE, arg);
			}
		}
		local_irq_restore(flags);
		if (next >= r->end || next < va)
			return;
		if (!in_stop)
			cond_resched();
	}
}

/*
 * Could this 4 KiB mapping be part of a kernel stack?  Stacks are aligned to their
 * size and followed by a page that is not mapped.  Stacks that no task has (cached
 * ones) have that shape too, and a fault on a stack would be the end, so everything that
 * has it is left alone.
 */
static bool like_a_stack(ld_entry *e)
{
	const unsigned int pages = THREAD_SIZE >> PAGE_SHIFT;
	ld_entry *table = (ld_entry *)((unsigned long)e & PAGE_MASK);
	unsigned int first = (e - table) & ~(pages - 1), i;

	for (i = first; i < first + pages; i++)
		if (!(READ_ONCE(table[i]) & _PAGE_PRESENT))
			return false;
	return i == PT_ENTRIES || !(READ_ONCE(table[i]) & _PAGE_PRESENT);
}

static bool any_hot(unsigned long pfn, unsigned long nr)
{
	unsigned long end = min(pfn + nr, ld_max_pfn);

	return pfn < end && find_next_bit(ld_hot, end, pfn) < end;
}

static void protect_leaf(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	unsigned long pfn = leaf_pfn(v, level), nr = level_size(level) >> PAGE_SHIFT;
	unsigned long table = __pa(e) >> PAGE_SHIFT;
	unsigned long i;

	if (!(v & _PAGE_RW) || !ld_page_is_ram(pfn))
		return;		/* read-only, or a device */
	if (!(v & _PAGE_NX) || ld_is_own(va, level_size(level)) || any_hot(pfn, nr) ||
	    (level == LEVEL_PTE && arg == &ld_vmalloc && like_a_stack(e)) ||
	    /* a table that has come since the plan could not be written later */
	    (ld_window_index(table) < 0 && !(table < ld_max_pfn && test_bit(table, ld_self)))) {
		for (i = 0; i < nr; i++)
			ld_page_uncover(pfn + i);
		return;
	}
	if (!ld_protect_entry(e, level))
		return;
	if (level == LEVEL_PTE)
		ld_wp_counts.pte++;
	else if (level == LEVEL_PMD)
		ld_wp_counts.pmd++;
	else
		ld_wp_counts.pud++;
}

static void protect_leaves(struct ld_va_range *r)
{
	ld_for_each_leaf(r, true, protect_leaf, r);
}

struct ld_image_split {
	bool split;
	int err;
};

/* A huge leaf of the kernel image that holds something hot is split beforehand. */
static void split_hot_image(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	struct ld_image_split *s = arg;

	if (level == LEVEL_PMD && (v & _PAGE_RW) && !s->err &&
	    any_hot(leaf_pfn(v, level), level_size(level) >> PAGE_SHIFT))
		s->err = split_for_plan(e, v, level, &s->split);
}

int ld_add_leaf_tables(int (*add)(unsigned long pfn))
{
	const struct ld_va_range *r[] = { &ld_vmalloc, &ld_modules, &ld_image };
	int i, err = 0;

	for (i = 0; i < ARRAY_SIZE(r) && !err; i++)
		err = ld_add_tables(r[i], top_table(), top_level(), top_base(), add);
	return err;
}

/*
 * Finds what to protect in the stop.  Splitting for the plan makes new tables,
 * but those come from the reserve, which is hot already; so one pass is
 * enough unless the kernel itself adds a table, which the fingerprint tells.
 */
int ld_wp_plan(void)
{
	struct ld_image_split image = { 0 };
	bool split = false;
	int err;

	plan_len = 0;
	add_level_tables(mark_hot);
	ld_for_each_leaf(&ld_image, false, split_hot_image, &image);
	err = image.err;
	err = err ?: plan_table(&ld_direct_map, top_table(), top_level(), top_base(), &split);
	err = err ?: plan_table(&ld_vmemmap, top_table(), top_level(), top_base(), &split);
	if (split || image.split)
		ld_flush_tlb_all_cpus();
	err = err ?: ld_window_open();
	if (err)
		return err;
	plan_fingerprint = fingerprint_all();
	return 0;
}

/* Every page of the tables that get marks: as of the stop they have none. */
int ld_wp_add_tables(int (*add)(unsigned long pfn))
{
	return add_level_tables(add) ?: ld_add_leaf_tables(add);
}

/* In the stop, before anything is changed: is the plan still about these tables? */
int ld_wp_check_plan(void)
{
	return fingerprint_all() == plan_fingerprint ? 0 : -EAGAIN;
}

/* In the stop. */
void ld_wp_protect(void)
{
	u64 changed[LEVEL_PUD + 1] = { 0 };
	unsigned long i;

	memset(&ld_wp_counts, 0, sizeof(ld_wp_counts));
	/* First, while their tables can still be written in the direct map. */
	protect_leaves(&ld_vmalloc);
	protect_leaves(&ld_modules);
	protect_leaves(&ld_image);
	for (i = 0; i < plan_len; i++) {
		int level = plan[i] & 7;

		changed[level] += ld_protect_entry((ld_entry *)(plan[i] & ~7UL), level);
	}
	ld_wp_counts.pud += changed[LEVEL_PUD];
	ld_wp_counts.pmd += changed[LEVEL_PMD];
	ld_wp_counts.pte += changed[LEVEL_PTE];
}

void ld_plan_release(void)
{
	vfree(plan);
	plan = NULL;
	plan_len = 0;
	plan_room = 0;
}

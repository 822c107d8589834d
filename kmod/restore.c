// SPDX-License-Identifier: GPL-2.0-only
/*
 * Restoring: every marked entry as it was, every split table joined again, bit for
 * bit, while the machine goes on and set_memory_*() may be at work on the same entries.
 */
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "entry.h"

#define JOINS_AT_ONCE	8192


/* A table that was taken out in favour of a huge leaf. */
struct ld_join {
	ld_entry *e;
	ld_entry leaf;
	ld_entry *table;
};
/* Allocated beforehand: restoring must not depend on free memory. */
static struct ld_join *joins_room;

/*
 * Calls fn for every entry of levels 3 to 1 that is present or has marks, children before
 * their parent.
 */
static void for_each_entry(const struct ld_va_range *r, ld_entry *table, int level,
			   unsigned long base, ld_entry_fn fn, void *arg)
{
	int i;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (!entry_touches(r, va, level))
			continue;
		v = READ_ONCE(table[i]);
		if (!(v & _PAGE_PRESENT)) {
			/* Taken out by the kernel meanwhile; it will be back, with its marks. */
			if (level <= LEVEL_PUD && v & E_MARKS)
				fn(&table[i], v, level, va, arg);
			continue;
		}
		if (!is_leaf(v, level)) {
			for_each_entry(r, child_table(v), level - 1, va, fn, arg);
			cond_resched();
		}
		if (level <= LEVEL_PUD)
			fn(&table[i], v, level, va, arg);
	}
}

/* The ranges in which huge leaves are split. */
static void for_each_split_range(ld_entry_fn fn, void *arg)
{
	for_each_entry(&ld_direct_map, top_table(), top_level(), top_base(), fn, arg);
	for_each_entry(&ld_vmemmap, top_table(), top_level(), top_base(), fn, arg);
	for_each_entry(&ld_image, top_table(), top_level(), top_base(), fn, arg);
}

static void for_each_marked_range(ld_entry_fn fn, void *arg)
{
	for_each_split_range(fn, arg);
	ld_for_each_leaf(&ld_vmalloc, fn, arg);
	ld_for_each_leaf(&ld_modules, fn, arg);
}

static void count_marks(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	if (v & E_MARKS)
		++*(unsigned long *)arg;
}

/*
 * At their leaves only pages that could not be executed are protected.  One that can
 * be now was made read-only and executable by the kernel meanwhile: so it stays.
 */
static bool made_executable(ld_entry v, int level, unsigned long va)
{
	return is_leaf(v, level) && !(v & _PAGE_NX) &&
	       !entry_touches(&ld_direct_map, va, level) &&
	       !entry_touches(&ld_vmemmap, va, level);
}

static void unmark(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	while (v & E_MARKS) {
		ld_entry n = v & ~E_MARKS;
		ld_entry was;

		/* In a released entry RW is the kernel's business again. */
		if (is_protected(v) && !made_executable(v, level, va))
			n |= _PAGE_RW;
		if ((v & E_DIRTY) && (n & _PAGE_RW))
			n |= _PAGE_DIRTY;
		was = cmpxchg(e, v, n);
		if (was == v) {
			++*(unsigned long *)arg;
			return;
		}
		v = was;
	}
}

struct ld_joins {
	struct ld_join *v;
	unsigned int n;
	int level;
};

/* The leaf that the 512 pieces make up; 0: they do not. */
static ld_entry joined_value(const ld_entry *table, int level)
{
	const ld_entry ad = _PAGE_ACCESSED | _PAGE_DIRTY;
	unsigned long step = level_size(level - 1);
	ld_entry first = READ_ONCE(table[0]);
	ld_entry leaf;
	int i;

	if (!(first & _PAGE_PRESENT) || (first & E_MARKS) || !is_leaf(first, level - 1))
		return 0;
	if (((unsigned long)leaf_pfn(first, level - 1) << PAGE_SHIFT) & (level_size(level) - 1))
		return 0;
	for (i = 1; i < PT_ENTRIES; i++)
		if (((READ_ONCE(table[i]) ^ (first + i * step)) & ~ad))
			return 0;
	leaf = first;
	if (level - 1 == LEVEL_PTE) {
		if (leaf & _PAGE_PAT)
			leaf |= _PAGE_PAT_LARGE;
		leaf |= _PAGE_PSE;
	}
	return leaf;
}

static void find_joins(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	struct ld_joins *j = arg;
	unsigned long pfn = (v & PTE_PFN_MASK) >> PAGE_SHIFT;
	ld_entry leaf;

	if (level != j->level || !(v & _PAGE_PRESENT) || is_leaf(v, level) ||
	    j->n == JOINS_AT_ONCE)
		return;
	if (pfn >= ld_max_pfn || !test_bit(pfn, ld_self))
		return;		/* not a table of ours */
	leaf = joined_value(child_table(v), level);
	if (!leaf)
		return;		/* the kernel has changed a piece: the table is the kernel's now */
	if (cmpxchg(e, v, leaf) != v)
		return;
	j->v[j->n++] = (struct ld_join){ .e = e, .leaf = leaf, .table = child_table(v) };
}

/*
 * Joins what was split.  set_memory_*() may be at work on a piece at this moment, and
 * its lock can't be taken from here.  So the tables are taken out first, then everybody
 * is waited for, and a table that was changed meanwhile is put back.
 */
static void join_level(int level, struct ld_joins *j)
{
	unsigned int i;

	do {
		bool put_back = false;

		j->n = 0;
		j->level = level;
		for_each_split_range(find_joins, j);
		ld_flush_tlb_all_cpus(0);
		synchronize_rcu();
		for (i = 0; i < j->n; i++) {
			struct ld_join *k = &j->v[i];
			const ld_entry ad = _PAGE_ACCESSED | _PAGE_DIRTY;

			if (!((joined_value(k->table, level) ^ k->leaf) & ~ad)) {
				atomic64_inc(&ld_counters.tables_joined);
				continue;
			}
			if (cmpxchg(k->e, k->leaf, table_value(k->table)) == k->leaf) {
				unsigned long pfn = __pa(k->table) >> PAGE_SHIFT;

				clear_bit(pfn, ld_self);
				ld_reserve_give_away(pfn);
				put_back = true;
			}
		}
		if (put_back)
			ld_flush_tlb_all_cpus(0);
	} while (j->n == JOINS_AT_ONCE);
}

static void give_away_rest(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	unsigned long pfn = (v & PTE_PFN_MASK) >> PAGE_SHIFT;

	if (!(v & _PAGE_PRESENT) || is_leaf(v, level) || pfn >= ld_max_pfn ||
	    !test_bit(pfn, ld_self))
		return;
	clear_bit(pfn, ld_self);
	ld_reserve_give_away(pfn);
	++*(unsigned long *)arg;
}

/*
 * Everything as it was.  The hook stays in place until nothing is protected any
 * more, then goes.  Safe to call at any point after ld_wp_prepare(), and again.
 */
void ld_wp_restore(void)
{
	struct ld_joins joins = { .v = joins_room };
	unsigned long n, kept = 0;
	int passes = 0;

	if (!ld_wp_hooked())
		return;
	ld_wp_grant_all();
	/*
	 * set_memory_*() may have read a marked entry before a pass and write it back
	 * after.  It does so under a spinlock, so one grace period later it is done.
	 */
	do {
		n = 0;
		for_each_marked_range(unmark, &n);
		synchronize_rcu();
		passes++;
	} while (n);

	join_level(LEVEL_PMD, &joins);
	join_level(LEVEL_PUD, &joins);
	for_each_split_range(give_away_rest, &kept);
	if (kept)
		pr_warn("%lu page-table pages stay split: the kernel has changed them meanwhile\n",
			kept);

	ld_wp_unhook();
	pr_debug("restored in %d passes\n", passes);
}

unsigned long ld_count_marks(void)
{
	unsigned long marks = 0;

	for_each_marked_range(count_marks, &marks);
	return marks;
}

int ld_restore_prepare(void)
{
	joins_room = vmalloc(array_size(JOINS_AT_ONCE, sizeof(*joins_room)));
	return joins_room ? 0 : -ENOMEM;
}

void ld_restore_release(void)
{
	vfree(joins_room);
	joins_room = NULL;
}

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
	unsigned long va;
	ld_entry *e;
	ld_entry leaf;
	ld_entry *table;
};
/* Allocated beforehand: restoring must not depend on free memory. */
static struct ld_join *joins_room;
/*
 * A bit for each 2 MiB of vmemmap whose table the kernel walks to give away struct pages of huge
 * pages (watch.c).  It does that under a lock that can't be taken from here, with preemption on, so
 * that no grace period ends it.
 *
 * Invariant: a table of ours that such a walk is in has its bit set.  The bit is set before the
 * walk reads the entry that points to the table, and looked at again after that entry was
 * exchanged for a leaf.  Both are atomic operations and so full barriers: either the walk finds
 * the leaf, or we find the bit.
 */
static unsigned long *keep_split;

static unsigned long nr_keep_split(void)
{
	return (ld_vmemmap.end - ld_vmemmap.start) >> PMD_SHIFT;
}

void ld_restore_keep_split(unsigned long va)
{
	if (va >= ld_vmemmap.start && va < ld_vmemmap.end)
		set_bit((va - ld_vmemmap.start) >> PMD_SHIFT, keep_split);
}

static bool is_kept_split(unsigned long va, int level)
{
	return level == LEVEL_PMD && va >= ld_vmemmap.start && va < ld_vmemmap.end &&
	       test_bit((va - ld_vmemmap.start) >> PMD_SHIFT, keep_split);
}

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

static void note_mark(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	static const struct {
		const struct ld_va_range *range;
		const char *name;
	} ranges[] = {
		{ &ld_direct_map, "direct map" }, { &ld_vmemmap, "vmemmap" },
		{ &ld_image, "kernel image" }, { &ld_vmalloc, "vmalloc area" },
		{ &ld_modules, "module area" },
	};
	struct ld_marked *m = arg;
	int i;

	if (!(v & E_MARKS) || m->count++)
		return;
	m->level = level;
	m->flags = v & ~PTE_PFN_MASK;
	for (i = 0; i < ARRAY_SIZE(ranges); i++)
		if (entry_touches(ranges[i].range, va, level))
			m->range = ranges[i].name;
}

struct ld_marked ld_find_marks(void)
{
	struct ld_marked m = { 0 };

	for_each_marked_range(note_mark, &m);
	return m;
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

		/* In a released entry RW and Dirty are the kernel's business again. */
		if (is_protected(v) && !made_executable(v, level, va)) {
			n |= _PAGE_RW;
			if (v & E_DIRTY)
				n |= _PAGE_DIRTY;
		}
		/* If it is split at this moment its pieces have the marks: count that as well. */
		++*(unsigned long *)arg;
		was = cmpxchg(e, v, n);
		if (was == v)
			return;
		v = was;
	}
}

/*
 * Code that was loaded meanwhile.  set_memory_ro() found the direct map's entry of such a page
 * without RW already, for it was protected, and left it alone: what the kernel wanted shows
 * only in the mapping that the code has.  So before the marks go, each page of code gets an
 * entry of its own in the direct map that is read-only and has no mark.
 *
 * The page may be given back at the same moment.  Whoever gives it back takes its mapping
 * away first and makes the direct map's entry writable after.  So the mapping is looked at
 * again after the entry was changed.  If it is there still, whoever takes it away will find the entry
 * and make it writable; if it is not, we do.  A new owner who writes in between
 * faults, and is let through (ld_code_let_through()).
 */
struct ld_code {
	unsigned long va;
	ld_entry *e;		/* of the direct map */
};

#define CODE_MAX	16384	/* pages of code loaded in one session; 64 MiB */

static struct ld_code *code;
static unsigned int nr_code;
static unsigned long *code_then;	/* pages that were code in the stop */
static unsigned long *code_pfns;	/* changed, and not looked at again yet */

/* Read-only by the kernel's will, and code or a module's constants. */
static bool is_code(ld_entry v, const struct ld_va_range *r)
{
	if (v & _PAGE_RW)
		return false;
	if (!(v & _PAGE_NX))
		return r == &ld_modules || r == &ld_vmalloc;
	return r == &ld_modules && !is_protected(v);
}

/* In the stop, on several CPUs: a leaf that is not to be protected. */
void ld_code_note(ld_entry v, int level, const struct ld_va_range *r)
{
	unsigned long pfn = leaf_pfn(v, level);
	unsigned long end = min(pfn + (level_size(level) >> PAGE_SHIFT), ld_max_pfn);

	if (is_code(v, r))
		for (; pfn < end; pfn++)
			set_bit(pfn, code_then);
}

/* The direct map's 4 KiB entry of a page that is protected; NULL: it is not, or can't be split. */
static ld_entry *protected_direct_entry(unsigned long pfn)
{
	unsigned long va = (unsigned long)__va((u64)pfn << PAGE_SHIFT);
	ld_entry v, *e;
	int level;

	for (;;) {
		e = ld_walk(va, &level, &v);
		if (!(v & _PAGE_PRESENT) || !is_protected(v))
			return NULL;
		if (level == LEVEL_PTE)
			return e;
		if (!ld_split_leaf(e, v, level, NULL))
			return NULL;
	}
}

static void make_code_readonly(ld_entry *alias, ld_entry av, int alias_level, unsigned long va,
			       void *arg)
{
	unsigned long pfn = leaf_pfn(av, alias_level);
	unsigned long end = pfn + (level_size(alias_level) >> PAGE_SHIFT);

	if (!is_code(av, arg))
		return;
	for (; pfn < end && pfn < ld_max_pfn; pfn++, va += PAGE_SIZE) {
		ld_entry v, *e = NULL;

		/* What was code in the stop is as the kernel left it. */
		if (nr_code < CODE_MAX && ld_page_is_ram(pfn) && !test_bit(pfn, code_then))
			e = protected_direct_entry(pfn);
		if (!e)
			continue;
		set_bit(pfn, code_pfns);
		v = READ_ONCE(*e);
		if (!is_protected(v) || cmpxchg(e, v, v & ~E_MARKS) != v)
			continue;	/* given back already */
		code[nr_code].va = va;
		code[nr_code++].e = e;
	}
}

static void make_writable(ld_entry *e)
{
	ld_entry v = READ_ONCE(*e);

	while ((v & _PAGE_PRESENT) && !(v & (_PAGE_RW | E_MARKS))) {
		ld_entry was = cmpxchg(e, v, v | _PAGE_RW);

		if (was == v)
			return;
		v = was;
	}
}

/* On a write fault while restoring.  e, v: the direct map's leaf. */
void ld_code_let_through(ld_entry *e, ld_entry v, int level)
{
	if (level == LEVEL_PTE && !(v & _PAGE_RW) && leaf_pfn(v, level) < ld_max_pfn &&
	    test_bit(leaf_pfn(v, level), code_pfns))
		make_writable(e);
}

static void restore_code(void)
{
	unsigned int i;

	nr_code = 0;
	ld_for_each_leaf(&ld_modules, make_code_readonly, &ld_modules);
	ld_for_each_leaf(&ld_vmalloc, make_code_readonly, &ld_vmalloc);
	if (!nr_code)
		return;
	ld_flush_tlb_all_cpus(0);
	for (i = 0; i < nr_code; i++) {
		unsigned long pfn = leaf_pfn(READ_ONCE(*code[i].e), LEVEL_PTE);
		ld_entry v;
		int level;

		ld_walk(code[i].va, &level, &v);
		if (ld_va_to_pfn(code[i].va) != pfn || v & _PAGE_RW)
			make_writable(code[i].e);
		clear_bit(pfn, code_pfns);
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
	if (pfn >= ld_max_pfn || !test_bit(pfn, ld_self) || is_kept_split(va, level))
		return;		/* not a table of ours, or the kernel may be in it */
	leaf = joined_value(child_table(v), level);
	if (!leaf)
		return;		/* the kernel has changed a piece: the table is the kernel's now */
	if (cmpxchg(e, v, leaf) != v)
		return;
	j->v[j->n++] = (struct ld_join){ .va = va, .e = e, .leaf = leaf, .table = child_table(v) };
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
			bool kept = is_kept_split(k->va, level), back;

			if (!kept && !((joined_value(k->table, level) ^ k->leaf) & ~ad)) {
				atomic64_inc(&ld_counters.tables_joined);
				continue;
			}
			back = cmpxchg(k->e, k->leaf, table_value(k->table)) == k->leaf;
			/* One that is walked may not be used for anything else, in place or not. */
			if (back || kept) {
				unsigned long pfn = __pa(k->table) >> PAGE_SHIFT;

				clear_bit(pfn, ld_self);
				ld_reserve_give_away(pfn);
			}
			put_back |= back;
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
	restore_code();
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

int ld_restore_prepare(void)
{
	joins_room = ld_alloc(array_size(JOINS_AT_ONCE, sizeof(*joins_room)));
	code = ld_alloc(array_size(CODE_MAX, sizeof(*code)));
	code_then = ld_zalloc(BITS_TO_LONGS(ld_max_pfn) * sizeof(long));
	code_pfns = ld_zalloc(BITS_TO_LONGS(ld_max_pfn) * sizeof(long));
	keep_split = ld_zalloc(BITS_TO_LONGS(nr_keep_split()) * sizeof(long));
	if (!joins_room || !code || !code_then || !code_pfns || !keep_split)
		return -ENOMEM;
	/* Written while entries are protected still. */
	ld_wp_add_own(code, array_size(CODE_MAX, sizeof(*code)));
	ld_wp_add_own(code_then, BITS_TO_LONGS(ld_max_pfn) * sizeof(long));
	ld_wp_add_own(code_pfns, BITS_TO_LONGS(ld_max_pfn) * sizeof(long));
	ld_wp_add_own(keep_split, BITS_TO_LONGS(nr_keep_split()) * sizeof(long));
	return 0;
}

void ld_restore_release(void)
{
	vfree(joins_room);
	joins_room = NULL;
	vfree(code);
	code = NULL;
	vfree(code_then);
	code_then = NULL;
	vfree(code_pfns);
	code_pfns = NULL;
	vfree(keep_split);
	keep_split = NULL;
}

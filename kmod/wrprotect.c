// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page tables: plan, protect, mend faults, restore.  Knows nothing of dumps; it
 * calls ld_page_save() before it makes a page writable.
 *
 * Model
 * -----
 * What an address allows is the AND of the entries on its way.  So one entry of
 * the third level without RW makes a gigabyte read-only.  An entry is protected at
 * the highest level whose range holds nothing that must stay writable ("hot",
 * alias.c).  On the first write below it, protection moves one level down: its
 * children become read-only, then it becomes writable again; down to the 4 KiB
 * entry whose page is then saved and released.  Huge leaves are split into tables
 * from the reserve on the way and joined again at the end.
 *
 * Entries of level 2 that point to tables are never protected: generic code takes
 * such an entry for bad and may wipe it.
 *
 * States of an entry, in three of its software bits (MANAGED, DIRTY, RELEASED):
 *
 *	untouched	M=0		as the kernel left it
 *	protected	M=1 R=0 RW=0	ours; D remembers the hardware's Dirty bit
 *	released	M=1 R=1 RW=1	writable again, never to be protected again
 *
 * Transitions are untouched -> protected -> released, each a cmpxchg that starts
 * from the state it expects, so they can be repeated by any number of CPUs, and
 * a slow one can't protect again what another has released.  The marks stay until
 * the end: restoring looks for marks, not at a list, because set_memory_*()
 * may have split a marked entry meanwhile, and its pieces inherit the marks.
 *
 * Order in a push-down: all children protected, then the parent released.  The
 * hardware walks parent before child and x86 keeps stores in order, so no CPU sees a
 * writable parent with an unprotected child.  No flush is needed: what a TLB may still
 * hold is more strict than the tables, and the processor drops it when it faults.
 *
 * The fault path takes no lock, does not sleep and does not allocate, and every
 * page it writes (tables, reserve, module data) is hot or reached by a mapping that
 * is not protected.  An NMI may fault inside it.
 */
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <linux/sched.h>
#include <linux/rcupdate.h>
#include <linux/tracepoint.h>
#include <linux/cpu.h>
#include <asm/pgtable.h>
#include "compat.h"
#include "livedump.h"

#define E_MANAGED	_PAGE_SOFTW1
#define E_DIRTY		_PAGE_SOFTW2
#define E_RELEASED	_PAGE_SOFTW3
#define E_MARKS		(E_MANAGED | E_DIRTY | E_RELEASED)

#define JOINS_AT_ONCE	8192

#define PT_ENTRIES	512
#define LEVEL_PTE	1
#define LEVEL_PMD	2
#define LEVEL_PUD	3

#define PF_WRITE_PROT	3UL	/* write to a present page */

typedef unsigned long ld_entry;

/* A table that was taken out in favour of a huge leaf. */
struct ld_join {
	ld_entry *e;
	ld_entry leaf;
	ld_entry *table;
};

struct ld_wp_counts ld_wp_counts;

static struct tracepoint *fault_tp;
static bool hooked;
/* Only grant: nothing needs to be saved any more.  Set before restoring. */
static bool granting;

/* The entries to protect in the stop, found before it; the low bits are the level. */
static unsigned long *plan;
static unsigned long plan_len, plan_room;
/* Allocated beforehand: restoring must not depend on free memory. */
static struct ld_join *joins_room;
static u64 plan_fingerprint;

static inline unsigned int level_shift(int level)
{
	return PAGE_SHIFT + 9 * (level - 1);
}

static inline unsigned long level_size(int level)
{
	return 1UL << level_shift(level);
}

static inline int top_level(void)
{
	return pgtable_l5_enabled() ? 5 : 4;
}

static inline ld_entry *top_table(void)
{
	/* In kernel mode CR3 is the kernel's own table, with isolation too. */
	return __va(read_cr3_pa());
}

static inline bool is_leaf(ld_entry v, int level)
{
	return level == LEVEL_PTE || (level <= LEVEL_PUD && (v & _PAGE_PSE));
}

static inline ld_entry *child_table(ld_entry v)
{
	return __va(v & PTE_PFN_MASK);
}

static inline ld_entry *entry_in(ld_entry *table, unsigned long va, int level)
{
	return table + ((va >> level_shift(level)) & (PT_ENTRIES - 1));
}

static inline unsigned long leaf_pfn(ld_entry v, int level)
{
	unsigned long pa = v & PTE_PFN_MASK;

	if (level > LEVEL_PTE)
		pa &= ~(level_size(level) - 1);	/* bit 12 of a huge leaf is PAT */
	return pa >> PAGE_SHIFT;
}

static inline bool is_protected(ld_entry v)
{
	return (v & (E_MANAGED | E_RELEASED)) == E_MANAGED;
}

/* The entry that va goes through at its leaf, or where it ends. */
static ld_entry *walk(unsigned long va, int *level, ld_entry *value)
{
	ld_entry *e = entry_in(top_table(), va, top_level());
	int l = top_level();

	for (;;) {
		ld_entry v = READ_ONCE(*e);

		if (!(v & _PAGE_PRESENT) || is_leaf(v, l)) {
			*level = l;
			*value = v;
			return e;
		}
		e = entry_in(child_table(v), va, --l);
	}
}

unsigned long ld_va_to_pfn(unsigned long va)
{
	ld_entry v;
	int level;

	walk(va, &level, &v);
	if (!(v & _PAGE_PRESENT))
		return ULONG_MAX;
	return leaf_pfn(v, level) + ((va & (level_size(level) - 1)) >> PAGE_SHIFT);
}

/* Can nobody write through va without a fault? */
bool ld_wp_is_protected(unsigned long va)
{
	ld_entry *e = entry_in(top_table(), va, top_level());
	int l = top_level();

	for (;;) {
		ld_entry v = READ_ONCE(*e);

		if (!(v & _PAGE_PRESENT) || !(v & _PAGE_RW))
			return true;
		if (is_leaf(v, l))
			return false;
		e = entry_in(child_table(v), va, --l);
	}
}

/* ---- transitions ---- */

static inline ld_entry protected_value(ld_entry v, bool leaf)
{
	ld_entry n = (v & ~_PAGE_RW) | E_MANAGED;

	/* With shadow stacks, a leaf that is Dirty but not writable counts as writable. */
	if (leaf && (v & _PAGE_DIRTY))
		n = (n & ~_PAGE_DIRTY) | E_DIRTY;
	return n;
}

/* untouched -> protected, if it is writable.  True: this call did it. */
static bool protect_entry(ld_entry *e, int level)
{
	ld_entry v = READ_ONCE(*e);

	for (;;) {
		ld_entry was;

		if ((v & (_PAGE_PRESENT | _PAGE_RW)) != (_PAGE_PRESENT | _PAGE_RW) ||
		    (v & E_MANAGED))
			return false;
		was = cmpxchg(e, v, protected_value(v, is_leaf(v, level)));
		if (was == v)
			return true;
		v = was;
	}
}

/* protected -> released */
static void release_entry(ld_entry *e)
{
	ld_entry v = READ_ONCE(*e);

	while ((v & _PAGE_PRESENT) && is_protected(v)) {
		ld_entry n = v | _PAGE_RW | E_RELEASED;
		ld_entry was;

		if (v & E_DIRTY)
			n |= _PAGE_DIRTY;
		was = cmpxchg(e, v, n);
		if (was == v)
			return;
		v = was;
	}
}

/* Children first, then the parent: see the order above. */
static void push_down(ld_entry *pud, ld_entry v)
{
	ld_entry *pmd = child_table(v);
	int i, j;

	for (i = 0; i < PT_ENTRIES; i++) {
		ld_entry p = READ_ONCE(pmd[i]);

		if (!(p & _PAGE_PRESENT))
			continue;
		if (is_leaf(p, LEVEL_PMD)) {
			protect_entry(&pmd[i], LEVEL_PMD);
			/* Split by set_memory_*() in between: then go into it. */
			p = READ_ONCE(pmd[i]);
			if (!(p & _PAGE_PRESENT) || is_leaf(p, LEVEL_PMD))
				continue;
		}
		for (j = 0; j < PT_ENTRIES; j++)
			protect_entry(&child_table(p)[j], LEVEL_PTE);
	}
	release_entry(pud);
	atomic64_inc(&ld_counters.fault_pushdowns);
}

/* Fills a table with the pieces of a huge leaf, each with the leaf's own bits. */
static void fill_pieces(ld_entry *table, ld_entry v, int level)
{
	unsigned long step = level_size(level - 1);
	ld_entry flags = v & ~PTE_PFN_MASK;
	unsigned long pa = (unsigned long)leaf_pfn(v, level) << PAGE_SHIFT;
	bool pat = v & _PAGE_PAT_LARGE;
	int i;

	if (level - 1 == LEVEL_PTE) {
		flags &= ~_PAGE_PSE;
		if (pat)
			flags |= _PAGE_PAT;
	} else if (pat) {
		flags |= _PAGE_PAT_LARGE;
	}
	/* The encryption bit lies among the address bits on some machines. */
	flags |= v & sme_me_mask;
	for (i = 0; i < PT_ENTRIES; i++)
		table[i] = flags | (pa + i * step);
}

static inline ld_entry table_value(ld_entry *table)
{
	return __pa(table) | _KERNPG_TABLE;
}

/*
 * Replaces a huge leaf by a table.  The pieces carry the leaf's state, so nothing
 * changes in what the addresses allow.  False: no page for the table.
 */
static bool split_leaf(ld_entry *e, ld_entry v, int level, u32 *used)
{
	u32 slot = ld_reserve_get();
	ld_entry *table;

	if (slot == LD_NO_SLOT)
		return false;
	table = ld_reserve_page(slot);
	fill_pieces(table, v, level);
	/* Full barrier: the pieces are there before the table is. */
	if (cmpxchg(e, v, table_value(table)) == v) {
		atomic64_inc(&ld_counters.tables_split);
		if (used)
			*used = slot;
		return true;
	}
	ld_reserve_put(slot);	/* another CPU was first, or Accessed was set */
	if (used)
		*used = LD_NO_SLOT;
	return true;
}

/* The reserve is used up: all of the leaf's pages that are not saved are lost. */
static void lose_leaf(ld_entry *e, ld_entry v, int level)
{
	unsigned long pfn = leaf_pfn(v, level);
	unsigned long end = pfn + (level_size(level) >> PAGE_SHIFT);

	for (; pfn < end; pfn++)
		ld_page_save(pfn);	/* loses it, or finds that it is left out */
	release_entry(e);
}

static void mend(unsigned long va)
{
	int level = top_level();
	ld_entry *e = entry_in(top_table(), va, level);

	for (;;) {
		ld_entry v = READ_ONCE(*e);

		if (!(v & _PAGE_PRESENT))
			return;
		if (!is_leaf(v, level)) {
			if (level == LEVEL_PUD && is_protected(v)) {
				if (READ_ONCE(granting))
					release_entry(e);
				else
					push_down(e, v);
				continue;
			}
			e = entry_in(child_table(v), va, --level);
			continue;
		}
		if (!is_protected(v))
			return;		/* not ours, or another CPU was first */
		if (READ_ONCE(granting)) {
			release_entry(e);
		} else if (level > LEVEL_PTE) {
			if (!split_leaf(e, v, level, NULL)) {
				lose_leaf(e, v, level);
				break;
			}
			atomic64_inc(&ld_counters.fault_splits);
			continue;
		} else {
			ld_page_save(leaf_pfn(v, level));
			release_entry(e);
		}
		break;
	}
	atomic64_inc(&ld_counters.faults);
}

static inline bool in_va_range(const struct ld_va_range *r, unsigned long va)
{
	return va >= r->start && va < r->end;
}

/*
 * exceptions:page_fault_kernel.  It fires before the kernel's own check for a
 * stale TLB entry: once the entry is writable the kernel takes the fault for
 * one and tries again.
 */
static void on_page_fault(void *data, unsigned long address, struct pt_regs *regs,
			  unsigned long error_code)
{
	if ((error_code & PF_WRITE_PROT) != PF_WRITE_PROT)
		return;
	if (in_va_range(&ld_direct_map, address) || in_va_range(&ld_vmemmap, address))
		mend(address);
}

/* ---- the plan ---- */

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

	if (!split_leaf(e, v, level, &slot))
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

		/* base of the top table is the sign-extended start of the upper half */
		if (va + size - 1 < r->start || va >= r->end)
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

		if (va + level_size(level) - 1 < r->start || va >= r->end)
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

static inline unsigned long top_base(void)
{
	/* Entry 0 of the top table is address 0; wrap-around gives the upper half. */
	return top_level() == 5 ? 0xfe00000000000000UL : 0xffff000000000000UL;
}

static u64 fingerprint_all(void)
{
	u64 h = fingerprint(&ld_direct_map, top_table(), top_level(), top_base(), 1);

	return fingerprint(&ld_vmemmap, top_table(), top_level(), top_base(), h);
}

static int add_tables(const struct ld_va_range *r, ld_entry *table, int level,
		      unsigned long base, int (*add)(unsigned long pfn))
{
	int i, err;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (va + level_size(level) - 1 < r->start || va >= r->end)
			continue;
		v = READ_ONCE(table[i]);
		if (!(v & _PAGE_PRESENT) || is_leaf(v, level))
			continue;
		err = add((v & PTE_PFN_MASK) >> PAGE_SHIFT);
		if (!err && level > LEVEL_PMD)
			err = add_tables(r, child_table(v), level - 1, va, add);
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

/* Every page of the tables that the fault path writes. */
int ld_wp_add_tables(int (*add)(unsigned long pfn))
{
	int err = add_tables(&ld_direct_map, top_table(), top_level(), top_base(), add);

	return err ?: add_tables(&ld_vmemmap, top_table(), top_level(), top_base(), add);
}

/*
 * Finds what to protect in the stop.  Splitting for the plan makes new tables,
 * but those come from the reserve, which is hot already; so one pass is
 * enough unless the kernel itself adds a table, which the fingerprint tells.
 */
int ld_wp_plan(void)
{
	bool split = false;
	int err;

	plan_len = 0;
	ld_wp_add_tables(mark_hot);
	err = plan_table(&ld_direct_map, top_table(), top_level(), top_base(), &split);
	if (!err)
		err = plan_table(&ld_vmemmap, top_table(), top_level(), top_base(), &split);
	if (split)
		ld_flush_tlb_all_cpus();
	if (err)
		return err;
	plan_fingerprint = fingerprint_all();
	return 0;
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

	for (i = 0; i < plan_len; i++) {
		int level = plan[i] & 7;

		changed[level] += protect_entry((ld_entry *)(plan[i] & ~7UL), level);
	}
	ld_wp_counts.pud = changed[LEVEL_PUD];
	ld_wp_counts.pmd = changed[LEVEL_PMD];
	ld_wp_counts.pte = changed[LEVEL_PTE];
}

/* ---- restoring ---- */

typedef void (*ld_entry_fn)(ld_entry *e, ld_entry v, int level, void *arg);

/* Calls fn for every present entry of levels 3 to 1, children before their parent. */
static void for_each_entry(const struct ld_va_range *r, ld_entry *table, int level,
			   unsigned long base, ld_entry_fn fn, void *arg)
{
	int i;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (va + level_size(level) - 1 < r->start || va >= r->end)
			continue;
		v = READ_ONCE(table[i]);
		if (!(v & _PAGE_PRESENT))
			continue;
		if (!is_leaf(v, level)) {
			for_each_entry(r, child_table(v), level - 1, va, fn, arg);
			cond_resched();
		}
		if (level <= LEVEL_PUD)
			fn(&table[i], v, level, arg);
	}
}

static void for_each_protected_range(ld_entry_fn fn, void *arg)
{
	for_each_entry(&ld_direct_map, top_table(), top_level(), top_base(), fn, arg);
	for_each_entry(&ld_vmemmap, top_table(), top_level(), top_base(), fn, arg);
}

static void count_marks(ld_entry *e, ld_entry v, int level, void *arg)
{
	if (v & E_MARKS)
		++*(unsigned long *)arg;
}

static void unmark(ld_entry *e, ld_entry v, int level, void *arg)
{
	while (v & E_MARKS) {
		ld_entry n = v & ~E_MARKS;
		ld_entry was;

		/* In a released entry RW is the kernel's business again. */
		if (is_protected(v))
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

static void find_joins(ld_entry *e, ld_entry v, int level, void *arg)
{
	struct ld_joins *j = arg;
	unsigned long pfn = (v & PTE_PFN_MASK) >> PAGE_SHIFT;
	ld_entry leaf;

	if (level != j->level || is_leaf(v, level) || j->n == JOINS_AT_ONCE)
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
		for_each_protected_range(find_joins, j);
		ld_flush_tlb_all_cpus();
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
			ld_flush_tlb_all_cpus();
	} while (j->n == JOINS_AT_ONCE);
}

static void give_away_rest(ld_entry *e, ld_entry v, int level, void *arg)
{
	unsigned long pfn = (v & PTE_PFN_MASK) >> PAGE_SHIFT;

	if (is_leaf(v, level) || pfn >= ld_max_pfn || !test_bit(pfn, ld_self))
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

	if (!hooked)
		return;
	WRITE_ONCE(granting, true);
	/* No fault path that still protects anything is under way after this. */
	tracepoint_synchronize_unregister();
	/*
	 * set_memory_*() may have read a marked entry before a pass and write it back
	 * after.  It does so under a spinlock, so one grace period later it is done.
	 */
	do {
		n = 0;
		for_each_protected_range(unmark, &n);
		synchronize_rcu();
		passes++;
	} while (n);

	join_level(LEVEL_PMD, &joins);
	join_level(LEVEL_PUD, &joins);
	for_each_protected_range(give_away_rest, &kept);
	if (kept)
		pr_warn("%lu page-table pages stay split: the kernel has changed them meanwhile\n",
			kept);

	tracepoint_probe_unregister(fault_tp, on_page_fault, NULL);
	tracepoint_synchronize_unregister();
	hooked = false;
	granting = false;
	pr_debug("restored in %d passes\n", passes);
}

/* ---- set-up ---- */

static void find_tracepoint(struct tracepoint *tp, void *arg)
{
	if (!strcmp(tp->name, "page_fault_kernel"))
		*(struct tracepoint **)arg = tp;
}

int ld_wp_prepare(void)
{
	unsigned long marks = 0;
	int err;

	fault_tp = NULL;
	for_each_kernel_tracepoint(find_tracepoint, &fault_tp);
	if (!fault_tp) {
		pr_err("this kernel has no tracepoint exceptions:page_fault_kernel\n");
		return -EOPNOTSUPP;
	}
	for_each_protected_range(count_marks, &marks);
	if (marks) {
		pr_err("%lu page-table entries use the software bits that livedump needs\n", marks);
		return -EOPNOTSUPP;
	}
	joins_room = vmalloc(array_size(JOINS_AT_ONCE, sizeof(*joins_room)));
	if (!joins_room)
		return -ENOMEM;
	granting = false;
	memset(&ld_wp_counts, 0, sizeof(ld_wp_counts));
	/* First of all probes: the others may write what is protected. */
	err = tracepoint_probe_register_prio(fault_tp, on_page_fault, NULL, INT_MAX);
	if (err) {
		pr_err("cannot hook the page-fault tracepoint: %d\n", err);
		return err;
	}
	hooked = true;
	return 0;
}

void ld_wp_release(void)
{
	vfree(joins_room);
	joins_room = NULL;
	vfree(plan);
	plan = NULL;
	plan_len = 0;
	plan_room = 0;
}

/* ---- other ranges ---- */

static void writable_in(unsigned long start, unsigned long end, ld_entry *table, int level,
			unsigned long base, void (*fn)(unsigned long pfn, unsigned long nr))
{
	int i;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (va + level_size(level) - 1 < start || va > end - 1)
			continue;
		v = READ_ONCE(table[i]);
		if (!(v & _PAGE_PRESENT) || !(v & _PAGE_RW))
			continue;
		if (is_leaf(v, level))
			fn(leaf_pfn(v, level), level_size(level) >> PAGE_SHIFT);
		else
			writable_in(start, end, child_table(v), level - 1, va, fn);
		cond_resched();
	}
}

void ld_for_each_writable(unsigned long start, unsigned long end,
			  void (*fn)(unsigned long pfn, unsigned long nr))
{
	writable_in(start, end, top_table(), top_level(), top_base(), fn);
}

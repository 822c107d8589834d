/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Page-table entries: their states (see wrprotect.c for the model) and what the parts that
 * work on them share.
 */
#ifndef _LIVEDUMP_ENTRY_H
#define _LIVEDUMP_ENTRY_H

#include <linux/mm.h>
#include <asm/pgtable.h>
#include "livedump.h"

/*
 * The marks: two of the bits that the processor leaves to software, for four states (wrprotect.c).
 * The kernel uses both in page tables of processes only, for userfaultfd and, in older series, DAX.
 * Of the others SOFTW1 is in what vmap_pfn() maps, SOFTW3 since 6.15 in what set_memory_4k() was
 * called for, and SOFTW5, where there is one, stands for Dirty.
 */
#define E_PROTECTED	(1UL << _PAGE_BIT_SOFTW2)
#define E_RELEASED	(1UL << _PAGE_BIT_SOFTW4)	/* without E_PROTECTED */
#define E_DIRTY		E_RELEASED			/* with it */
#define E_MARKS		(E_PROTECTED | E_RELEASED)

#define PT_ENTRIES	512
#define LEVEL_PTE	1
#define LEVEL_PMD	2
#define LEVEL_PUD	3

typedef unsigned long ld_entry;
/**
 * typedef ld_entry_fn - called for an entry by a walk
 * @e: the entry, by its direct-map address
 * @v: what was read from it; it may have changed since
 * @level: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB
 * @va: where what it maps begins
 * @arg: as given to the walk
 */
typedef void (*ld_entry_fn)(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg);

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

/* Of these pages, is any hot (alias.c)? */
static inline bool any_hot(unsigned long pfn, unsigned long nr)
{
	unsigned long end = min(pfn + nr, ld_max_pfn);

	return pfn < end && find_next_bit(ld_hot, end, pfn) < end;
}

static inline bool is_protected(ld_entry v)
{
	return v & E_PROTECTED;
}

/* What a writable entry becomes when it is protected. */
static inline ld_entry protected_value(ld_entry v, bool leaf)
{
	ld_entry n = (v & ~_PAGE_RW) | E_PROTECTED;

	/* With shadow stacks, a leaf that is Dirty but not writable counts as writable. */
	if (leaf && (v & _PAGE_DIRTY))
		n = (n & ~_PAGE_DIRTY) | E_DIRTY;
	return n;
}

/**
 * protect_entry() - untouched -> protected, if the entry is writable and may be
 * @e: the entry
 * @level: its level
 *
 * Context: any, the stop included, which does little else: hence inline.  No TLB is flushed.
 * An entry of level 2 that points to a table is left alone (wrprotect.c): set_memory_*() may have
 * split a huge leaf since the caller looked.
 *
 * Return: true if this call did it.
 */
static inline bool protect_entry(ld_entry *e, int level)
{
	ld_entry v = READ_ONCE(*e);

	for (;;) {
		ld_entry was;

		if ((v & (_PAGE_PRESENT | _PAGE_RW)) != (_PAGE_PRESENT | _PAGE_RW) ||
		    (v & E_MARKS) || (level == LEVEL_PMD && !is_leaf(v, level)))
			return false;
		was = cmpxchg(e, v, protected_value(v, is_leaf(v, level)));
		if (was == v)
			return true;
		v = was;
	}
}

/*
 * What an entry was in the stop, whatever has become of our marks since: nobody but us has
 * written it, and only what was writable is protected.
 */
static inline ld_entry value_as_of_stop(ld_entry v)
{
	if (!(v & _PAGE_PRESENT) || !(v & E_MARKS))
		return v;
	/* When it was released, Dirty was put back. */
	if (is_protected(v) && (v & E_DIRTY))
		v |= _PAGE_DIRTY;
	return (v & ~E_MARKS) | _PAGE_RW;
}

static inline ld_entry table_value(ld_entry *table)
{
	return __pa(table) | _KERNPG_TABLE;
}

/*
 * The address of entry 0 of the top table, as if the addresses went on below the
 * kernel's half: entry i is at top_base() + i * level_size(top_level()).
 */
static inline unsigned long top_base(void)
{
	return top_level() == 5 ? 0xfe00000000000000UL : 0xffff000000000000UL;
}

/* Does the entry at va cover any of the range? */
static inline bool entry_touches(const struct ld_va_range *r, unsigned long va, int level)
{
	return va + level_size(level) - 1 >= r->start && va < r->end;
}

/* ---- wrprotect.c ---- */

/**
 * ld_walk() - find the entry that an address goes through last
 * @va: a kernel address
 * @level: out, the entry's level
 * @value: out, its value at one instant
 *
 * Context: any; takes no lock.  The caller sees to it that tables of the range are not freed.
 * Return: the leaf that maps @va, or the entry that is not present.
 */
ld_entry *ld_walk(unsigned long va, int *level, ld_entry *value);

/**
 * ld_walk_as_of_stop() - what ld_walk() would have found in the stop
 * @va: an address in the direct map, vmemmap or the kernel image
 * @level: out, the leaf's level
 * @value: out, its value, with our marks or without
 *
 * Context: process context, after the stop.
 * Return: false if nothing was mapped there, or that is not known.
 */
bool ld_walk_as_of_stop(unsigned long va, int *level, ld_entry *value);

/**
 * ld_wp_open() - do what a write fault at an address does
 * @va: an address in the direct map, vmemmap or the kernel image
 *
 * Then no leaf that is protected is on the way to @va, and none will be: the page is saved and its
 * entry writable.
 *
 * Context: any, while memory is frozen.
 */
void ld_wp_open(unsigned long va);

/**
 * ld_split_leaf() - replace a huge leaf by a table whose pieces carry the leaf's state
 * @e: the leaf's entry
 * @v: its value
 * @level: 2 or 3
 * @used: NULL in the fault path; before the stop out: the slot of the table, or LD_NO_SLOT
 *	  if another CPU was first
 *
 * Nothing changes in what the addresses allow.
 *
 * Context: any.
 * Return: false if the reserve has no page for the table.
 */
bool ld_split_leaf(ld_entry *e, ld_entry v, int level, u32 *used);

/**
 * ld_wp_grant_all() - from now on faults make entries writable and save nothing
 *
 * Context: process context; waits until no fault path that still protects is under way.
 */
void ld_wp_grant_all(void);

/**
 * ld_wp_hooked() - is the probe on the page-fault tracepoint?
 *
 * Return: true between a successful ld_wp_prepare() and ld_wp_unhook().
 */
bool ld_wp_hooked(void);

/**
 * ld_wp_unhook() - remove the probe
 *
 * Nothing may be protected any more.
 *
 * Context: process context; waits for probes that run.
 */
void ld_wp_unhook(void);

/* ---- window.c ---- */

/**
 * ld_writable() - where the fault path may write an entry
 * @e: the entry, by its direct-map address
 *
 * Context: any.
 * Return: its address in the window, if its table is mapped there; otherwise @e, for then it is
 * hot or in a table of the reserve.
 */
ld_entry *ld_writable(ld_entry *e);

/**
 * ld_window_index() - look a table up in the window
 * @table_pfn: page frame of the table
 *
 * Return: its place, or -1.
 */
int ld_window_index(unsigned long table_pfn);

/**
 * ld_window_open() - map the tables of the ranges that are protected at their leaves
 *
 * Context: process context, before the stop.  A window that is open is closed first.
 * Return: 0 or -ENOMEM.
 */
int ld_window_open(void);
void ld_window_close(void);

/**
 * ld_window_note_marks() - the table is one of which value_as_of_stop() holds
 * @i: its place in the window
 *
 * Context: the stop.
 */
void ld_window_note_marks(int i);

/**
 * ld_own_pages() - which pages are written by the fault path itself?
 * @va: the 2 MiB that are asked about begin here
 * @map: out, PT_ENTRIES bits: those of what ld_wp_add_own() was given are set
 *
 * Context: any.
 */
void ld_own_pages(unsigned long va, unsigned long *map);

/**
 * ld_own_uncover() - mark the pages of the module's own memory as uncovered
 *
 * Before the stop, which passes over them: they grow with RAM.
 */
void ld_own_uncover(void);
void ld_own_release(void);

/* ---- plan.c ---- */

/**
 * ld_for_each_leaf() - call a function for every present leaf of a range
 * @r: the range
 * @fn: the function; interrupts are off
 * @arg: for @fn
 */
void ld_for_each_leaf(const struct ld_va_range *r, ld_entry_fn fn, void *arg);

/**
 * ld_add_tables() - tell every page of the tables below a table
 * @r: only those that map any of this range
 * @highest: only those of this level and below, and above it those that the processor may write
 * @table: the table to begin with, which is not told itself
 * @level: its level
 * @base: the address that its first entry maps
 * @add: takes a page frame; an error ends the walk
 *
 * Return: 0 or the error of @add.
 */
int ld_add_tables(const struct ld_va_range *r, int highest, ld_entry *table, int level,
		  unsigned long base, int (*add)(unsigned long pfn));

/**
 * ld_add_leaf_tables() - tell the tables of all ranges that are protected at their leaves that
 * hold marks, and those that the processor may write
 * @add: as in ld_add_tables()
 *
 * Return: 0 or the error of @add.
 */
int ld_add_leaf_tables(int (*add)(unsigned long pfn));
void ld_plan_reset(void);
void ld_plan_release(void);

/* ---- eager.c, test builds only ---- */

#ifdef LIVEDUMP_TEST
bool ld_eager(void);
int ld_eager_plan(bool *split);
bool ld_eager_owns(unsigned long pfn);
u64 ld_eager_protect(void);
#else
static inline bool ld_eager(void) { return false; }
static inline int ld_eager_plan(bool *split) { return 0; }
static inline bool ld_eager_owns(unsigned long pfn) { return false; }
static inline u64 ld_eager_protect(void) { return 0; }
#endif

/* ---- restore.c ---- */

/**
 * ld_restore_prepare() - allocate what restoring needs, for it must not depend on free memory
 *
 * Return: 0 or -ENOMEM.
 */
int ld_restore_prepare(void);
void ld_restore_release(void);

/**
 * ld_restore_keep_split() - the kernel walks the table of an address of vmemmap: it is not joined
 * @va: the address
 *
 * Context: any, between ld_restore_prepare() and ld_restore_release(), before the kernel reads the
 * entry that points to the table.
 */
void ld_restore_keep_split(unsigned long va);

/**
 * struct ld_marked - entries that have one of our marks
 * @count: how many
 * @range: name of the range of the first
 * @flags: of the first: the entry without the address in it
 * @level: of the first
 */
struct ld_marked {
	unsigned long count;
	const char *range;
	ld_entry flags;
	int level;
};

/**
 * ld_find_marks() - look for entries that have one of our marks
 *
 * Context: process context, while nothing is protected.
 * Return: what there is; before PREPARE any means that somebody else uses the bits.
 */
struct ld_marked ld_find_marks(void);
void ld_code_note(ld_entry v, int level, const struct ld_va_range *r);
void ld_code_let_through(ld_entry *e, ld_entry v, int level);

#endif /* _LIVEDUMP_ENTRY_H */

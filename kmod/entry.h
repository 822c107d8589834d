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

#define E_MANAGED	_PAGE_SOFTW1
#define E_DIRTY		_PAGE_SOFTW2
#define E_RELEASED	_PAGE_SOFTW3
#define E_MARKS		(E_MANAGED | E_DIRTY | E_RELEASED)

#define PT_ENTRIES	512
#define LEVEL_PTE	1
#define LEVEL_PMD	2
#define LEVEL_PUD	3

typedef unsigned long ld_entry;
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

static inline bool is_protected(ld_entry v)
{
	return (v & (E_MANAGED | E_RELEASED)) == E_MANAGED;
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

/* The entry that va goes through at its leaf, or where it ends. */
ld_entry *ld_walk(unsigned long va, int *level, ld_entry *value);
/* untouched -> protected, if it is writable.  True: this call did it. */
bool ld_protect_entry(ld_entry *e, int level);
/*
 * Replaces a huge leaf by a table whose pieces carry the leaf's state.  False: no page for
 * the table.  used: the slot of the table, LD_NO_SLOT if another CPU was first.
 */
bool ld_split_leaf(ld_entry *e, ld_entry v, int level, u32 *used);
/* From now on every fault makes its entry writable and nothing is saved. */
void ld_wp_grant_all(void);
bool ld_wp_hooked(void);
void ld_wp_unhook(void);

/* ---- window.c ---- */

/* Where the fault path may write the entry e, given by its direct-map address. */
ld_entry *ld_writable(ld_entry *e);
int ld_window_index(unsigned long table_pfn);	/* -1: not in the window */
int ld_window_open(void);
void ld_window_close(void);
bool ld_is_own(unsigned long va, unsigned long size);
void ld_own_release(void);

/* ---- plan.c ---- */

void ld_for_each_leaf(const struct ld_va_range *r, ld_entry_fn fn, void *arg);
int ld_add_tables(const struct ld_va_range *r, ld_entry *table, int level,
		  unsigned long base, int (*add)(unsigned long pfn));
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

int ld_restore_prepare(void);
void ld_restore_release(void);
unsigned long ld_count_marks(void);

#endif /* _LIVEDUMP_ENTRY_H */

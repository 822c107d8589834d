// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page tables: the model, and the fault path.  Knows nothing of dumps; it
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
 * States of an entry, in two of its software bits, PROTECTED and one that with it is DIRTY and
 * alone is RELEASED:
 *
 *	untouched	P=0 D/R=0	as the kernel left it
 *	protected	P=1 D/R=0, RW=0	ours
 *	protected	P=1 D/R=1, RW=0	ours, and the hardware's Dirty bit was set
 *	released	P=0 D/R=1, RW=1	writable again, never to be protected again
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
#include <linux/module.h>
#include <linux/tracepoint.h>
#include "compat.h"
#include "entry.h"
#include "trace.h"

#define PF_WRITE_PROT	3UL	/* write to a present page */

static struct tracepoint *fault_tp;
static bool hooked;
static bool granting;

/* The entry that va goes through at its leaf, or where it ends. */
ld_entry *ld_walk(unsigned long va, int *level, ld_entry *value)
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

	ld_walk(va, &level, &v);
	if (!(v & _PAGE_PRESENT))
		return ULONG_MAX;
	return leaf_pfn(v, level) + ((va & (level_size(level) - 1)) >> PAGE_SHIFT);
}

/* The same as of the stop, if the tables are such as the stop copies.  False: nothing was there. */
bool ld_walk_as_of_stop(unsigned long va, int *level, ld_entry *value)
{
	ld_entry *e = entry_in(top_table(), va, top_level());
	int l = top_level();

	for (;;) {
		ld_entry v;

		if (!ld_read_as_of_stop(&v, (unsigned long)e, sizeof(v)) || !(v & _PAGE_PRESENT))
			return false;
		if (is_leaf(v, l)) {
			*level = l;
			*value = v;
			return true;
		}
		e = entry_in(child_table(v), va, --l);
	}
}

unsigned long ld_va_to_pfn_as_of_stop(unsigned long va)
{
	ld_entry v;
	int level;

	if (!ld_walk_as_of_stop(va, &level, &v))
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

static unsigned int count_leaves_1g(const struct ld_va_range *r)
{
	unsigned int n = 0;
	unsigned long va;

	for (va = r->start; va < r->end; va += PUD_SIZE) {
		ld_entry v;
		int level;

		ld_walk(va, &level, &v);
		n += v & _PAGE_PRESENT && level == LEVEL_PUD;
	}
	return n;
}

unsigned int ld_wp_count_leaves_1g(void)
{
	return count_leaves_1g(&ld_direct_map) + count_leaves_1g(&ld_vmemmap);
}

/* ---- transitions ---- */

/* protected -> released */
static void release_entry(ld_entry *e)
{
	ld_entry v;

	e = ld_writable(e);
	v = READ_ONCE(*e);

	while ((v & _PAGE_PRESENT) && is_protected(v)) {
		ld_entry n = (v & ~E_PROTECTED) | _PAGE_RW | E_RELEASED;
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

/*
 * Replaces a huge leaf by a table.  The pieces carry the leaf's state, so nothing
 * changes in what the addresses allow.  False: no page for the table.
 */
bool ld_split_leaf(ld_entry *e, ld_entry v, int level, u32 *used)
{
	u32 slot = ld_reserve_get(level == LEVEL_PUD ? LD_FOR_TABLE_1G :
				  used ? LD_FOR_STOP : LD_FOR_TABLE);
	ld_entry *table;

	if (slot == LD_NO_SLOT)
		return false;
	table = ld_reserve_page(slot);
	fill_pieces(table, v, level);
	/* Full barrier: the pieces are there before the table is. */
	if (cmpxchg(ld_writable(e), v, table_value(table)) == v) {
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

/*
 * Saves all pages of a huge leaf, or loses them, if the reserve is used up.  Those are 512, for the
 * table of a leaf of 1 GiB is always there (reserve.c).  Huge
 * leaves of the vmalloc area are never split: the kernel may unmap them at any
 * time, under no lock that would tell when a table of ours is not used any more.
 */
static void save_leaf(ld_entry *e, ld_entry v, int level)
{
	unsigned long pfn = leaf_pfn(v, level);
	unsigned long end = pfn + (level_size(level) >> PAGE_SHIFT);
	unsigned int lost = 0;

	for (; pfn < end; pfn++) {
		enum ld_saved saved = ld_page_save(pfn);

		lost += saved == LD_SAVED_LOST;
		ld_page_trace(pfn, saved);
	}
	ld_cost_lost(lost);
	release_entry(e);
}

static inline bool in_va_range(const struct ld_va_range *r, unsigned long va)
{
	return va >= r->start && va < r->end;
}

/* Returns what it took, LD_FAULT_*; 0 if there was nothing to be done. */
static unsigned int mend(unsigned long va, bool may_split)
{
	int level = top_level();
	ld_entry *e = entry_in(top_table(), va, level);
	unsigned int what = 0;

	for (;;) {
		ld_entry v = READ_ONCE(*e);

		if (!(v & _PAGE_PRESENT))
			return 0;
		if (!is_leaf(v, level)) {
			if (level == LEVEL_PUD && is_protected(v)) {
				if (READ_ONCE(granting)) {
					release_entry(e);
				} else {
					push_down(e, v);
					what |= LD_FAULT_PUSHDOWN;
				}
				continue;
			}
			e = entry_in(child_table(v), va, --level);
			continue;
		}
		if (!is_protected(v)) {
			/* Not ours, or another CPU was first. */
			if (READ_ONCE(granting) && in_va_range(&ld_direct_map, va))
				ld_code_let_through(e, v, level);
			return 0;
		}
		if (READ_ONCE(granting)) {
			release_entry(e);
			what |= LD_FAULT_THAW;
		} else if (level == LEVEL_PMD && may_split && !ld_no_leaves &&
			   ld_pages_need_no_copy(leaf_pfn(v, level), PT_ENTRIES)) {
			/* If another CPU has split it meanwhile, its pieces go one by one. */
			release_entry(e);
			atomic64_inc(&ld_counters.fault_leaves);
			what |= LD_FAULT_LEAF;
		} else if (level > LEVEL_PTE) {
			if (!may_split || !ld_split_leaf(e, v, level, NULL)) {
				save_leaf(e, v, level);
				what |= LD_FAULT_LEAF;
				break;
			}
			atomic64_inc(&ld_counters.fault_splits);
			what |= LD_FAULT_SPLIT;
			continue;
		} else {
			enum ld_saved saved = ld_page_save(leaf_pfn(v, level));

			release_entry(e);
			what |= LD_FAULT_PAGE;
			if (saved == LD_SAVED_COPY)
				what |= LD_FAULT_COPY;
			ld_page_trace(leaf_pfn(v, level), saved);
		}
		break;
	}
	atomic64_inc(&ld_counters.faults);
	return what;
}

void ld_wp_open(unsigned long va)
{
	mend(va, true);
}

/*
 * exceptions:page_fault_kernel.  It fires before the kernel's own check for a
 * stale TLB entry: once the entry is writable the kernel takes the fault for
 * one and tries again.
 */
static void on_page_fault(void *data, unsigned long address, struct pt_regs *regs,
			  unsigned long error_code)
{
	unsigned int what = 0;
	u64 began;

	if ((error_code & PF_WRITE_PROT) != PF_WRITE_PROT)
		return;
	began = ld_cost_begin();
	if (in_va_range(&ld_direct_map, address) || in_va_range(&ld_vmemmap, address) ||
	    in_va_range(&ld_image, address))
		what = mend(address, true);
	else if (in_va_range(&ld_vmalloc, address) || in_va_range(&ld_modules, address))
		what = mend(address, false);
	if (!what)
		return;
	ld_cost_end(began, what);
	if (!in_nmi())
		trace_fault(address, what);
}
/* ---- set-up ---- */

static void find_tracepoint(struct tracepoint *tp, void *arg)
{
	if (!strcmp(tp->name, "page_fault_kernel"))
		*(struct tracepoint **)arg = tp;
}

int ld_wp_prepare(void)
{
	struct ld_marked marked;
	int err;

	fault_tp = NULL;
	for_each_kernel_tracepoint(find_tracepoint, &fault_tp);
	if (!fault_tp || ld_pretend(LIVEDUMP_REFUSAL_TRACEPOINT)) {
		pr_err("this kernel has no tracepoint exceptions:page_fault_kernel\n");
		return ld_refuse(LIVEDUMP_REFUSAL_TRACEPOINT, -EOPNOTSUPP);
	}
	marked = ld_find_marks();
	if (marked.count || ld_pretend(LIVEDUMP_REFUSAL_ENTRY_BITS)) {
		pr_err("%lu page-table entries use the software bits that livedump needs\n",
		       marked.count);
		if (marked.count)
			pr_err("the first is in the %s, of level %d, with flags %#lx\n",
			       marked.range, marked.level, marked.flags);
		return ld_refuse(LIVEDUMP_REFUSAL_ENTRY_BITS, -EOPNOTSUPP);
	}
	err = ld_restore_prepare();
	if (err)
		return err;
	ld_plan_reset();
	granting = false;
	ld_for_each_module_part(ld_wp_add_own);
	/* First of all probes: the others may write what is protected. */
	err = tracepoint_probe_register_prio(fault_tp, on_page_fault, NULL, INT_MAX);
	if (err) {
		pr_err("cannot hook the page-fault tracepoint: %d\n", err);
		return err == -ENOMEM ? err : ld_refuse(LIVEDUMP_REFUSAL_TRACEPOINT, -EOPNOTSUPP);
	}
	hooked = true;
	return 0;
}

bool ld_wp_hooked(void)
{
	return hooked;
}

void ld_wp_grant_all(void)
{
	WRITE_ONCE(granting, true);
	/* No fault path that still protects anything is under way after this. */
	tracepoint_synchronize_unregister();
}

/* Nothing is protected any more. */
void ld_wp_unhook(void)
{
	tracepoint_probe_unregister(fault_tp, on_page_fault, NULL);
	tracepoint_synchronize_unregister();
	hooked = false;
}

void ld_wp_release(void)
{
	ld_window_close();
	ld_own_release();
	ld_plan_release();
	ld_restore_release();
}

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

static atomic64_t changed[LEVEL_PUD + 1];	/* in the stop */

/* How long CPUs may take to flush after huge leaves were split; none has to. */
#define SPLIT_FLUSH_US	20000

/* The entries to protect by level; the low bits are the level. */
static unsigned long *plan;
static unsigned int plan_len, plan_room;

static bool has_hot(const struct ld_va_range *r, unsigned long va, unsigned long size)
{
	/* What is hot elsewhere, is so by its direct-map address. */
	return r == &ld_direct_map && any_hot(__pa(va) >> PAGE_SHIFT, size >> PAGE_SHIFT);
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

/* An array from vmalloc with room for one more. */
static void *grow(void *old, unsigned int n, unsigned int *room, size_t size)
{
	unsigned int wider = *room ? *room * 2 : 256;
	void *new;

	if (n < *room)
		return old;
	new = ld_alloc(array_size(wider, size));
	if (!new)
		return NULL;
	if (n)
		memcpy(new, old, n * size);
	vfree(old);
	*room = wider;
	return new;
}

static int plan_add(ld_entry *e, int level)
{
	unsigned long *n = grow(plan, plan_len, &plan_room, sizeof(*n));

	if (!n)
		return -ENOMEM;
	plan = n;
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
 * The plan is right while, from before it was made, no table has come, gone or been replaced: in
 * the direct map and vmemmap at any level, in the other ranges down to the second, for what is
 * below is found in the stop.  Checked table by table in the stop, all CPUs sharing them: 4 KiB to read for
 * a gigabyte of RAM, and 256 KiB for the vmalloc area.
 */
struct ld_checked {
	const ld_entry *table;
	u16 first, end;		/* entries */
	u16 level;
	u64 sum;
};

static struct ld_checked *checked;
static unsigned int nr_checked, room_checked;
static atomic_t checks_taken, stale;

/* The second-level tables of the ranges that are protected at their leaves. */
struct ld_pmd_table {
	const struct ld_va_range *range;
	ld_entry *table;	/* NULL: a huge leaf of the third level */
	ld_entry leaf;
	unsigned long va;
};

static struct ld_pmd_table *pmd_tables;
static unsigned int nr_pmd_tables, room_pmd_tables;
static atomic_t pmd_taken, plan_taken;

/*
 * Is this the processor's to write?  Where it first comes through an entry that lacks Accessed it
 * sets the bit, by the physical address of the table: no protection keeps it from that.
 */
static bool lacks_accessed(ld_entry v)
{
	return (v & (_PAGE_PRESENT | _PAGE_ACCESSED)) == _PAGE_PRESENT;
}

/* The same for a leaf, of which it sets Dirty as well. */
static inline bool lacks_hardware_bits(ld_entry v)
{
	return ~v & (v & _PAGE_RW ? _PAGE_ACCESSED | _PAGE_DIRTY : _PAGE_ACCESSED);
}

static bool eight_are_empty(const ld_entry *e)
{
	return !READ_ONCE(e[0]) &&
	       !(READ_ONCE(e[1]) | READ_ONCE(e[2]) | READ_ONCE(e[3]) |
		 READ_ONCE(e[4]) | READ_ONCE(e[5]) | READ_ONCE(e[6]) | READ_ONCE(e[7]));
}

/* A number for which tables a table points to, and which of its entries lack Accessed. */
static u64 sum_of(const struct ld_checked *c)
{
	u64 sum = 0;
	int i;

	for (i = c->first; i < c->end; i++) {
		ld_entry v = READ_ONCE(c->table[i]);

		if (!v) {
			/* Most of the vmalloc area's. */
			while (i + 8 < c->end && eight_are_empty(&c->table[i + 1]))
				i += 8;
			continue;
		}
		if (v & _PAGE_PRESENT && !is_leaf(v, c->level))
			sum = sum * 0x9e3779b97f4a7c15ULL + (i ^ (v & PTE_PFN_MASK));
		if (c->level > LEVEL_PMD && lacks_accessed(v))
			sum = sum * 0x9e3779b97f4a7c15ULL + i + 1;
	}
	return sum;
}

static int add_pmd_table(const struct ld_va_range *r, ld_entry v, unsigned long va)
{
	struct ld_pmd_table *n = grow(pmd_tables, nr_pmd_tables, &room_pmd_tables, sizeof(*n));

	if (!n)
		return -ENOMEM;
	pmd_tables = n;
	n[nr_pmd_tables++] = (struct ld_pmd_table){
		.range = r, .leaf = v, .va = va,
		.table = is_leaf(v, LEVEL_PUD) ? NULL : child_table(v),
	};
	return 0;
}

/* lowest: the level of the last tables to be checked. */
static int add_checked(const struct ld_va_range *r, ld_entry *table, int level, int lowest,
		       unsigned long base)
{
	struct ld_checked *n = grow(checked, nr_checked, &room_checked, sizeof(*n)), *c;
	int i, err = 0;

	if (!n)
		return -ENOMEM;
	checked = n;
	c = &checked[nr_checked++];
	*c = (struct ld_checked){ .table = table, .level = level, .first = PT_ENTRIES };
	for (i = 0; i < PT_ENTRIES; i++) {
		if (!entry_touches(r, base + i * level_size(level), level))
			continue;
		c->first = min_t(int, c->first, i);
		c->end = i + 1;
	}
	c->sum = sum_of(c);
	/* c may move from here on. */
	for (i = 0; i < PT_ENTRIES && !err; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v = READ_ONCE(table[i]);

		if (!entry_touches(r, va, level) || !(v & _PAGE_PRESENT))
			continue;
		if (level == LEVEL_PUD && lowest == LEVEL_PUD)
			err = add_pmd_table(r, v, va);
		else if (level > lowest && !is_leaf(v, level))
			err = add_checked(r, child_table(v), level - 1, lowest, va);
		cond_resched();
	}
	return err;
}

/* Of the ranges that are protected by level: before they are planned. */
static int note_level_tables(void)
{
	int err;

	nr_checked = 0;
	nr_pmd_tables = 0;
	atomic_set(&checks_taken, 0);
	atomic_set(&stale, 0);
	err = add_checked(&ld_direct_map, top_table(), top_level(), LEVEL_PMD, top_base());
	return err ?: add_checked(&ld_vmemmap, top_table(), top_level(), LEVEL_PMD, top_base());
}

/* Of those that are protected at their leaves: after all memory for the plan is there. */
static int note_leaf_tables(void)
{
	const struct ld_va_range *r[] = { &ld_vmalloc, &ld_modules, &ld_image };
	int i, err = 0;

	for (i = 0; i < ARRAY_SIZE(r) && !err; i++)
		err = add_checked(r[i], top_table(), top_level(), LEVEL_PUD, top_base());
	return err;
}

/* In the stop, on several CPUs: a share of the tables. */
void ld_wp_check_plan(void)
{
	unsigned int i;

	while ((i = atomic_inc_return(&checks_taken) - 1) < nr_checked)
		if (sum_of(&checked[i]) != checked[i].sum)
			atomic_set(&stale, 1);
}

int ld_wp_plan_is_stale(void)
{
	return atomic_read(&stale) ? -EAGAIN : 0;
}

static bool any_lacks_accessed(const ld_entry *table)
{
	int i;

	for (i = 0; i < PT_ENTRIES; i++)
		if (lacks_accessed(READ_ONCE(table[i])))
			return true;
	return false;
}

int ld_add_tables(const struct ld_va_range *r, int highest, ld_entry *table, int level,
		  unsigned long base, int (*add)(unsigned long pfn))
{
	int i, err;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level), pfn;
		ld_entry v;

		if (!entry_touches(r, va, level))
			continue;
		v = READ_ONCE(table[i]);
		/* A table lies in RAM; what does not is no table any more. */
		if (!(v & _PAGE_PRESENT) || is_leaf(v, level) ||
		    !ld_page_is_ram((v & PTE_PFN_MASK) >> PAGE_SHIFT))
			continue;
		pfn = (v & PTE_PFN_MASK) >> PAGE_SHIFT;
		err = 0;
		if ((level - 1 <= highest || any_lacks_accessed(child_table(v))) &&
		    !ld_eager_owns(pfn))
			err = add(pfn);
		if (!err && level > LEVEL_PMD)
			err = ld_add_tables(r, highest, child_table(v), level - 1, va, add);
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
	int err = ld_add_tables(&ld_direct_map, top_level(), top_table(), top_level(), top_base(),
				add);

	return err ?: ld_add_tables(&ld_vmemmap, top_level(), top_table(), top_level(), top_base(),
				    add);
}
/* ---- ranges protected at their leaves ---- */

/*
 * Calls fn for every present leaf of a range.  Interrupts are off while a table is
 * looked at: the kernel frees tables of these ranges only after it has
 * interrupted every CPU.
 */
void ld_for_each_leaf(const struct ld_va_range *r, ld_entry_fn fn, void *arg)
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
		/* Test builds walk in the stop too. */
		if (!irqs_disabled())
			cond_resched();
	}
}

#define STACK_PAGES	((int)(THREAD_SIZE >> PAGE_SHIFT))

/*
 * Could the mappings from this one on be a kernel stack?  Stacks are aligned to their
 * size and followed by a page that is not mapped.  Stacks that no task has (cached
 * ones) have that shape too, and a fault on a stack would be the end, so everything that
 * has it is left alone.
 */
static bool like_a_stack(const ld_entry *table, int first)
{
	int i;

	for (i = first; i < first + STACK_PAGES; i++)
		if (!(READ_ONCE(table[i]) & _PAGE_PRESENT))
			return false;
	return i == PT_ENTRIES || !(READ_ONCE(table[i]) & _PAGE_PRESENT);
}

/* What is the same for all leaves of a table, and what has been found of it. */
struct ld_leaves {
	const struct ld_va_range *range;
	int window;			/* the table's place there, or -1 */
	bool writable_later;		/* the table, by the fault path */
	bool processors;		/* the processor may write the table */
	unsigned long ram_first, ram_end;	/* where the last page was found */
	unsigned int changed;
};

static void look_at_table(struct ld_leaves *l, const ld_entry *table)
{
	unsigned long pfn = __pa(table) >> PAGE_SHIFT;

	l->window = ld_window_index(pfn);
	/* One that has come since the plan could not be written later. */
	l->writable_later = l->window >= 0 ||
			    (pfn < ld_max_pfn && test_bit(pfn, ld_self));
}

/* Neighbours in a table are neighbours in memory more often than not. */
static inline bool is_ram(struct ld_leaves *l, unsigned long pfn)
{
	return (pfn >= l->ram_first && pfn < l->ram_end) ||
	       ld_find_ram(pfn, &l->ram_first, &l->ram_end);
}

/* keep: it has to stay writable. */
static inline void protect_leaf(struct ld_leaves *l, ld_entry *e, ld_entry v, int level, bool keep)
{
	unsigned long pfn = leaf_pfn(v, level), nr = level_size(level) >> PAGE_SHIFT;
	unsigned long i;

	l->processors |= lacks_hardware_bits(v);
	if (!(v & _PAGE_RW) || !is_ram(l, pfn)) {
		ld_code_note(v, level, l->range);
		return;		/* read-only, or a device */
	}
	if (keep || !l->writable_later || !(v & _PAGE_NX) ||
	    (level == LEVEL_PTE ? test_bit(pfn, ld_hot) : any_hot(pfn, nr))) {
		for (i = 0; i < nr; i++)
			ld_page_uncover(pfn + i);
		return;
	}
	l->changed += protect_entry(e, level);
}

/*
 * Tables of the vmalloc area and of modules are not copied in the stop, though we write them: they
 * may be many.  What we write can be taken off again where their content is read, for in these
 * ranges no entry is replaced; the kernel's own changes come by the direct map, where a fault saves
 * the page first.
 */
static void table_done(const struct ld_leaves *l, const ld_entry *table)
{
	unsigned long pfn = __pa(table) >> PAGE_SHIFT;

	if (l->changed && l->window >= 0 && l->range != &ld_image)
		ld_window_note_marks(l->window);
	if (l->processors && pfn < ld_max_pfn)
		ld_page_uncover(pfn);
}

static void protect_table(struct ld_leaves *l, ld_entry *table, const unsigned long *own)
{
	int first, i;

	look_at_table(l, table);
	for (first = 0; first < PT_ENTRIES; first += STACK_PAGES) {
		bool stack;

		while (first + 8 < PT_ENTRIES && eight_are_empty(&table[first]))
			first += 8;
		stack = l->range == &ld_vmalloc && like_a_stack(table, first);

		for (i = first; i < first + STACK_PAGES; i++) {
			ld_entry v = READ_ONCE(table[i]);

			if (!(v & _PAGE_PRESENT))
				continue;
			/* What is our own is uncovered already: ld_own_uncover(). */
			if (!(v & _PAGE_RW) || !test_bit(i, own))
				protect_leaf(l, &table[i], v, LEVEL_PTE, stack);
		}
	}
	table_done(l, table);
}

static void protect_below(const struct ld_pmd_table *t, int i, ld_entry v)
{
	unsigned long va = t->va + i * PMD_SIZE;
	struct ld_leaves l = { .range = t->range };
	DECLARE_BITMAP(own, PT_ENTRIES);

	if (!entry_touches(t->range, va, LEVEL_PMD) || ld_truth_spoils(t->range))
		return;
	ld_own_pages(va, own);
	if (bitmap_full(own, PT_ENTRIES))
		return;
	if (is_leaf(v, LEVEL_PMD)) {
		look_at_table(&l, t->table);
		protect_leaf(&l, &t->table[i], v, LEVEL_PMD, !bitmap_empty(own, PT_ENTRIES));
		table_done(&l, t->table);
		atomic64_add(l.changed, &changed[LEVEL_PMD]);
	} else {
		protect_table(&l, child_table(v), own);
		atomic64_add(l.changed, &changed[LEVEL_PTE]);
	}
}

/* The kernel maps no RAM like this in these ranges; if it does one day, let it be known. */
static void uncover_leaf(ld_entry v)
{
	unsigned long pfn = leaf_pfn(v, LEVEL_PUD), end = pfn + (PUD_SIZE >> PAGE_SHIFT);

	for (; v & _PAGE_RW && pfn < end && ld_page_is_ram(pfn); pfn++)
		ld_page_uncover(pfn);
}

/*
 * In the stop, on several CPUs: a share of the leaves.  First, while their tables can still be
 * written in the direct map.  Every CPU walks all entries of the second level and works at those
 * whose number it has taken: nobody makes one present or takes one out meanwhile, so all
 * CPUs count alike.
 */
void ld_wp_protect_leaves(void)
{
	unsigned int mine = atomic_inc_return(&pmd_taken) - 1, n = 0, i;

	for (i = 0; i < nr_pmd_tables; i++) {
		const struct ld_pmd_table *t = &pmd_tables[i];
		int j;

		for (j = 0; j < (t->table ? PT_ENTRIES : 1); j++) {
			ld_entry v = t->table ? READ_ONCE(t->table[j]) : t->leaf;

			if (!(v & _PAGE_PRESENT) || n++ != mine)
				continue;
			if (t->table && lacks_accessed(v))
				ld_page_uncover(__pa(t->table) >> PAGE_SHIFT);
			if (t->table)
				protect_below(t, j, v);
			else
				uncover_leaf(v);
			mine = atomic_inc_return(&pmd_taken) - 1;
		}
	}
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

/*
 * A table above the second level holds nothing that is marked here.  The kernel writes it by the
 * direct map, where a fault saves it first, and the processor not at all if every entry has
 * Accessed, as those that the kernel makes do.  Entries that come between this look and the stop
 * are noticed there (sum_of(), table_done()).
 */
int ld_add_leaf_tables(int (*add)(unsigned long pfn))
{
	const struct ld_va_range *r[] = { &ld_vmalloc, &ld_modules, &ld_image };
	int i, err = 0;

	for (i = 0; i < ARRAY_SIZE(r) && !err; i++)
		err = ld_add_tables(r[i], LEVEL_PMD, top_table(), top_level(), top_base(), add);
	return err;
}

/* split: a huge leaf was, so what was noted of the tables is out of date. */
static int plan_levels(bool *split)
{
	int err = note_level_tables();

	plan_len = 0;
	add_level_tables(mark_hot);
	err = err ?: ld_eager_plan(split);
	if (err || ld_eager())
		return err;
	err = plan_table(&ld_direct_map, top_table(), top_level(), top_base(), split);
	if (!err && !ld_truth_spoils(&ld_vmemmap))
		err = plan_table(&ld_vmemmap, top_table(), top_level(), top_base(), split);
	return err;
}

/* As set_memory_*() may do at any time. */
static int split_planned(void)
{
	unsigned int i;
	bool split;

	for (i = 0; i < plan_len; i++) {
		ld_entry *e = (ld_entry *)(plan[i] & ~7UL), v = READ_ONCE(*e);

		if ((plan[i] & 7) == LEVEL_PMD && is_leaf(v, LEVEL_PMD))
			return split_for_plan(e, v, LEVEL_PMD, &split);
	}
	return 0;
}

/* Where the kernel goes on making tables, the stop will notice and all is planned anew. */
#define PASSES_MAX	8

/*
 * Finds what to protect in the stop.  What the stop compares was noted before the plan was made, so
 * that whatever set_memory_*() does from then on is noticed.  Splitting for the plan makes new
 * tables, which come from the reserve and are hot already, but not noted: hence another pass.
 */
int ld_wp_plan(void)
{
	struct ld_image_split image = { 0 };
	bool split = false, again;
	int err, passes = 0;

	ld_for_each_leaf(&ld_image, split_hot_image, &image);
	err = image.err;
	do {
		again = false;
		err = err ?: plan_levels(&again);
		split |= again;
	} while (!err && again && ++passes < PASSES_MAX);
	if (!err && ld_pretend_split())
		err = split_planned();
	/*
	 * Old translations allow what the new ones do.  A CPU that does not answer is waited
	 * for in the stop, where every one flushes.
	 */
	if (split || image.split)
		ld_flush_tlb_all_cpus(SPLIT_FLUSH_US);
	err = err ?: ld_window_open();
	if (err)
		return err;
	ld_own_uncover();
	atomic_set(&pmd_taken, 0);
	atomic_set(&plan_taken, 0);
	ld_plan_reset();
	return note_leaf_tables();
}

/*
 * The tables that are to be copied in the stop: those in which huge leaves may be split, and those
 * that the processor may write.  As of the stop they have no marks.
 */
int ld_wp_add_tables(int (*add)(unsigned long pfn))
{
	return add_level_tables(add) ?:
	       ld_add_tables(&ld_image, LEVEL_PMD, top_table(), top_level(), top_base(), add) ?:
	       ld_add_tables(&ld_vmalloc, 0, top_table(), top_level(), top_base(), add) ?:
	       ld_add_tables(&ld_modules, 0, top_table(), top_level(), top_base(), add);
}

#define PLAN_PIECE	64

/* In the stop, on several CPUs, when all leaves are done: a share of the plan. */
void ld_wp_protect_upper(void)
{
	unsigned int n[LEVEL_PUD + 1] = { 0 }, level;

	if (ld_eager())
		atomic64_add(ld_eager_protect(), &changed[LEVEL_PTE]);
	for (;;) {
		unsigned int i = (atomic_inc_return(&plan_taken) - 1) * PLAN_PIECE;
		unsigned int end = min(i + PLAN_PIECE, plan_len);

		if (i >= plan_len)
			break;
		for (; i < end; i++) {
			level = plan[i] & 7;
			n[level] += protect_entry((ld_entry *)(plan[i] & ~7UL), level);
		}
	}
	for (level = LEVEL_PTE; level <= LEVEL_PUD; level++)
		atomic64_add(n[level], &changed[level]);
}

u64 ld_wp_changed(int level)
{
	return atomic64_read(&changed[level]);
}

void ld_plan_reset(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(changed); i++)
		atomic64_set(&changed[i], 0);
}

void ld_plan_release(void)
{
	vfree(plan);
	plan = NULL;
	plan_len = 0;
	plan_room = 0;
	vfree(checked);
	checked = NULL;
	nr_checked = 0;
	room_checked = 0;
	vfree(pmd_tables);
	pmd_tables = NULL;
	nr_pmd_tables = 0;
	room_pmd_tables = 0;
}

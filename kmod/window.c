// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the fault path writes outside the direct map: the module's own memory, whose mappings
 * are never protected, and the window, a second mapping of page tables.
 */
#include <linux/mm.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "entry.h"

#define OWN_MAX		32

static struct ld_va_range own[OWN_MAX];
static unsigned int nr_own;

static void add_own(const void *va, size_t bytes)
{
	if (!bytes || WARN_ON_ONCE(nr_own == OWN_MAX))
		return;
	own[nr_own].start = (unsigned long)va & PAGE_MASK;
	own[nr_own].end = PAGE_ALIGN((unsigned long)va + bytes);
	nr_own++;
}

void ld_wp_add_own(const void *va, size_t bytes)
{
	unsigned long at = (unsigned long)va & PAGE_MASK;

	add_own(va, bytes);
	if (!is_vmalloc_addr(va))
		return;		/* static data of the module */
	for (; at < (unsigned long)va + bytes; at += PAGE_SIZE) {
		unsigned long pfn = ld_va_to_pfn(at);

		if (pfn < ld_max_pfn)
			set_bit(pfn, ld_self);
	}
}

void ld_own_pages(unsigned long va, unsigned long *map)
{
	unsigned int i;

	bitmap_zero(map, PT_ENTRIES);
	for (i = 0; i < nr_own; i++) {
		unsigned long first = max(own[i].start, va), end = min(own[i].end, va + PMD_SIZE);

		if (first < end)
			bitmap_set(map, (first - va) >> PAGE_SHIFT, (end - first) >> PAGE_SHIFT);
	}
}

/*
 * The tables of the ranges that are protected at their leaves lie anywhere in
 * memory.  To leave them writable in the direct map would break it up into 4 KiB
 * pieces.  So the fault path writes them through a mapping of its own.
 */
static unsigned long *table_pfns;	/* sorted */
static unsigned int nr_tables, room_tables;
static void *tables_window;		/* table i is at page i */
static unsigned int window_own;		/* nr_own without the window, if it is open */
/*
 * Table i had marks from the stop on, and is not copied in it.  By itself, for the stop writes it
 * and reads the rest.
 */
static u8 *marked;

/* Before the stop, which passes over the module's own memory: it grows with RAM. */
void ld_own_uncover(void)
{
	unsigned int i;

	for (i = 0; i < nr_own; i++) {
		unsigned long va;

		/* Through the window nothing is written but marks. */
		if (own[i].start == (unsigned long)tables_window)
			continue;
		for (va = own[i].start; va < own[i].end; va += PAGE_SIZE) {
			unsigned long pfn = ld_va_to_pfn(va);

			if (pfn < ld_max_pfn)
				ld_page_uncover(pfn);
			if (!(va % PMD_SIZE))
				cond_resched();
		}
	}
}

int ld_window_index(unsigned long pfn)
{
	unsigned int lo = 0, hi = nr_tables;

	while (lo < hi) {
		unsigned int mid = lo + (hi - lo) / 2;

		if (table_pfns[mid] < pfn)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < nr_tables && table_pfns[lo] == pfn ? (int)lo : -1;
}

/* Where the fault path may write the entry e, given by its direct-map address. */
ld_entry *ld_writable(ld_entry *e)
{
	int i = tables_window ? ld_window_index(__pa(e) >> PAGE_SHIFT) : -1;

	if (i < 0)
		return e;	/* hot, or a table of the reserve */
	return tables_window + (unsigned long)i * PAGE_SIZE + offset_in_page(e);
}

static int add_table_pfn(unsigned long pfn)
{
	if (nr_tables == room_tables) {
		unsigned int room = room_tables ? room_tables * 2 : 1024;
		unsigned long *n = ld_alloc(array_size(room, sizeof(*n)));

		if (!n)
			return -ENOMEM;
		if (nr_tables)
			memcpy(n, table_pfns, nr_tables * sizeof(*n));
		vfree(table_pfns);
		table_pfns = n;
		room_tables = room;
	}
	table_pfns[nr_tables++] = pfn;
	return 0;
}

static int compare_pfns(const void *a, const void *b)
{
	unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;

	return x < y ? -1 : x > y;
}

void ld_window_note_marks(int i)
{
	WRITE_ONCE(marked[i], 1);
}

void ld_window_take_marks_off(unsigned long pfn, void *content, size_t n)
{
	int i = tables_window ? ld_window_index(pfn) : -1;
	ld_entry *e = content;

	if (i < 0 || !READ_ONCE(marked[i]) || ld_truth_skips("marks"))
		return;
	for (; n >= sizeof(*e); n -= sizeof(*e), e++)
		*e = value_as_of_stop(*e);
}

void ld_window_close(void)
{
	vunmap(tables_window);
	tables_window = NULL;
	vfree(marked);
	marked = NULL;
	nr_tables = 0;
	if (window_own)
		nr_own = window_own;
	window_own = 0;
}

/*
 * Maps the tables once more.  The mapping needs tables itself, but those hold nothing
 * that is protected, for the window is the module's own.
 */
int ld_window_open(void)
{
	struct page **pages;
	unsigned int i, n;
	int err;

	ld_window_close();
	err = ld_add_leaf_tables(add_table_pfn);
	if (err)
		return err;
	sort(table_pfns, nr_tables, sizeof(*table_pfns), compare_pfns, NULL);
	for (i = n = 0; i < nr_tables; i++)
		if (!n || table_pfns[n - 1] != table_pfns[i])
			table_pfns[n++] = table_pfns[i];
	nr_tables = n;

	pages = ld_alloc(array_size(n, sizeof(*pages)));
	if (!pages)
		return -ENOMEM;
	for (i = 0; i < n; i++)
		pages[i] = pfn_to_page(table_pfns[i]);
	tables_window = vmap(pages, n, VM_MAP, PAGE_KERNEL);
	vfree(pages);
	marked = ld_zalloc(n);
	if (!tables_window || !marked) {
		ld_window_close();
		return -ENOMEM;
	}
	window_own = nr_own;
	add_own(tables_window, (size_t)n * PAGE_SIZE);
	add_own(marked, n);
	return 0;
}

void ld_own_release(void)
{
	vfree(table_pfns);
	table_pfns = NULL;
	room_tables = 0;
	nr_own = 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a page is, by its struct page as of the stop.
 *
 * The rules are makedumpfile's, so that a dump level means the same here and
 * there, but applied to the memory of the one instant, by code compiled
 * against the kernel's own headers.  Everything works on local snapshots of
 * struct pages: the live ones go on changing.
 *
 * Any context; the fault path classifies pages that nobody has looked at yet.
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/hugetlb.h>
#include "compat.h"
#include "livedump.h"

/* A struct page that straddles two pages would have to be read in two pieces. */
static_assert(PAGE_SIZE % sizeof(struct page) == 0);

struct ld_snap {
	struct page page;
	unsigned long pfn;
};

static bool snap_read(struct ld_snap *snap, unsigned long pfn)
{
	snap->pfn = pfn;
	return ld_page_is_ram(pfn) &&
	       ld_read_as_of_stop(&snap->page, (unsigned long)pfn_to_page(pfn),
				  sizeof(snap->page));
}

static inline bool snap_is_tail(const struct ld_snap *s)
{
	return ld_is_tail(&s->page);
}

static bool snap_head(struct ld_snap *head, const struct ld_snap *s)
{
	if (!snap_is_tail(s)) {
		*head = *s;
		return true;
	}
	return snap_read(head, page_to_pfn(ld_head_of_tail(pfn_to_page(s->pfn), &s->page)));
}

static bool snap_is_hugetlb(const struct ld_snap *head)
{
	struct ld_snap tail = { 0 };

#ifdef LD_HUGETLB_BY_TAIL
	if (!test_bit(PG_head, ld_page_flags(&head->page)) || !snap_read(&tail, head->pfn + 1))
		return false;
#endif
	return ld_is_hugetlb(&head->page, &tail.page);
}

/* Of a free block, by its head.  The order bounds what is taken for free: no more than there can be. */
static unsigned long free_block_pages(const struct ld_snap *head)
{
	return 1UL << min_t(unsigned long, head->page.private, LD_MAX_ORDER);
}

/* The free block that holds pfn: its head is aligned to its order. */
static bool in_free_block(unsigned long pfn)
{
	unsigned int order;
	struct ld_snap head;

	for (order = 0; order <= LD_MAX_ORDER; order++) {
		unsigned long first = pfn & ~((1UL << order) - 1);

		if (order && first == (pfn & ~((1UL << (order - 1)) - 1)))
			continue;	/* the same head as of the order before */
		if (!snap_read(&head, first))
			return false;
		if (PageBuddy(&head.page))
			return first + free_block_pages(&head) > pfn;
	}
	return false;
}

static u32 classify_used(const struct ld_snap *s)
{
	struct ld_snap head;
	unsigned long flags;
	bool anon, private;

	if (!snap_head(&head, s))
		return LIVEDUMP_CLASS_KERNEL;
	flags = *ld_page_flags(&head.page);
	if (ld_is_slab(&head.page) || test_bit(PG_reserved, &flags))
		return LIVEDUMP_CLASS_KERNEL;
	if (snap_is_hugetlb(&head))
		return LIVEDUMP_CLASS_HUGETLB;

	anon = (unsigned long)head.page.mapping & LD_MAPPING_ANON;
	if (anon)
		return LIVEDUMP_CLASS_USER;
	private = test_bit(PG_private, &flags);
	if (test_bit(PG_lru, &flags) ||
	    (test_bit(PG_swapcache, &flags) && test_bit(PG_swapbacked, &flags)))
		return private ? LIVEDUMP_CLASS_CACHE_PRIVATE : LIVEDUMP_CLASS_CACHE;
	if (ld_is_page_pool(&head.page) && !test_and_set_bit(s->pfn, ld_uncovered))
		atomic64_inc(&ld_counters.page_pool);
	return LIVEDUMP_CLASS_KERNEL;
}

/*
 * A page on its way into an address space or a file: only such pages are ever up to date, and
 * while one is being read in it is locked.
 */
static bool snap_on_its_way(const struct ld_snap *s)
{
	unsigned long flags = *ld_page_flags(&s->page);

	return test_bit(PG_uptodate, &flags) || test_bit(PG_locked, &flags);
}

static bool snap_is_tail_of(const struct ld_snap *s, const struct ld_snap *head)
{
	return snap_is_tail(s) &&
	       ld_head_of_tail(pfn_to_page(s->pfn), &s->page) == pfn_to_page(head->pfn);
}

/*
 * All of a compound page, whichever part of it was in hand.  Slab pages, page tables and what is
 * reserved have their owner.
 */
void ld_page_in_flight(unsigned long pfn)
{
	struct ld_snap s, head;

	if (!snap_read(&s, pfn) || !snap_head(&head, &s) || ld_is_slab(&head.page) ||
	    PageTable(&head.page) || test_bit(PG_reserved, ld_page_flags(&head.page)))
		return;
	pfn = head.pfn;
	do {
		set_bit(pfn, ld_uncovered);
	} while (snap_read(&s, ++pfn) && snap_is_tail_of(&s, &head));
}

/* Classes that need no look at other pages; 0: none of them. */
static u32 classify_alone(struct ld_snap *s)
{
#ifdef CONFIG_MEMORY_FAILURE
	if (test_bit(PG_hwpoison, ld_page_flags(&s->page)))
		return LIVEDUMP_CLASS_HWPOISON;
#endif
	if (test_bit(s->pfn, ld_self))
		return LIVEDUMP_CLASS_SELF;
	if (PageOffline(&s->page))
		return LIVEDUMP_CLASS_OFFLINE;
	if (ld_va_to_pfn((unsigned long)__va((u64)s->pfn << PAGE_SHIFT)) == ULONG_MAX)
		return LIVEDUMP_CLASS_UNMAPPED;
	return 0;
}

u32 ld_classify(unsigned long pfn)
{
	struct ld_snap s;
	u32 c;

	/* RAM without a struct page (or one that can't be read) is the kernel's own. */
	if (!snap_read(&s, pfn))
		return LIVEDUMP_CLASS_KERNEL;
	c = classify_alone(&s);
	if (c)
		return c;
	if (!snap_is_tail(&s) && in_free_block(pfn))
		return LIVEDUMP_CLASS_FREE;
	return classify_used(&s);
}

/* Classifies all of RAM, in order, so that free blocks are seen by their heads. */
void ld_classify_all(u64 *class_pages, u64 *to_dump, u64 *uncovered)
{
	unsigned long pfn, free_until = 0;

	ld_shadow_mark();
	ld_users_mark();
	ld_outside_mark();
	ld_watch_mark();
	ld_free_lists_mark();
	ld_dma_mark();
	ld_handed_mark();
	*to_dump = 0;
	*uncovered = 0;
	class_pages[LIVEDUMP_CLASS_OFFLINE] += ld_offline_pages;
	for (pfn = 0; pfn < ld_max_pfn; pfn++) {
		struct ld_snap s;
		u32 c;

		if (!(pfn % 1024))
			cond_resched();
		if (!ld_page_is_ram(pfn))
			continue;
		c = ld_page_class(pfn);
		if (!snap_read(&s, pfn)) {
			c = LIVEDUMP_CLASS_KERNEL;
		} else {
			if (PageBuddy(&s.page))
				free_until = max(free_until, pfn + free_block_pages(&s));
			if (PageTable(&s.page))
				set_bit(pfn, ld_tables);
			if (!c)
				c = classify_alone(&s);
			if (!c)
				c = pfn < free_until ? LIVEDUMP_CLASS_FREE : classify_used(&s);
			if (c == LIVEDUMP_CLASS_KERNEL && snap_on_its_way(&s))
				set_bit(pfn, ld_uncovered);
		}
		ld_page_set_class(pfn, c);
		/* A fault may have been first; its word counts. */
		c = ld_page_class(pfn);
		class_pages[c]++;
		if (!ld_class_excluded(c)) {
			(*to_dump)++;
			if (ld_page_is_uncovered(pfn, c))
				(*uncovered)++;
			if (test_bit(pfn, ld_tables))
				atomic64_inc(&ld_counters.page_tables);
		}
	}
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Free pages that their struct pages do not tell: those on the per-CPU lists of the
 * page allocator.  They look like pages of the kernel in use, and their reference count of
 * zero proves nothing, for the later pages of an allocation have that too.
 *
 * So the lists are walked, after the stop and as of the stop, which costs the stop nothing.
 * A CPU may have been stopped in the middle of a change.  Lists are read forwards only:
 * their next pointers are whole at every instant.
 */
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/sched.h>
#include "compat.h"
#include "livedump.h"

/* Bound of all that is marked: what is no list must not keep us here. */
static unsigned long left;

static void mark_free(unsigned long pfn, unsigned int order)
{
	unsigned long end = pfn + (1UL << order);

	for (; pfn < end; pfn++)
		if (ld_page_is_ram(pfn))
			ld_page_force_class(pfn, LIVEDUMP_CLASS_FREE);
}

static void walk_list(const struct list_head *head, unsigned int order)
{
	unsigned long at = (unsigned long)head;
	unsigned long first = (unsigned long)pfn_to_page(0);
	unsigned long end = (unsigned long)pfn_to_page(ld_max_pfn);

	while (left) {
		unsigned long next, page;

		if (!ld_read_as_of_stop(&next, at + offsetof(struct list_head, next),
					sizeof(next)) || next == (unsigned long)head)
			return;
		page = next - offsetof(struct page, lru);
		if (page < first || page >= end || (page - first) % sizeof(struct page))
			return;		/* not a list of pages (any more) */
		mark_free(page_to_pfn((struct page *)page), order);
		left -= min(left, 1UL << order);
		at = next;
		if (!(left % 1024))
			cond_resched();
	}
}

/* After the stop, before pages are classified. */
void ld_free_lists_mark(void)
{
	int nid, zone, cpu, i;

	left = ld_ram_pages;
	for_each_online_node(nid) {
		for (zone = 0; zone < MAX_NR_ZONES; zone++) {
			struct zone *z = &NODE_DATA(nid)->node_zones[zone];

			if (!populated_zone(z))
				continue;
			for_each_possible_cpu(cpu) {
				const struct per_cpu_pages *pcp = ld_zone_pcp(z, cpu);

				for (i = 0; i < ARRAY_SIZE(pcp->lists); i++)
					walk_list(&pcp->lists[i], ld_pcp_order(i));
			}
		}
	}
}

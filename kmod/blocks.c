// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the pages of the reserve come from: how many, and which.
 *
 * They stay writable, so each gigabyte that holds some of them is protected by 2 MiB entries
 * in the stop instead of one, and each 2 MiB that does by 4 KiB entries, unless it is
 * all the reserve's.  So whole blocks of the largest order are allocated, more than needed,
 * and those kept that share gigabytes with each other and with what stays writable anyway.
 *
 * No allocation here may push the machine to its limits: none may start the OOM killer
 * (__GFP_NORETRY), and a node keeps half of what it could give.
 */
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "livedump.h"

#define MAX_DEFAULT_PAGES	(SZ_512M >> PAGE_SHIFT)
#define MAX_PAGES		(BIT(24) - 1)	/* what a state word can number */

static u64 (*add_page)(void *page);
static u64 nr_added;
static unsigned long *floors;	/* what each node must be able to give after all this */

/* ---- how many ---- */

/*
 * What a node could give the kernel without reclaiming more than half of its page cache, in the
 * manner of si_mem_available().  But what lies in the movable zone is none of it: the kernel can't
 * have that, however much there is, and would be out of memory beside it.
 */
static unsigned long node_available(int nid)
{
	pg_data_t *node = NODE_DATA(nid);
	unsigned long pages = 0, cache = 0;
	int i;

	for (i = 0; i < ZONE_MOVABLE; i++) {
		struct zone *z = &node->node_zones[i];
		unsigned long in_zone, keep;

		if (!populated_zone(z))
			continue;
		in_zone = zone_page_state(z, NR_FREE_PAGES);
		keep = high_wmark_pages(z);
		pages += in_zone > keep ? in_zone - keep : 0;
		cache += zone_page_state(z, NR_ZONE_ACTIVE_FILE) +
			 zone_page_state(z, NR_ZONE_INACTIVE_FILE);
	}
	return pages + cache / 2;
}

static u64 available(void)
{
	u64 pages = 0;
	int nid;

	for_each_online_node(nid)
		pages += node_available(nid);
	return min_t(u64, pages, max(si_mem_available(), 0L));
}

/* The copies of the stop: per-CPU areas, tables, the used parts of all stacks. */
static u64 stop_pages(void)
{
	struct task_struct *g, *t;
	u64 threads = 0;

	rcu_read_lock();
	for_each_process_thread(g, t)
		threads++;
	rcu_read_unlock();
	/* Two pages of a stack are in use, seldom more; a table per gigabyte and some. */
	return 2 * threads + 256 * (u64)num_possible_cpus() + ld_ram_pages / 4096 + 1024;
}

/* Never more than what can be had without pushing the machine to its limits. */
static u64 bounded(u64 want)
{
	/* Leave the node at least half of what it has.  And whole blocks, if it is that many. */
	want = min3(want, available() / 2, (u64)MAX_PAGES);
	return want < BIT(LD_MAX_ORDER) ? want : round_down(want, BIT(LD_MAX_ORDER));
}

u64 ld_reserve_size(u64 limit_bytes, u64 estimate)
{
	u64 limit = limit_bytes >> PAGE_SHIFT;
	u64 tables = ld_reserve_tables_1g(), least = LD_RESERVE_MIN + tables;
	u64 want;

	if (estimate) {
		/* What has been counted are copies. */
		want = round_up(max(estimate + tables, least), BIT(LD_MAX_ORDER));
		if (!limit)
			limit = max(available() / 4, least);
		return bounded(min(want, limit));
	}
	if (limit)
		return bounded(limit);
	/*
	 * A sixteenth of RAM, but never more than a quarter of what is free; and not more than
	 * what is likely to be of use: what one does not write to is not needed.
	 */
	want = min_t(u64, ld_ram_pages / 16, MAX_DEFAULT_PAGES) + stop_pages();
	return bounded(min(round_up(want, BIT(LD_MAX_ORDER)), available() / 4));
}

/* ---- the pages themselves ---- */

struct ld_block {
	unsigned long pfn;
	u32 rank;		/* of its gigabyte: lower is better */
};

struct ld_gib {
	u32 blocks;
	u32 rank;
	u32 number;
	bool hot;
};

#define RESERVE_GFP	(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN | __GFP_THISNODE)

/* Blocks of the largest order from one node, until nr pages or its share is reached. */
static u64 gather_blocks(int nid, u64 pages, struct ld_block *blocks, u32 *nr)
{
	u64 got = 0;

	while (got + BIT(LD_MAX_ORDER) <= pages && node_available(nid) > floors[nid]) {
		struct page *page = alloc_pages_node(nid, RESERVE_GFP, LD_MAX_ORDER);

		if (!page)
			break;
		blocks[(*nr)++].pfn = page_to_pfn(page);
		got += BIT(LD_MAX_ORDER);
		cond_resched();
	}
	return got;
}

static int compare_gibs(const void *a, const void *b)
{
	const struct ld_gib *x = a, *y = b;

	if (x->hot != y->hot && x->blocks && y->blocks)
		return x->hot ? -1 : 1;
	return x->blocks < y->blocks ? 1 : x->blocks > y->blocks ? -1 : 0;
}

static int compare_blocks(const void *a, const void *b)
{
	const struct ld_block *x = a, *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return x->pfn < y->pfn ? -1 : x->pfn > y->pfn;
}

/* The blocks of gigabytes that are not left alone anyway, or that hold many, come first. */
static int rank_blocks(struct ld_block *blocks, u32 nr)
{
	u32 n = (ld_max_pfn >> LD_GIB_ORDER) + 1, i;
	struct ld_gib *gibs = ld_zalloc(array_size(n, sizeof(*gibs)));
	u32 *rank = ld_zalloc(array_size(n, sizeof(*rank)));

	if (!gibs || !rank) {
		vfree(gibs);
		vfree(rank);
		return -ENOMEM;
	}
	for (i = 0; i < n; i++) {
		unsigned long first = (unsigned long)i << LD_GIB_ORDER;
		unsigned long end = min(first + BIT(LD_GIB_ORDER), ld_max_pfn);

		gibs[i].number = i;
		gibs[i].hot = first < end && find_next_bit(ld_hot, end, first) < end;
	}
	for (i = 0; i < nr; i++)
		gibs[blocks[i].pfn >> LD_GIB_ORDER].blocks++;
	sort(gibs, n, sizeof(*gibs), compare_gibs, NULL);
	for (i = 0; i < n; i++)
		rank[gibs[i].number] = i;
	for (i = 0; i < nr; i++)
		blocks[i].rank = rank[blocks[i].pfn >> LD_GIB_ORDER];
	sort(blocks, nr, sizeof(*blocks), compare_blocks, NULL);
	vfree(gibs);
	vfree(rank);
	return 0;
}

static void add_block(struct page *page, unsigned int order)
{
	unsigned int i;

	if (order)
		split_page(page, order);
	for (i = 0; i < BIT(order); i++)
		nr_added = add_page(page_address(page + i));
}

/* Up to want pages of one node, in large blocks that lie close together. */
static int add_packed(int nid, u64 want)
{
	u64 spare = bounded(U64_MAX), most;
	struct ld_block *blocks;
	u32 nr = 0, i;
	int err;

	/* Twice as many to choose from, if the machine can do without them for a moment. */
	most = min_t(u64, 2 * want, max(want, spare));
	if (want < BIT(LD_MAX_ORDER))
		return 0;
	blocks = ld_alloc(array_size((most >> LD_MAX_ORDER) + 1, sizeof(*blocks)));
	if (!blocks)
		return -ENOMEM;
	gather_blocks(nid, most, blocks, &nr);
	err = nr ? rank_blocks(blocks, nr) : 0;
	for (i = 0; i < nr; i++) {
		struct page *page = pfn_to_page(blocks[i].pfn);

		if (err || ((u64)(i + 1) << LD_MAX_ORDER) > want)
			__free_pages(page, LD_MAX_ORDER);
		else
			add_block(page, LD_MAX_ORDER);
	}
	vfree(blocks);
	return err;
}

/* What large blocks could not give, in smaller ones. */
static void add_scattered(int nid, u64 want)
{
	unsigned int order = LD_MAX_ORDER - 1;
	u64 got = 0;

	while (got < want && node_available(nid) > floors[nid]) {
		struct page *page;

		while (order && want - got < BIT(order))
			order--;
		page = alloc_pages_node(nid, RESERVE_GFP, order);
		if (page) {
			add_block(page, order);
			got += BIT(order);
		} else if (!order--) {
			return;
		}
		cond_resched();
	}
}

/* A node's share goes by its CPUs, for it is these that fault. */
static int add_node(int nid, u64 want, unsigned int *cpus_left)
{
	unsigned int cpus = nr_cpus_node(nid);
	u64 share = want - nr_added, before = nr_added;
	int err;

	if (!cpus)
		return 0;
	if (cpus < *cpus_left) {
		share = round_down(share * cpus / *cpus_left, BIT(LD_MAX_ORDER));
		*cpus_left -= cpus;
	}
	err = add_packed(nid, share);
	if (!err && nr_added - before < share)
		add_scattered(nid, share - (nr_added - before));
	return err;
}

/**
 * ld_blocks_add() - allocate pages, a share of them on each node that has CPUs
 * @want: how many
 * @add: takes a page; returns how many it has by now.  Called for no more than @want pages.
 *
 * Return: 0, also if there are fewer than @want; -ENOMEM if not even tables for the search
 * could be had.  What @add was given is the caller's in both cases.
 */
int ld_blocks_add(u64 want, u64 (*add)(void *page))
{
	unsigned int cpus_left = num_online_cpus();
	int nid, err;

	floors = kcalloc(nr_node_ids, sizeof(*floors), GFP_KERNEL);
	if (!floors)
		return -ENOMEM;
	for_each_online_node(nid)
		floors[nid] = node_available(nid) / 2;
	add_page = add;
	nr_added = 0;
	for_each_online_node(nid) {
		err = add_node(nid, want, &cpus_left);
		if (err)
			goto out;
	}
	/* What they could not give, from wherever it is. */
	for_each_online_node(nid)
		if (nr_added < want)
			add_scattered(nid, want - nr_added);
	err = 0;
out:
	kfree(floors);
	return err;
}

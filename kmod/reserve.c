// SPDX-License-Identifier: GPL-2.0-only
/*
 * The reserve: pages allocated before the stop that hold copies and page tables
 * while the machine is frozen.
 *
 * Slots are numbered.  Free slots form a stack whose head carries a tag that
 * grows with every change, so that a compare-and-exchange by a CPU that was
 * interrupted between reading the head and writing it fails even if the same slot is
 * on top again (ABA).  Taking and giving back a slot works from any context,
 * NMI included: no lock, and every step that another context can see is one
 * compare-and-exchange.
 *
 * Slots with a finished copy form a second stack until they are reported.  It is
 * only pushed one by one (from anywhere) and emptied as a whole, so it
 * needs no tag.
 *
 * Barriers: cmpxchg and xchg are full barriers.  next[slot] is written before the
 * cmpxchg that publishes the slot as head; whoever reads the slot from the head reads
 * next[slot] after it (address dependency).
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "livedump.h"

struct ld_slot {
	void *page;		/* direct-map address; NULL: given away for good */
	unsigned long pfn;	/* whose copy it holds, while queued */
	u32 next_free;
	u32 next_copy;
};

static struct ld_slot *slots;
static u32 nr_slots;
/* tag in the upper half, index of the top free slot in the lower */
static atomic64_t free_head;
static atomic_t copy_head;
static atomic_t nr_free, low_free;

#define LD_RESERVE_MIN_PAGES	2048U
#define LD_BLOCK_ORDER		9	/* whole 2 MiB entries stay writable for it */

static inline u64 head_pack(u32 tag, u32 slot)
{
	return ((u64)tag << 32) | slot;
}

u32 ld_reserve_get(void)
{
	for (;;) {
		u64 old = atomic64_read(&free_head);
		u32 slot = (u32)old;
		u32 next;

		if (slot == LD_NO_SLOT)
			return LD_NO_SLOT;
		next = READ_ONCE(slots[slot].next_free);
		if (atomic64_cmpxchg(&free_head, old,
				     head_pack((u32)(old >> 32) + 1, next)) == old) {
			int left = atomic_dec_return(&nr_free);
			int low = atomic_read(&low_free);

			while (left < low) {
				int was = atomic_cmpxchg(&low_free, low, left);

				if (was == low)
					break;
				low = was;
			}
			return slot;
		}
	}
}

void ld_reserve_put(u32 slot)
{
	for (;;) {
		u64 old = atomic64_read(&free_head);

		WRITE_ONCE(slots[slot].next_free, (u32)old);
		if (atomic64_cmpxchg(&free_head, old,
				     head_pack((u32)(old >> 32) + 1, slot)) == old)
			break;
	}
	atomic_inc(&nr_free);
}

void *ld_reserve_page(u32 slot)
{
	return slots[slot].page;
}

void ld_reserve_queue_copy(u32 slot, unsigned long pfn)
{
	WRITE_ONCE(slots[slot].pfn, pfn);
	for (;;) {
		int old = atomic_read(&copy_head);

		WRITE_ONCE(slots[slot].next_copy, (u32)old);
		if (atomic_cmpxchg(&copy_head, old, (int)slot) == old)
			return;
	}
}

/*
 * Copies that were taken off the stack as a whole and not handed out yet.
 * Only readers of the session come here; they may sleep, so a lock will do.
 */
static DEFINE_SPINLOCK(taken_lock);
static u32 taken = LD_NO_SLOT;

u32 ld_reserve_pop_copy(unsigned long *pfn)
{
	u32 slot;

	spin_lock(&taken_lock);
	if (taken == LD_NO_SLOT)
		taken = (u32)atomic_xchg(&copy_head, (int)LD_NO_SLOT);
	slot = taken;
	if (slot != LD_NO_SLOT) {
		taken = READ_ONCE(slots[slot].next_copy);
		*pfn = READ_ONCE(slots[slot].pfn);
	}
	spin_unlock(&taken_lock);
	return slot;
}

u64 ld_reserve_pages(void)
{
	return nr_slots;
}

u64 ld_reserve_low(void)
{
	return max(atomic_read(&low_free), 0);
}

u64 ld_reserve_free(void)
{
	return max(atomic_read(&nr_free), 0);
}

u64 ld_reserve_overhead(void)
{
	return (u64)nr_slots * sizeof(*slots);
}

/* Which slot a page frame is, by search: only the rare paths of thaw ask. */
u32 ld_reserve_slot_of(unsigned long pfn)
{
	u32 i;

	for (i = 0; i < nr_slots; i++)
		if (slots[i].page && __pa(slots[i].page) >> PAGE_SHIFT == pfn)
			return i;
	return LD_NO_SLOT;
}

/* The page has become part of the kernel's page tables and is not ours any more. */
void ld_reserve_give_away(unsigned long pfn)
{
	u32 slot = ld_reserve_slot_of(pfn);

	if (slot != LD_NO_SLOT)
		slots[slot].page = NULL;
}

static u64 default_limit(void)
{
	u64 avail = max(si_mem_available(), 0L);

	/* A sixteenth of RAM, but never more than a quarter of what is free. */
	return min_t(u64, ld_ram_pages / 16, avail / 4) << PAGE_SHIFT;
}

int ld_reserve_prepare(u64 limit_bytes)
{
	u64 want = (limit_bytes ? limit_bytes : default_limit()) >> PAGE_SHIFT;
	u64 avail = max(si_mem_available(), 0L);
	unsigned int order = LD_BLOCK_ORDER;
	u32 i;

	/* Leave the node at least half of what it has. */
	want = min_t(u64, want, avail / 2);
	want = min_t(u64, want, BIT(24) - 1);	/* what a state word can number */
	if (want < LD_RESERVE_MIN_PAGES) {
		pr_err("reserve: %llu pages are too few, at least %u are needed (%llu available)\n",
		       want, LD_RESERVE_MIN_PAGES, avail);
		return -ENOMEM;
	}

	slots = vzalloc(array_size(want, sizeof(*slots)));
	if (!slots)
		return -ENOMEM;
	ld_wp_add_own(slots, array_size(want, sizeof(*slots)));
	nr_slots = 0;
	while (nr_slots < want) {
		struct page *page;

		while (order && want - nr_slots < (1U << order))
			order--;
		page = alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, order);
		if (!page) {
			if (!order)
				break;
			order--;
			continue;
		}
		if (order)
			split_page(page, order);
		for (i = 0; i < (1U << order); i++)
			slots[nr_slots++].page = page_address(page + i);
		cond_resched();
	}
	if (nr_slots < LD_RESERVE_MIN_PAGES) {
		ld_reserve_release();
		return -ENOMEM;
	}
	for (i = 0; i < nr_slots; i++)
		slots[i].next_free = i + 1 < nr_slots ? i + 1 : LD_NO_SLOT;
	atomic64_set(&free_head, head_pack(0, 0));
	atomic_set(&copy_head, (int)LD_NO_SLOT);
	taken = LD_NO_SLOT;
	atomic_set(&nr_free, nr_slots);
	atomic_set(&low_free, nr_slots);
	for (i = 0; i < nr_slots; i++) {
		unsigned long pfn = __pa(slots[i].page) >> PAGE_SHIFT;

		set_bit(pfn, ld_hot);
		set_bit(pfn, ld_self);
	}
	return 0;
}

/* The tables are restored: no fault path uses the reserve any more. */
void ld_reserve_release(void)
{
	u32 i;

	if (!slots)
		return;
	for (i = 0; i < nr_slots; i++) {
		if (slots[i].page)
			free_page((unsigned long)slots[i].page);
		if (!(i % 1024))
			cond_resched();
	}
	vfree(slots);
	slots = NULL;
	nr_slots = 0;
}

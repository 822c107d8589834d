// SPDX-License-Identifier: GPL-2.0-only
/*
 * The reserve: pages allocated before the stop that hold copies and page tables
 * while the machine is frozen.
 *
 * Slots are numbered.  Every slot has a home, a stack of free slots to which it always
 * returns:
 *
 *	one per CPU	half of what its node has, shared out evenly
 *	one per node	the other half
 *	emergency	a part that only the way of the dump itself may draw on
 *	tables		what takes the place of leaves of 1 GiB
 *
 * A CPU takes from its own stack, then from its node's, then from other nodes' by
 * distance, and in the end from other CPUs': while a slot is free in any of these, nobody is
 * refused.  A slot is in exactly one place at any time, on a stack or in the hands of who took
 * it; slots are never moved between stacks in batches, for these would be out of reach while
 * an NMI or another CPU asks.
 *
 * The head of a stack carries a tag that grows with every change, so that a
 * compare-and-exchange by a CPU that was interrupted between reading the head and
 * writing it fails even if the same slot is on top again (ABA).  Taking and giving
 * back works from any context: no lock, and every step that another context can see is
 * one compare-and-exchange.  An NMI in the middle of ld_reserve_get() on the same CPU
 * changes the head, and the interrupted one tries again; one that moves to another CPU
 * only takes from a stack that is not its own any more.
 *
 * Slots with a finished copy form a stack of their own until they are reported.  It is
 * only pushed one by one (from anywhere) and emptied as a whole, so it
 * needs no tag.
 *
 * Barriers: cmpxchg and xchg are full barriers.  next[slot] is written before the
 * cmpxchg that publishes the slot as head; whoever reads the slot from the head reads
 * next[slot] after it (address dependency).  next[slot] may be stale when the slot has
 * been taken meanwhile, but it is always the number of a slot, and the tag then makes the
 * cmpxchg fail.  nr_free is raised before a slot is pushed and lowered after one was
 * popped, so it is never less than what the stacks hold: 0 means that a search would
 * find nothing.
 *
 * The emergency part
 * ------------------
 * When the rest is gone, pages are lost.  Not so those that the dump itself writes on its way
 * to the target, for what is left of the session depends on it:
 *
 *	the writer's processes (ld_reserve_mark_writer())	all of it
 *	interrupts, kernel threads, PF_MEMALLOC			to a quarter: completions
 *		and workers of the block layer can't be told from others of their kind
 *	tables							to a half: without one, up to
 *		512 pages are lost instead of none
 *
 * The bounds are looked at before a slot is taken, so CPUs that come at once may go below
 * them by one slot each.
 *
 * Tables in the place of leaves of 1 GiB
 * --------------------------------------
 * Without one 262,144 pages would be lost, by one fault and with interrupts off.  So each such leaf
 * has a slot that can be nothing else.  Who splits one, before the stop or in a fault,
 * takes from these first.
 *
 * A leaf that has been split keeps one slot until the end.  Any number of CPUs may be about
 * to split the same one: all but the first put theirs back, but others must not miss them
 * meanwhile.  A CPU can be at it twice, in a fault and in that of an NMI in the middle of
 * it.  With two for each CPU besides, there is always one left.
 *
 * Their number is that of PREPARE.  It can't grow: what memory is plugged in stays offline
 * until the end (guard.c), and nobody writes it.  (Since 6.15 the kernel may join again what it has
 * split.  A leaf that comes so after PREPARE takes the slot of another, or an ordinary one.)
 */
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "livedump.h"

struct ld_slot {
	void *page;		/* direct-map address; NULL: given away for good */
	unsigned long pfn;	/* whose copy it holds, while queued */
	u32 next_free;
	u32 next_copy;
	u32 home;		/* index of its stack */
};

struct ld_stack {
	atomic64_t head;	/* tag in the upper half, top slot in the lower */
} __aligned(SMP_CACHE_BYTES);

/* One allocation holds all that the fault path looks at. */
static void *memory;
static size_t memory_bytes;
static struct ld_slot *slots;
static struct ld_stack *stacks;
static u16 *node_of_cpu;	/* [nr_cpu_ids] */
static u16 *node_order;		/* [nr_node_ids][nr_node_ids], nearest first */
static u32 nr_slots, nr_emergency, nr_tables_1g;

static atomic_t nr_free, nr_free_emergency, nr_free_tables_1g, low_free;
static atomic_t copy_head;
static struct ld_reserve_layout layout;

#ifdef LIVEDUMP_TEST
static bool no_emergency;
module_param(no_emergency, bool, 0644);
MODULE_PARM_DESC(no_emergency, "Have no emergency part (tests only)");
static bool no_tables_1g;
module_param(no_tables_1g, bool, 0644);
MODULE_PARM_DESC(no_tables_1g, "Have no slots for tables in the place of 1 GiB leaves (tests only)");
#endif

#define MAX_WRITERS	8
static int writers[MAX_WRITERS];	/* thread group IDs */

#define EMERGENCY_MIN	128U
#define EMERGENCY_MAX	4096U

/* ---- stacks ---- */

static inline u64 head_pack(u32 tag, u32 slot)
{
	return ((u64)tag << 32) | slot;
}

static inline struct ld_stack *cpu_stack(unsigned int cpu)
{
	return &stacks[cpu];
}

static inline struct ld_stack *node_stack(unsigned int nid)
{
	return &stacks[nr_cpu_ids + nid];
}

static inline struct ld_stack *emergency_stack(void)
{
	return &stacks[nr_cpu_ids + nr_node_ids];
}

static inline struct ld_stack *tables_1g_stack(void)
{
	return &stacks[nr_cpu_ids + nr_node_ids + 1];
}

static inline u32 nr_stacks(void)
{
	return nr_cpu_ids + nr_node_ids + 2;
}

static u32 pop(struct ld_stack *st)
{
	u64 old = atomic64_read(&st->head);

	for (;;) {
		u32 slot = (u32)old;
		u64 was;

		if (slot == LD_NO_SLOT)
			return LD_NO_SLOT;
		was = atomic64_cmpxchg(&st->head, old,
				       head_pack((u32)(old >> 32) + 1,
						 READ_ONCE(slots[slot].next_free)));
		if (was == old)
			return slot;
		old = was;
	}
}

static void push(struct ld_stack *st, u32 slot)
{
	u64 old = atomic64_read(&st->head);

	for (;;) {
		u64 was;

		WRITE_ONCE(slots[slot].next_free, (u32)old);
		was = atomic64_cmpxchg(&st->head, old, head_pack((u32)(old >> 32) + 1, slot));
		if (was == old)
			return;
		old = was;
	}
}

static u32 pop_ordinary(void)
{
	unsigned int cpu = raw_smp_processor_id(), i;
	const u16 *order;
	u32 slot;

	if (!atomic_read(&nr_free))
		return LD_NO_SLOT;
	slot = pop(cpu_stack(cpu));
	if (slot != LD_NO_SLOT)
		return slot;
	order = node_order + node_of_cpu[cpu] * nr_node_ids;
	for (i = 0; i < nr_node_ids; i++) {
		slot = pop(node_stack(order[i]));
		if (slot != LD_NO_SLOT)
			return slot;
	}
	for (i = 0; i < nr_cpu_ids; i++) {
		slot = pop(cpu_stack(i));
		if (slot != LD_NO_SLOT)
			return slot;
	}
	return LD_NO_SLOT;
}

/* ---- who may draw on the emergency part ---- */

/* The calling process carries pages away: what it writes on that way is not lost. */
void ld_reserve_mark_writer(void)
{
	unsigned int i;

	for (i = 0; i < MAX_WRITERS; i++) {
		int was = READ_ONCE(writers[i]);

		if (!was)
			was = cmpxchg(&writers[i], 0, current->tgid);
		if (!was || was == current->tgid)
			return;
	}
}

/* Is this one of the processes that carry pages away? */
bool ld_reserve_is_writer(void)
{
	unsigned int i;

	if (!in_task())
		return false;
	for (i = 0; i < MAX_WRITERS; i++)
		if (READ_ONCE(writers[i]) == current->tgid)
			return true;
	return false;
}

/* Could this context be doing the writer's I/O for it? */
static bool may_be_io(void)
{
	return !in_task() || (current->flags & (PF_KTHREAD | PF_MEMALLOC));
}

static u32 pop_emergency(enum ld_use use)
{
	unsigned int left = max(atomic_read(&nr_free_emergency), 0);
	unsigned int bound = nr_emergency;
	u32 slot;

	if (use == LD_FOR_STOP)
		return LD_NO_SLOT;
	if (use == LD_FOR_TABLE || use == LD_FOR_TABLE_1G)
		bound = nr_emergency / 2;
	if (ld_reserve_is_writer())
		bound = 0;
	else if (may_be_io())
		bound = min(bound, nr_emergency / 4);
	if (left <= bound)
		return LD_NO_SLOT;
	slot = pop(emergency_stack());
	if (slot != LD_NO_SLOT) {
		atomic_dec(&nr_free_emergency);
		atomic64_inc(&ld_counters.emergency);
	}
	return slot;
}

static u32 pop_table_1g(void)
{
	u32 slot = pop(tables_1g_stack());

	if (slot != LD_NO_SLOT)
		atomic_dec(&nr_free_tables_1g);
	return slot;
}

/* ---- taking and giving back ---- */

static void note_low(int left)
{
	int low = atomic_read(&low_free);

	while (left < low) {
		int was = atomic_cmpxchg(&low_free, low, left);

		if (was == low)
			return;
		low = was;
	}
}

static int all_free(void)
{
	return atomic_read(&nr_free) + atomic_read(&nr_free_emergency) +
	       atomic_read(&nr_free_tables_1g);
}

u32 ld_reserve_get(enum ld_use use)
{
	u32 slot = use == LD_FOR_TABLE_1G ? pop_table_1g() : LD_NO_SLOT;

	if (slot == LD_NO_SLOT) {
		slot = pop_ordinary();
		if (slot != LD_NO_SLOT)
			atomic_dec(&nr_free);
		else
			slot = pop_emergency(use);
	}
	note_low(all_free());
	return slot;
}

void ld_reserve_put(u32 slot)
{
	struct ld_stack *home = &stacks[slots[slot].home];

	atomic_inc(home == emergency_stack() ? &nr_free_emergency :
		   home == tables_1g_stack() ? &nr_free_tables_1g : &nr_free);
	push(home, slot);
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
	return max(all_free(), 0);
}

u64 ld_reserve_overhead(void)
{
	return memory_bytes;
}

void ld_reserve_get_layout(struct ld_reserve_layout *l)
{
	*l = layout;
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

/* ---- set-up ---- */

static int alloc_memory(u64 want)
{
	size_t slot_bytes = ALIGN(array_size(want, sizeof(*slots)), SMP_CACHE_BYTES);
	size_t stack_bytes = nr_stacks() * sizeof(*stacks);
	size_t order_bytes = nr_node_ids * nr_node_ids * sizeof(*node_order);

	memory_bytes = slot_bytes + stack_bytes + order_bytes + nr_cpu_ids * sizeof(*node_of_cpu);
	memory = ld_zalloc(memory_bytes);
	if (!memory)
		return -ENOMEM;
	slots = memory;
	stacks = memory + slot_bytes;
	node_order = memory + slot_bytes + stack_bytes;
	node_of_cpu = memory + slot_bytes + stack_bytes + order_bytes;
	ld_wp_add_own(memory, memory_bytes);
	return 0;
}

static u64 add_slot(void *page)
{
	slots[nr_slots++].page = page;
	return nr_slots;
}

static void fill_orders(void)
{
	unsigned int cpu, from, i, j;

	for_each_possible_cpu(cpu) {
		int nid = cpu_to_node(cpu);

		node_of_cpu[cpu] = nid == NUMA_NO_NODE ? 0 : nid;
	}
	for (from = 0; from < nr_node_ids; from++) {
		u16 *order = node_order + from * nr_node_ids;

		/* By insertion: a handful of nodes, seldom more. */
		for (i = 0; i < nr_node_ids; i++) {
			for (j = i; j && node_distance(from, order[j - 1]) >
					node_distance(from, i); j--)
				order[j] = order[j - 1];
			order[j] = i;
		}
	}
}

/* How the ordinary slots of a node are shared out, one after the other. */
struct ld_sharing {
	u32 nr;			/* slots of the node */
	u32 share;		/* of each of its CPUs */
	u32 left;		/* of this CPU's share */
	unsigned int cpu;	/* the one whose turn it is; none is left: nr_cpu_ids */
};

static unsigned int next_online_cpu(int after, int nid)
{
	return cpumask_next_and(after, cpumask_of_node(nid), cpu_online_mask);
}

static void begin_sharing(struct ld_sharing *s, int nid)
{
	s->share = s->nr / 2 / max(nr_cpus_node(nid), 1U);
	s->left = s->share;
	s->cpu = s->share ? next_online_cpu(-1, nid) : nr_cpu_ids;
}

/* The home of the node's next slot. */
static u32 next_home(struct ld_sharing *s, int nid)
{
	if (s->cpu < nr_cpu_ids && !s->left) {
		s->cpu = next_online_cpu(s->cpu, nid);
		s->left = s->share;
	}
	if (s->cpu >= nr_cpu_ids)
		return nr_cpu_ids + nid;
	s->left--;
	return s->cpu;
}

static int fill_stacks(void)
{
	struct ld_sharing *nodes = kcalloc(nr_node_ids, sizeof(*nodes), GFP_KERNEL);
	u32 i, first;	/* of the ordinary slots */

	if (!nodes)
		return -ENOMEM;
	for (i = 0; i < nr_stacks(); i++)
		atomic64_set(&stacks[i].head, head_pack(0, LD_NO_SLOT));
	nr_emergency = clamp(nr_slots / 16, EMERGENCY_MIN, EMERGENCY_MAX);
#ifdef LIVEDUMP_TEST
	if (no_emergency)
		nr_emergency = 0;
#endif
	first = nr_emergency + nr_tables_1g;
	for (i = first; i < nr_slots; i++) {
		if (!(i % 4096))
			cond_resched();
		nodes[page_to_nid(virt_to_page(slots[i].page))].nr++;
	}
	for (i = 0; i < nr_node_ids; i++)
		if (nodes[i].nr)
			begin_sharing(&nodes[i], i);
	for (i = 0; i < nr_slots; i++) {
		int nid = page_to_nid(virt_to_page(slots[i].page));

		if (!(i % 4096))
			cond_resched();
		if (i < nr_emergency)
			slots[i].home = emergency_stack() - stacks;
		else if (i < first)
			slots[i].home = tables_1g_stack() - stacks;
		else
			slots[i].home = next_home(&nodes[nid], nid);
		push(&stacks[slots[i].home], i);
	}
	kfree(nodes);
	atomic_set(&nr_free_emergency, nr_emergency);
	atomic_set(&nr_free_tables_1g, nr_tables_1g);
	atomic_set(&nr_free, nr_slots - first);
	atomic_set(&low_free, nr_slots);
	atomic_set(&copy_head, (int)LD_NO_SLOT);
	taken = LD_NO_SLOT;
	return 0;
}

static void mark_pages(void)
{
	unsigned long gib = ULONG_MAX, leaf = ULONG_MAX;
	u32 i;

	memset(&layout, 0, sizeof(layout));
	for (i = 0; i < nr_slots; i++) {
		unsigned long pfn = __pa(slots[i].page) >> PAGE_SHIFT;

		if (!(i % 4096))
			cond_resched();
		/* They come in blocks, sorted within a node: neighbours follow each other. */
		layout.gigabytes += pfn >> LD_GIB_ORDER != gib;
		layout.leaves += pfn >> 9 != leaf;
		gib = pfn >> LD_GIB_ORDER;
		leaf = pfn >> 9;
		set_bit(pfn, ld_hot);
		set_bit(pfn, ld_self);
	}
	layout.emergency = nr_emergency;
	layout.tables_1g = nr_tables_1g;
}

unsigned int ld_reserve_tables_1g(void)
{
	unsigned int leaves = ld_wp_count_leaves_1g();

#ifdef LIVEDUMP_TEST
	if (no_tables_1g)
		return 0;
#endif
	return leaves ? leaves + 2 * num_possible_cpus() : 0;
}

/**
 * ld_reserve_prepare() - allocate the reserve
 * @pages: how many pages it should have, see ld_reserve_size()
 *
 * Context: process context; may sleep.
 * Return: 0; -ENOMEM if there are too few, and then nothing is kept.
 */
int ld_reserve_prepare(u64 pages)
{
	u32 least;
	int err;

	nr_tables_1g = ld_reserve_tables_1g();
	least = LD_RESERVE_MIN + nr_tables_1g;
	if (pages < least) {
		pr_err("reserve: %llu pages are too few, at least %u are needed (%llu available)\n",
		       pages, least, (u64)max(si_mem_available(), 0L));
		return -ENOMEM;
	}
	memset(writers, 0, sizeof(writers));
	nr_slots = 0;
	err = alloc_memory(pages);
	if (err)
		return err;
	fill_orders();
	err = ld_blocks_add(pages, add_slot);
	if (!err && nr_slots < least) {
		pr_err("reserve: only %u of %llu pages could be allocated\n", nr_slots, pages);
		err = -ENOMEM;
	}
	err = err ?: fill_stacks();
	if (err) {
		ld_reserve_release();
		return err;
	}
	mark_pages();
	return 0;
}

/* The tables are restored: no fault path uses the reserve any more. */
void ld_reserve_release(void)
{
	u32 i;

	if (!memory)
		return;
	for (i = 0; i < nr_slots; i++) {
		if (slots[i].page)
			free_page((unsigned long)slots[i].page);
		if (!(i % 1024))
			cond_resched();
	}
	vfree(memory);
	memory = NULL;
	slots = NULL;
	nr_slots = 0;
}

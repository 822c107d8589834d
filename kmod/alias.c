// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which virtual ranges exist and how each mapping of a page is covered:
 *
 *	direct map, vmemmap	protected (wrprotect.c)
 *	static per-CPU areas	stay writable; copied in the stop
 *	tables of the two	stay writable; copied in the stop
 *	idle tasks		stay writable: entering a fault from the idle loop
 *				writes the task itself; copied in the stop
 *	stacks of espfix	stay writable: the kernel writes them where a fault must not
 *				be, on its way out; copied in the stop
 *	kernel stacks		are written through the vmalloc area, and a fault on the
 *				stack is a double fault: the used part of every stack
 *				is copied in the stop, and nothing that has the shape of a
 *				stack is protected
 *	vmalloc, modules,	protected at their leaves, but for stacks, the boot
 *	kernel image		CPU's idle task and what the module itself writes
 *	tables of these		protected; of the image copied in the stop, of the others
 *				what we write is taken off where they are read
 *	CPU entry area, fixmap	per-CPU memory, as above, but for what outside.c finds
 *
 * What stays writable and is not copied in the stop is known by page frame
 * (ld_uncovered), reported with a flag and counted.
 *
 * "Hot" pages stay writable in the direct map: all that is written on the way from a
 * fault's first instruction to our probe, all that the probe writes, and what is written where
 * there must be no fault.
 */
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/irq_regs.h>
#include <asm/pgtable.h>
#include "compat.h"
#include "entry.h"

struct ld_va_range ld_direct_map, ld_vmemmap;
struct ld_va_range ld_vmalloc, ld_modules, ld_image;

/* Per-CPU areas end where reserved memory ends, and never later than this. */
#define PERCPU_MAX_PAGES	(SZ_4M >> PAGE_SHIFT)

struct ld_pfns {
	unsigned long first, end;
};

static struct ld_pfns percpu_area[NR_CPUS];
static struct ld_pfns idle_task_pages[NR_CPUS];
static struct ld_pfns boot_stack;	/* CPU 0's idle stack, in the kernel image */
/*
 * A CPU that a panic stops clears its bit in the mask of online CPUs and then lowers their
 * number: after the bit is clear no tracepoint helps it (guard.c).
 */
static struct ld_pfns online_count;
/*
 * To return to a 16-bit stack segment the kernel writes a frame to the CPU's piece of such a page, by
 * the direct map: on the entry stack, which is one page, and as in user mode already.
 */
static unsigned long espfix_pfns[DIV_ROUND_UP(NR_CPUS, 64)];
static unsigned int nr_espfix;
static unsigned long *stop_pfns;	/* copied by whoever comes first */
static unsigned long nr_stop_pfns, room_stop_pfns;
static atomic_t copy_error;

/* What the CPUs share among them in the stop is handed out in pieces of this size. */
#define SHARE_PIECE	4
static atomic_t pfns_taken, tasks_taken;	/* pieces */
static atomic_t stacks_taken;
static unsigned long running_stack[NR_CPUS];	/* of the task that a CPU was held in */

/*
 * The static per-CPU area of a CPU, in the direct map.  Its bounds are not
 * exported, but it was allocated at boot and what was not needed of it was freed, so
 * it is the stretch of reserved pages around one of its variables.
 */
static int find_percpu_area(int cpu, struct ld_pfns *area)
{
	unsigned long va = (unsigned long)per_cpu_ptr(&__irq_regs, cpu);
	unsigned long pfn = ld_va_to_pfn(va);
	unsigned long first, end, start, lowest = 0;

	if (pfn >= ld_max_pfn || va < ld_direct_map.start || va >= ld_direct_map.end ||
	    ld_pretend(LIVEDUMP_REFUSAL_LAYOUT)) {
		pr_err("the per-CPU area of CPU %d is not in the direct map\n", cpu);
		return ld_refuse(LIVEDUMP_REFUSAL_LAYOUT, -EOPNOTSUPP);
	}
	/* Where per-CPU symbols count from zero, the CPU's offset is the area's start. */
	start = per_cpu_offset(cpu);
	if (start >= ld_direct_map.start && start <= va && va - start < SZ_4M)
		lowest = __pa(start) >> PAGE_SHIFT;
	for (first = pfn; first > lowest && pfn - first < PERCPU_MAX_PAGES; first--)
		if (!ld_page_is_ram(first - 1) || !PageReserved(pfn_to_page(first - 1)))
			break;
	for (end = pfn + 1; end < ld_max_pfn && end - pfn < PERCPU_MAX_PAGES; end++)
		if (!ld_page_is_ram(end) || !PageReserved(pfn_to_page(end)))
			break;
	area->first = first;
	area->end = end;
	return 0;
}

static void mark_hot(const struct ld_pfns *p)
{
	unsigned long pfn;

	for (pfn = p->first; pfn < p->end; pfn++)
		set_bit(pfn, ld_hot);
}

/*
 * What a word of a per-CPU area points to may have been freed long ago, be no object at all, and
 * not be in the direct map any more: a task is several pages long, and any may be secret memory.
 */
static bool is_idle_task_of(unsigned long va, int cpu)
{
	const struct task_struct *t = (const struct task_struct *)va;
	char comm[TASK_COMM_LEN], name[TASK_COMM_LEN];
	unsigned int flags;
	pid_t pid;

	if (va < ld_direct_map.start || va >= ld_direct_map.end || va % L1_CACHE_BYTES)
		return false;
	if (ld_va_to_pfn(va) >= ld_max_pfn || ld_va_to_pfn(va + sizeof(*t) - 1) >= ld_max_pfn)
		return false;
	if (get_kernel_nofault(pid, &t->pid) || pid ||
	    get_kernel_nofault(flags, &t->flags) || !(flags & PF_IDLE) ||
	    copy_from_kernel_nofault(comm, t->comm, sizeof(comm)))
		return false;
	snprintf(name, sizeof(name), "swapper/%d", cpu);
	return !strncmp(comm, name, sizeof(comm));
}

/*
 * The idle task of a CPU is in no list of tasks, but the CPU's run queue, which is
 * in its static area, points to it.  (CPU 0's is the kernel image's init_task.)
 */
static int find_idle_task(int cpu)
{
	unsigned long pfn, va = 0;
	int i;

	for (pfn = percpu_area[cpu].first; pfn < percpu_area[cpu].end; pfn++) {
		unsigned long *word = __va((u64)pfn << PAGE_SHIFT);

		for (i = 0; i < PAGE_SIZE / sizeof(*word); i++) {
			va = READ_ONCE(word[i]);
			if (is_idle_task_of(va, cpu))
				goto found;
		}
	}
	if (!cpu) {
		va = (unsigned long)&init_task;
		pfn = ld_va_to_pfn(va);
		idle_task_pages[0].first = pfn;
		idle_task_pages[0].end = pfn + 1 +
			((va + sizeof(struct task_struct) - 1) >> PAGE_SHIFT) - (va >> PAGE_SHIFT);
		va = (unsigned long)task_stack_page(&init_task);
		boot_stack.first = ld_va_to_pfn(va);
		boot_stack.end = boot_stack.first + (THREAD_SIZE >> PAGE_SHIFT);
		mark_hot(&boot_stack);
		return 0;
	}
	pr_err("cannot find the idle task of CPU %d\n", cpu);
	return ld_refuse(LIVEDUMP_REFUSAL_LAYOUT, -EOPNOTSUPP);
found:
	idle_task_pages[cpu].first = __pa(va) >> PAGE_SHIFT;
	idle_task_pages[cpu].end = (__pa(va + sizeof(struct task_struct) - 1) >> PAGE_SHIFT) + 1;
	return 0;
}

static int add_espfix(unsigned long pfn)
{
	if (pfn >= ld_max_pfn || test_and_set_bit(pfn, ld_hot))
		return 0;
	if (nr_espfix == ARRAY_SIZE(espfix_pfns)) {
		pr_err("more pages of 16-bit stacks than CPUs\n");
		return ld_refuse(LIVEDUMP_REFUSAL_LAYOUT, -EOPNOTSUPP);
	}
	espfix_pfns[nr_espfix++] = pfn;
	return 0;
}

/* Each of these tables is in many entries in a row, and each page in many entries of a table. */
static int find_espfix(ld_entry *table, int level)
{
	ld_entry last = 0;
	int i, err = 0;

	for (i = 0; i < PT_ENTRIES && !err; i++) {
		ld_entry v = READ_ONCE(table[i]);

		if (!(v & _PAGE_PRESENT))
			continue;
		if (is_leaf(v, level)) {
			err = add_espfix(leaf_pfn(v, level));
		} else if ((v ^ last) & PTE_PFN_MASK) {
			err = find_espfix(child_table(v), level - 1);
			last = v;
		}
	}
	return err;
}

static int find_all_espfix(void)
{
	ld_entry *e = entry_in(top_table(), ESPFIX_BASE_ADDR, top_level());
	int level;

	nr_espfix = 0;
	for (level = top_level(); READ_ONCE(*e) & _PAGE_PRESENT; level--) {
		if (level_size(level) == P4D_SIZE)
			return find_espfix(child_table(READ_ONCE(*e)), level - 1);
		e = entry_in(child_table(READ_ONCE(*e)), ESPFIX_BASE_ADDR, level - 1);
	}
	return 0;	/* a kernel that knows no 16-bit segments */
}

int ld_alias_prepare(void)
{
	int cpu, err;

	if (!IS_ENABLED(CONFIG_VMAP_STACK) || ld_pretend(LIVEDUMP_REFUSAL_STACKS)) {
		pr_err("kernel stacks lie in the direct map (no CONFIG_VMAP_STACK)\n");
		return ld_refuse(LIVEDUMP_REFUSAL_STACKS, -EOPNOTSUPP);
	}
	ld_direct_map.start = PAGE_OFFSET;
	ld_direct_map.end = round_up((unsigned long)__va((u64)ld_max_pfn << PAGE_SHIFT),
				     PUD_SIZE);
	ld_vmemmap.start = round_down((unsigned long)pfn_to_page(0), PUD_SIZE);
	ld_vmemmap.end = round_up((unsigned long)pfn_to_page(ld_max_pfn), PUD_SIZE);
	ld_vmalloc.start = VMALLOC_START & PMD_MASK;
	ld_vmalloc.end = round_up(VMALLOC_END, PMD_SIZE);
	ld_image.start = __START_KERNEL_map;
	ld_image.end = MODULES_VADDR;
	ld_modules.start = MODULES_VADDR;
	ld_modules.end = MODULES_END;

	online_count.first = ld_va_to_pfn((unsigned long)&__num_online_cpus);
	online_count.end = online_count.first + 1;
	mark_hot(&online_count);
	err = find_all_espfix();
	if (err)
		return err;
	for_each_possible_cpu(cpu) {
		err = find_percpu_area(cpu, &percpu_area[cpu]);
		if (err)
			return err;
		mark_hot(&percpu_area[cpu]);
		err = find_idle_task(cpu);
		if (err)
			return err;
		mark_hot(&idle_task_pages[cpu]);
	}
	return 0;
}

static int add_stop_pfn(unsigned long pfn)
{
	if (nr_stop_pfns == room_stop_pfns) {
		unsigned long room = room_stop_pfns ? room_stop_pfns * 2 : 4096;
		unsigned long *n = ld_alloc(array_size(room, sizeof(*n)));

		if (!n)
			return -ENOMEM;
		if (nr_stop_pfns)
			memcpy(n, stop_pfns, nr_stop_pfns * sizeof(*n));
		vfree(stop_pfns);
		stop_pfns = n;
		room_stop_pfns = room;
	}
	stop_pfns[nr_stop_pfns++] = pfn;
	return 0;
}

static int add_stop_pfns(const struct ld_pfns *p)
{
	unsigned long pfn;
	int err = 0;

	for (pfn = p->first; pfn < p->end && !err; pfn++)
		err = add_stop_pfn(pfn);
	return err;
}

/* After the plan, for the plan may have added tables. */
int ld_alias_find_stop_copies(void)
{
	unsigned int i;
	int cpu, err;

	nr_stop_pfns = 0;
	atomic_set(&copy_error, 0);
	atomic_set(&pfns_taken, 0);
	atomic_set(&tasks_taken, 0);
	atomic_set(&stacks_taken, 0);
	memset(running_stack, 0, sizeof(running_stack));
	err = ld_wp_add_tables(add_stop_pfn);
	if (err)
		return err;
	err = add_stop_pfns(&boot_stack);
	if (err)
		return err;
	err = add_stop_pfns(&online_count);
	if (err)
		return err;
	for (i = 0; i < nr_espfix && !err; i++)
		err = add_stop_pfn(espfix_pfns[i]);
	if (err)
		return err;
	err = ld_dma_add_rings(add_stop_pfn);
	if (err)
		return err;
	for_each_possible_cpu(cpu) {
		err = add_stop_pfns(&idle_task_pages[cpu]);
		err = err ?: add_stop_pfns(&percpu_area[cpu]);
		if (err)
			return err;
	}
	return 0;
}

static int copy_pfn(unsigned long pfn)
{
	int err = ld_page_copy_in_stop(pfn);

	if (err)
		atomic_set(&copy_error, err);
	return err;
}

static int copy_va(unsigned long va, unsigned long end)
{
	for (va &= PAGE_MASK; va < end; va += PAGE_SIZE) {
		unsigned long pfn = ld_va_to_pfn(va);

		if (pfn < ld_max_pfn && copy_pfn(pfn))
			return -ENOSPC;
	}
	return 0;
}

/* On every CPU, when it is held. */
void ld_alias_arrive(int cpu)
{
	running_stack[cpu] = (unsigned long)task_stack_page(current);
}

/*
 * The whole stacks of what the CPUs were at, idle tasks and dying ones too, that no list
 * has.  Whose CPU waits on its stack meanwhile, writes below what it was interrupted in.
 */
static int copy_running_stacks(void)
{
	int cpu;

	while ((cpu = atomic_inc_return(&stacks_taken) - 1) < nr_cpu_ids) {
		unsigned long stack = running_stack[cpu];

		if (stack && copy_va(stack, stack + THREAD_SIZE))
			return -ENOSPC;
	}
	return 0;
}

/* A share of page tables, per-CPU areas and idle tasks. */
static int copy_pfns(void)
{
	for (;;) {
		unsigned long i = (unsigned long)(atomic_inc_return(&pfns_taken) - 1) * SHARE_PIECE;
		unsigned long end = min(i + SHARE_PIECE, nr_stop_pfns);

		if (i >= nr_stop_pfns)
			return 0;
		for (; i < end; i++)
			if (copy_pfn(stop_pfns[i]))
				return -ENOSPC;
	}
}

static int copy_task_stack(struct task_struct *t)
{
	unsigned long stack = (unsigned long)READ_ONCE(t->stack);
	unsigned long sp = READ_ONCE(t->thread.sp);

	if (!stack || READ_ONCE(t->on_cpu))
		return 0;	/* see copy_running_stacks() */
	if (sp < stack || sp >= stack + THREAD_SIZE)
		sp = stack;
	return copy_va(sp, stack + THREAD_SIZE);
}

/*
 * A share of the stacks of sleeping tasks.  Every CPU walks the whole list, which costs
 * little beside the copies, and copies the pieces that it has taken.  No lock for the
 * list: no CPU is anywhere but in the stop, and a list that is read under
 * RCU is whole at every instant.
 */
static int copy_stacks(void)
{
	int mine = atomic_inc_return(&tasks_taken) - 1, i = 0;
	struct task_struct *g, *t;

	for_each_process_thread(g, t) {
		int piece = i++ / SHARE_PIECE;

		if (piece > mine)
			mine = atomic_inc_return(&tasks_taken) - 1;
		if (piece == mine && copy_task_stack(t))
			return -ENOSPC;
	}
	return 0;
}

/* In the stop, on several CPUs.  The leader asks for the error. */
void ld_alias_copy(void)
{
	if (copy_pfns() || copy_running_stacks())
		return;
	copy_stacks();
}

int ld_alias_copy_error(void)
{
	return atomic_read(&copy_error);
}

void ld_alias_release(void)
{
	vfree(stop_pfns);
	stop_pfns = NULL;
	nr_stop_pfns = 0;
	room_stop_pfns = 0;
}

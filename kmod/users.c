// SPDX-License-Identifier: GPL-2.0-only
/*
 * The address spaces of processes as of the stop: which pages were their page tables, and
 * which they could write.
 *
 * The processor sets Accessed and Dirty bits in page tables without a fault, so a
 * page table is reported as one.  And what a process can write through a mapping of its
 * own is not covered by the kernel's mappings: rings that drivers share with
 * programs look like any page of the kernel otherwise.
 *
 * Tasks, address spaces and tables are read after the stop, as of the stop, which costs the
 * stop nothing and needs no lock.  The list of tasks is read under RCU by everybody, so its
 * next pointers are whole at every instant.
 *
 * While it is at a task, it has its stack looked at for pages in flight (inflight.c).
 *
 * Not seen: address spaces that no task had (those of EFI and of text patching).
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/threads.h>
#include <linux/vmalloc.h>
#include <asm/cpufeature.h>
#include "compat.h"
#include "entry.h"

#define TOP_LEVELS	5

/* A table of each level as of the stop, while its children are looked at. */
static ld_entry (*tables)[PT_ENTRIES];
static unsigned long threads_left;

static bool read_word(unsigned long va, unsigned long *v)
{
	return ld_read_as_of_stop(v, va, sizeof(*v));
}

static void mark_writable(ld_entry v, int level)
{
	unsigned long pfn = leaf_pfn(v, level);
	unsigned long end = pfn + (level_size(level) >> PAGE_SHIFT);

	for (; pfn < end; pfn++)
		if (ld_page_is_ram(pfn))
			set_bit(pfn, ld_uncovered);	/* faults set bits next to it */
}

static void walk_table(unsigned long pfn, int level)
{
	ld_entry *table = tables[level - 1];
	int i, n = level == top_level() ? PT_ENTRIES / 2 : PT_ENTRIES;

	/* Tables can be shared; and a loop, where nothing is a table, would end here too. */
	if (!ld_page_is_ram(pfn) || __test_and_set_bit(pfn, ld_tables))
		return;
	if (!ld_read_as_of_stop(table, (unsigned long)__va((u64)pfn << PAGE_SHIFT), PAGE_SIZE))
		return;
	for (i = 0; i < n; i++) {
		ld_entry v = table[i];

		if (!(v & _PAGE_PRESENT))
			continue;
		if (!is_leaf(v, level))
			walk_table((v & PTE_PFN_MASK) >> PAGE_SHIFT, level - 1);
		else if (v & _PAGE_RW)
			mark_writable(v, level);
	}
	cond_resched();
}

static void look_at_mm(unsigned long mm)
{
	unsigned long pgd, pfn;

	if (!mm || !read_word(mm + offsetof(struct mm_struct, pgd), &pgd))
		return;
	pfn = ld_va_to_pfn(pgd);
	walk_table(pfn, top_level());
	/* With isolation the processor uses the second page in user mode: the same tables. */
	if (boot_cpu_has(X86_FEATURE_PTI) && ld_page_is_ram(pfn + 1))
		__set_bit(pfn + 1, ld_tables);
}

static void look_at_thread(unsigned long task)
{
	unsigned long mm;

	if (read_word(task + offsetof(struct task_struct, mm), &mm))
		look_at_mm(mm);
	ld_in_flight_look_at(task);
	/* A kernel thread goes on with the tables of whoever ran before it. */
	if (read_word(task + offsetof(struct task_struct, active_mm), &mm))
		look_at_mm(mm);
}

static void look_at_process(unsigned long task)
{
	unsigned long signal, head, node;

	look_at_thread(task);
	if (!read_word(task + offsetof(struct task_struct, signal), &signal) || !signal)
		return;
	head = signal + offsetof(struct signal_struct, thread_head);
	for (node = head; threads_left; threads_left--) {
		if (!read_word(node + offsetof(struct list_head, next), &node) || node == head)
			return;
		look_at_thread(node - offsetof(struct task_struct, thread_node));
	}
}

/* After the stop, before pages are classified. */
void ld_users_mark(void)
{
	const unsigned long head = (unsigned long)&init_task.tasks;
	unsigned long node = head;

	ld_in_flight_look_at_cpus();
	threads_left = PID_MAX_LIMIT;
	do {
		look_at_process(node - offsetof(struct task_struct, tasks));
		if (!read_word(node + offsetof(struct list_head, next), &node))
			break;
	} while (node != head && threads_left);
}

int ld_users_prepare(void)
{
	tables = ld_alloc(TOP_LEVELS * sizeof(*tables));
	if (!tables)
		return -ENOMEM;
	ld_wp_add_own(tables, TOP_LEVELS * sizeof(*tables));
	return 0;
}

void ld_users_release(void)
{
	vfree(tables);
	tables = NULL;
}

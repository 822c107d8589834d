// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages in flight: on their way from the page allocator to a process or a file, filled
 * already but not yet said to be up to date, in no list, in no address space.  They look like
 * any page of the kernel.  But the next who writes them is the process, through a mapping of its
 * own, and no fault of ours tells.  In a control group at its limit a page stays
 * in this state for as long as others have to be taken back for it.
 *
 * Only the task that brings a page knows of it: the address of its struct page is in a
 * register or on the stack of that task, for it is needed yet to give the page its owner.  So
 * every word of the stacks as of the stop that may be such an address is taken for one,
 * and the page is reported as uncovered.  That costs the stop nothing, and some pages of the
 * kernel are called uncovered that are not.
 *
 * Where registers are: an interrupt puts them on the stack of the task that it interrupts, so
 * does the scheduler; those of a CPU that an NMI has held are on the NMI's stack, and we have
 * kept them (notes.c).
 */
#include <linux/mm.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include "compat.h"
#include "livedump.h"

#define CHUNK	64	/* words that are read at a time; divides a page */

static void look_at_words(const unsigned long *words, unsigned int n)
{
	const unsigned long first = (unsigned long)pfn_to_page(0);
	const unsigned long end = (unsigned long)pfn_to_page(ld_max_pfn);
	unsigned int i;

	if (ld_truth_skips("inflight"))
		return;
	for (i = 0; i < n; i++)
		/* Perhaps of a member: lists link such. */
		if (words[i] >= first && words[i] < end)
			ld_page_in_flight((words[i] - first) / sizeof(struct page));
}

/* By page frame as of the stop: the task may be gone by now, and its stack with it. */
static void look_at_stack(unsigned long va, unsigned long end)
{
	unsigned long words[CHUNK];

	for (va = round_down(va, sizeof(words)); va < end; va += sizeof(words)) {
		unsigned long pfn = ld_va_to_pfn_as_of_stop(va);

		if (pfn < ld_max_pfn &&
		    ld_read_as_of_stop(words, (unsigned long)__va((u64)pfn << PAGE_SHIFT) +
				       offset_in_page(va), sizeof(words)))
			look_at_words(words, CHUNK);
	}
}

#define read_member(to, task, member) \
	ld_read_as_of_stop(&(to), (task) + offsetof(struct task_struct, member), sizeof(to))

void ld_in_flight_look_at(unsigned long task)
{
	unsigned long stack, sp;
	int on_cpu;

	if (!read_member(stack, task, stack) || !read_member(sp, task, thread.sp) ||
	    !read_member(on_cpu, task, on_cpu) || !stack)
		return;
	/* Where a running task is on its stack is nowhere noted. */
	if (on_cpu || sp < stack || sp >= stack + THREAD_SIZE)
		sp = stack;
	look_at_stack(sp, stack + THREAD_SIZE);
}

void ld_in_flight_look_at_cpus(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		look_at_words((const unsigned long *)ld_notes_regs(cpu),
			      sizeof(struct pt_regs) / sizeof(unsigned long));
}

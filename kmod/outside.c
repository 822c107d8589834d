// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel maps outside the ranges that are protected, as of the stop: the CPU entry
 * area above all, and the fixmap.
 *
 * Of the entry area most is static per-CPU memory, which is copied in the stop.  But while
 * somebody counts events with Intel's PEBS or records branches, the processor itself writes
 * buffers there, whose pages look like any page of the kernel and are protected in
 * the direct map only.  So every page of RAM that is writable there is flagged, unless it
 * was copied in the stop.
 *
 * A buffer that is mapped there after the stop was cleared before, through the direct map: it was
 * saved then.
 *
 * Left out: KASAN's shadow (shadow.c) and the stacks of espfix, mapped read-only a thousand times
 * over (alias.c).
 */
#ifdef CONFIG_KASAN
#include <linux/kasan.h>
#endif
#include <linux/sched.h>
#include "compat.h"
#include "entry.h"

static bool looked_at_elsewhere(unsigned long va, int level)
{
	const struct ld_va_range espfix = { ESPFIX_BASE_ADDR, ESPFIX_BASE_ADDR + P4D_SIZE };
#ifdef CONFIG_KASAN
	/* The kernel fills the whole entry of the top level in which the shadow begins. */
	const struct ld_va_range shadow = {
		round_down(KASAN_SHADOW_START, level_size(top_level())), KASAN_SHADOW_END
	};
#endif
	const struct ld_va_range *r[] = {
		&ld_direct_map, &ld_vmemmap, &ld_vmalloc, &ld_modules, &ld_image, &espfix,
#ifdef CONFIG_KASAN
		&shadow,
#endif
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(r); i++)
		if (va >= r[i]->start && va + level_size(level) - 1 <= r[i]->end - 1)
			return true;
	return false;
}

static void flag(ld_entry v, int level)
{
	unsigned long pfn = leaf_pfn(v, level);
	unsigned long end = pfn + (level_size(level) >> PAGE_SHIFT);

	for (; pfn < end; pfn++)
		if (ld_page_is_ram(pfn) && !test_bit(pfn, ld_hot))
			set_bit(pfn, ld_uncovered);
}

static void look_at_table(ld_entry *table, int level, unsigned long base)
{
	int i;

	for (i = level == top_level() ? PT_ENTRIES / 2 : 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (looked_at_elsewhere(va, level) ||
		    !ld_read_as_of_stop(&v, (unsigned long)&table[i], sizeof(v)) ||
		    !(v & _PAGE_PRESENT))
			continue;
		if (!is_leaf(v, level))
			look_at_table(child_table(v), level - 1, va);
		else if (v & _PAGE_RW)
			flag(v, level);
	}
	cond_resched();
}

/* After the stop, before pages are classified. */
void ld_outside_mark(void)
{
	if (!ld_truth_skips("outside"))
		look_at_table(top_table(), top_level(), top_base());
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * KASAN's shadow, in kernels that have it: an eighth of all memory, written by nearly
 * every function through mappings that are not protected.  Its pages are RAM like any other
 * and are in the dump, but as they are when they are read: they are marked as uncovered.
 *
 * Only the shadow of what is mapped has pages of its own; all else shares one page that
 * nobody writes, through tables that are shared as well and are not walked.
 *
 * They are looked for in the stop: the kernel poisons the shadow of what it frees in the vmalloc
 * area, and then gives the shadow's pages back, whose mappings are gone by the time the stop is
 * over.  And once more after it, for a page that a task had in hand at the stop, to map it there.
 * Not noticed is one that such a task, preempted, maps later still.
 */
#include <linux/kasan.h>
#include <linux/mm.h>
#include <asm/kasan.h>
#include "compat.h"
#include "entry.h"

static unsigned long shadow_of(unsigned long va)
{
	return (va >> KASAN_SHADOW_SCALE_SHIFT) + KASAN_SHADOW_OFFSET;
}

static void uncover(ld_entry *e, ld_entry v, int level, unsigned long va, void *arg)
{
	unsigned long pfn = leaf_pfn(v, level);
	unsigned long end = pfn + (level_size(level) >> PAGE_SHIFT);

	for (; v & _PAGE_RW && pfn < end && ld_page_is_ram(pfn); pfn++)
		ld_page_uncover(pfn);
}

/* In the stop, when what it copies is copied, and after it, before pages are counted. */
void ld_shadow_mark(void)
{
	const struct ld_va_range *r[] = { &ld_direct_map, &ld_vmalloc, &ld_modules, &ld_image };
	int i;

	for (i = 0; i < ARRAY_SIZE(r); i++) {
		struct ld_va_range shadow = {
			.start	= round_down(shadow_of(r[i]->start), PAGE_SIZE),
			.end	= round_up(shadow_of(r[i]->end - 1) + 1, PAGE_SIZE),
		};

		ld_for_each_leaf(&shadow, uncover, NULL);
	}
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The eager method, in test builds only, to compare with: all huge leaves of the direct map and
 * vmemmap are split beforehand, and the stop looks up every 4 KiB entry from the top and changes
 * it, on one CPU, as the systems of 2012 and 2023 do.  It is kinder than the second, which looks
 * each up twice.  Everything else (rendezvous, copies, the other ranges, restoring) is as it is
 * by level.
 *
 *	echo eager >/sys/module/livedump/parameters/method
 */
#include <linux/moduleparam.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include "compat.h"
#include "entry.h"

static bool eager;
static bool planned;	/* the present plan is an eager one */
static atomic_t taken;

static int set_method(const char *value, const struct kernel_param *kp)
{
	if (sysfs_streq(value, "eager"))
		eager = true;
	else if (sysfs_streq(value, "level"))
		eager = false;
	else
		return -EINVAL;
	return 0;
}

static int get_method(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", eager ? "eager" : "level");
}

static const struct kernel_param_ops method_ops = { .set = set_method, .get = get_method };
module_param_cb(method, &method_ops, NULL, 0644);
MODULE_PARM_DESC(method, "How memory is protected in the stop: level (default) or eager");

bool ld_eager(void)
{
	return planned;
}

/* The tables stay out of the dump and so are not copied: theirs was no part of the stop. */
static int split_table(const struct ld_va_range *r, ld_entry *table, int level,
		       unsigned long base, bool *split)
{
	int i, err;
	u32 slot;

	for (i = 0; i < PT_ENTRIES; i++) {
		unsigned long va = base + i * level_size(level);
		ld_entry v;

		if (!entry_touches(r, va, level))
			continue;
		while ((v = READ_ONCE(table[i])) & _PAGE_PRESENT && is_leaf(v, level)) {
			if (!ld_split_leaf(&table[i], v, level, &slot)) {
				pr_err("the reserve is too small to split everything\n");
				return -ENOSPC;
			}
			*split = true;
		}
		if (!(v & _PAGE_PRESENT) || level == LEVEL_PMD)
			continue;
		err = split_table(r, child_table(v), level - 1, va, split);
		if (err)
			return err;
		cond_resched();
	}
	return 0;
}

/* Instead of the plan by level. */
int ld_eager_plan(bool *split)
{
	int err;

	planned = eager;
	atomic_set(&taken, 0);
	if (!planned)
		return 0;
	err = split_table(&ld_direct_map, top_table(), top_level(), top_base(), split);
	return err ?: split_table(&ld_vmemmap, top_table(), top_level(), top_base(), split);
}

/* Is a table that was split for the eager method, and not the kernel's? */
bool ld_eager_owns(unsigned long pfn)
{
	return planned && pfn < ld_max_pfn && test_bit(pfn, ld_self);
}

static u64 protect_range(const struct ld_va_range *r)
{
	unsigned long va, next;
	u64 changed = 0;

	for (va = r->start; va < r->end; va = next) {
		int level;
		ld_entry v, *e = ld_walk(va, &level, &v);

		next = (va | (level_size(level) - 1)) + 1;
		if (!(v & _PAGE_PRESENT) || level > LEVEL_PTE)
			continue;
		if (r == &ld_direct_map) {
			unsigned long pfn = leaf_pfn(v, LEVEL_PTE);

			if (pfn < ld_max_pfn && test_bit(pfn, ld_hot))
				continue;
		}
		changed += protect_entry(e, LEVEL_PTE);
	}
	return changed;
}

/* In the stop: all of it, by the first CPU that comes.  Returns how many entries it changed. */
u64 ld_eager_protect(void)
{
	u64 changed;

	if (atomic_xchg(&taken, 1))
		return 0;
	changed = protect_range(&ld_direct_map);
	return changed + protect_range(&ld_vmemmap);
}

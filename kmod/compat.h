/* SPDX-License-Identifier: GPL-2.0-only */
/* Differences between kernel series, in one place. */
#ifndef _LIVEDUMP_COMPAT_H
#define _LIVEDUMP_COMPAT_H

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mmzone.h>
#include <linux/page-flags.h>
#include <linux/smp.h>
#include <linux/version.h>

/* The largest order of a free block (5.10 to 6.3 count one past it, under another name). */
#if defined(NR_PAGE_ORDERS)
# define LD_MAX_ORDER	MAX_PAGE_ORDER
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
# define LD_MAX_ORDER	MAX_ORDER
#else
# define LD_MAX_ORDER	(MAX_ORDER - 1)
#endif

/* A slab page is told by a flag (to 6.10) or by the page type. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
# define ld_snap_is_slab(p)	test_bit(PG_slab, &(p)->flags)
#else
# define ld_snap_is_slab(p)	PageSlab(p)
#endif

/* A hugetlb page is told by its destructor, kept in the first tail page, or by a page type. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
# define LD_HUGETLB_BY_DTOR	1
#endif

/* Where NT_PRSTATUS keeps the pid (a nested struct since 5.12). */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 12, 0)
# define ld_prstatus_pid(ps)	((ps)->common.pr_pid)
#else
# define ld_prstatus_pid(ps)	((ps)->pr_pid)
#endif

/* Where this module's own text and data lie (one stretch to 6.3). */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
# define ld_for_each_module_part(add) \
	do { \
		for_each_mod_mem_type(type) \
			(add)(THIS_MODULE->mem[type].base, THIS_MODULE->mem[type].size); \
	} while (0)
#else
# define ld_for_each_module_part(add) \
	(add)(THIS_MODULE->core_layout.base, THIS_MODULE->core_layout.size)
#endif

#endif /* _LIVEDUMP_COMPAT_H */

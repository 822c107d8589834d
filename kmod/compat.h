/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between kernel series, in one place.
 *
 * By what the headers have, not by version: distributions move features between series.  What
 * the preprocessor cannot see, Kbuild looks for in the kernel's headers and defines LD_HAS_*.
 */
#ifndef _LIVEDUMP_COMPAT_H
#define _LIVEDUMP_COMPAT_H

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/poison.h>

/* The largest order of a free block (MAX_ORDER is that, or one past it, or has another name). */
#define LD_MAX_ORDER	ilog2(MAX_ORDER_NR_PAGES)

/* The flags are a word, or a structure that holds nothing else. */
static_assert(sizeof_field(struct page, flags) == sizeof(unsigned long));
#define ld_page_flags(p)	((const unsigned long *)&(p)->flags)

/* In page->mapping: an anonymous page. */
#ifdef PAGE_MAPPING_ANON
# define LD_MAPPING_ANON	PAGE_MAPPING_ANON
#else
# define LD_MAPPING_ANON	FOLIO_MAPPING_ANON
#endif

/*
 * What follows judges copies of struct pages, which lie anywhere: the kernel's own functions
 * may go from a page to its head or neighbour by its address.
 *
 * Bit 0 of the first word after the flags tells a tail.
 */
static inline unsigned long ld_tail_word(const struct page *copy)
{
	return *(const unsigned long *)&copy->lru;
}

static inline bool ld_is_tail(const struct page *copy)
{
	return ld_tail_word(copy) & 1;
}

/*
 * The head of a tail page.  page: where the copy is from; copy: its content.  The word has the
 * head's address, or a mask that makes it from the tail's.
 */
static inline const struct page *ld_head_of_tail(const struct page *page, const struct page *copy)
{
	unsigned long word = ld_tail_word(copy) & ~1UL;

#ifdef LD_HAS_TAIL_MASK
	if (compound_info_has_mask())
		return (const struct page *)((unsigned long)page & word);
#endif
	return (const struct page *)word;
}

/* A slab page is told by a flag or, since 6.11, by the page type. */
static inline bool ld_is_slab(const struct page *head)
{
#ifdef LD_HAS_SLAB_TYPE
	return folio_test_slab((const struct folio *)head);
#else
	return test_bit(PG_slab, ld_page_flags(head));
#endif
}

/* A hugetlb page is told by what its head's first tail holds or, since 6.9, by the page type. */
#ifdef LD_HAS_HUGETLB_TYPE
static inline bool ld_is_hugetlb(const struct page *head, const struct page *first_tail)
{
	return folio_test_hugetlb((const struct folio *)head);
}
#else
# define LD_HUGETLB_BY_TAIL	1
static inline bool ld_is_hugetlb(const struct page *head, const struct page *first_tail)
{
#if defined(LD_HAS_HUGETLB_FLAG)
	return test_bit(PG_hugetlb, ld_page_flags(first_tail));
#elif defined(LD_HAS_PAGE_DTOR)
	return first_tail->compound_dtor == HUGETLB_PAGE_DTOR;
#else
	return *((const u8 *)first_tail + offsetof(struct folio, _folio_dtor) -
		 sizeof(struct page)) == HUGETLB_PAGE_DTOR;
#endif
}
#endif

/* A buffer of a network driver's page pool (since 5.14); of a compound one its head tells. */
static inline bool ld_is_page_pool(const struct page *head)
{
#if !defined(PP_SIGNATURE)
	return false;
#elif defined(PP_MAGIC_MASK)
	return (head->pp_magic & PP_MAGIC_MASK) == PP_SIGNATURE;
#else
	return (head->pp_magic & ~0x3UL) == PP_SIGNATURE;
#endif
}

/* Where NT_PRSTATUS keeps the pid (a nested struct since 5.12). */
#ifdef LD_HAS_PRSTATUS_COMMON
# define ld_prstatus_pid(ps)	((ps)->common.pr_pid)
#else
# define ld_prstatus_pid(ps)	((ps)->pr_pid)
#endif

/*
 * The page allocator's per-CPU lists: of a zone and CPU, and the order of the blocks on a list
 * (one list for each type to 5.12, then for each order and type, and those of huge pages last).
 */
#ifdef LD_HAS_PAGESET
# define ld_zone_pcp(z, cpu)	(&per_cpu_ptr((z)->pageset, cpu)->pcp)
#else
# define ld_zone_pcp(z, cpu)	per_cpu_ptr((z)->per_cpu_pageset, cpu)
#endif

static inline unsigned int ld_pcp_order(unsigned int list)
{
#ifdef NR_PCP_LISTS
	return list < NR_LOWORDER_PCP_LISTS ? list / MIGRATE_PCPTYPES : HPAGE_PMD_ORDER;
#else
	return 0;
#endif
}

/* __text_poke() has the way of writing as its first argument since it can fill as well. */
#ifdef LD_HAS_TEXT_POKE_SET
# define LD_PATCH_HAS_HOW	1
#else
# define LD_PATCH_HAS_HOW	0
#endif

/* Can the kernel map struct pages of huge pages anew, to give away what it needs no more? */
#if defined(CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP) || defined(CONFIG_HUGETLB_PAGE_FREE_VMEMMAP)
# define LD_REMAPS_VMEMMAP	1
#else
# define LD_REMAPS_VMEMMAP	0
#endif

/*
 * What a driver's mmap_prepare() asks to be mapped is mapped by functions of their own: of a range
 * with the arguments of remap_pfn_range() from 6.18, with a struct mmap_action since 7.1
 * (LD_HAS_REMAP_ACTION); of pages with that in any case, where there is such (LD_HAS_MAP_ACTION).
 */

/* PREEMPT_RT's headers tell sparse that spin_trylock() takes a lock, but not of its end. */
#ifdef CONFIG_PREEMPT_RT
# define ld_spin_unlock_tried(l) \
	do { \
		spin_unlock(l); \
		__release(l); \
	} while (0)
#else
# define ld_spin_unlock_tried(l) spin_unlock(l)
#endif

/* Where this module's own text and data lie (one stretch to 6.3). */
#ifdef for_each_mod_mem_type
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

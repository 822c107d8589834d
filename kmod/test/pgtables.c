// SPDX-License-Identifier: GPL-2.0-only
/*
 * livedump_pgtables - the kernel half of the page tables, as text
 *
 * Test-only.  Distribution kernels have CONFIG_PTDUMP_DEBUGFS off, and a session
 * must leave the page tables bit for bit as they were, so the tests need a dump
 * of their own.  <debugfs>/livedump_pgtables has one line for every present
 * entry from the top level down, in order of address:
 *
 *	direct ffff888000000000 pmd table 0000000000000063 pa 0000000001a01000
 *	direct ffff888000200000 pmd leaf 8000000000000163 pa 0000000000200000 n 511
 *
 * that is: region, virtual address, level, kind, flags in hex, physical address,
 * and for leaves how many entries in a row of the same table have the same flags
 * and consecutive physical addresses.  The Accessed bit of every entry and the
 * Dirty bit of leaves are shown as zero: the hardware sets them by itself.
 * The bits of a table entry that the hardware ignores are shown: marks left behind
 * by a session are a difference.
 *
 * Only exported symbols are used: the walk starts from CR3, and __va() stands on
 * page_offset_base.  Tables may be freed while they are read (vmalloc's, mostly);
 * entries are therefore read with fault handling, and a line may be of a table
 * that is gone by the time the line is printed.
 *
 * Two ranges are left out that show a few pages over and over, and that no session changes: the
 * shadow that KASAN has of all addresses, terabytes of which share a few tables, and the stacks of
 * ESPFIX, each mapped 65536 times.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bits.h>
#include <linux/debugfs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#ifdef CONFIG_KASAN
#include <linux/kasan.h>
#endif

#include <asm/page.h>
#include <asm/pgtable.h>
#include <asm/special_insns.h>

#define TABLE_SHIFT	9
#define ENTRIES		512
#define PA_MASK		GENMASK_ULL(51, 12)
#define KERNEL_HALF_L4	0xffff800000000000ULL
#define KERNEL_HALF_L5	0xff00000000000000ULL

/* Levels count up from the leaf tables. */
enum { LEVEL_PTE, LEVEL_PMD, LEVEL_PUD, LEVEL_P4D, LEVEL_PGD };
static const char *const level_names[] = { "pte", "pmd", "pud", "p4d", "pgd" };

/*
 * One reader's place: the next entry to look at is the one of this level that
 * covers va.  An address of zero is the end: the walk wrapped around.
 */
struct walk {
	u64 va;
	int level;
	int top;
	u64 root;	/* physical address of the top table */
	u64 next_va;	/* where to go on after the line that was printed last */
	int next_level;
};

static u64 level_size(int level)
{
	return 1ULL << (PAGE_SHIFT + level * TABLE_SHIFT);
}

static unsigned int entry_index(u64 va, int level)
{
	return (va >> (PAGE_SHIFT + level * TABLE_SHIFT)) & (ENTRIES - 1);
}

static bool is_leaf(u64 entry, int level)
{
	return level == LEVEL_PTE || (level <= LEVEL_PUD && (entry & _PAGE_PSE));
}

static u64 read_entry(u64 table, unsigned int index)
{
	u64 entry;

	if (!pfn_valid(table >> PAGE_SHIFT))
		return 0;
	if (get_kernel_nofault(entry, (u64 *)__va(table) + index))
		return 0;
	return entry;
}

/*
 * A leaf of mode PROT_NONE is not present but may hold an address; a kernel entry
 * whose present bit was cleared (guard pages, debug_pagealloc) is one too.  What
 * counts is that something is there.
 */
static bool is_none(u64 entry)
{
	return (entry & ~(u64)(_PAGE_ACCESSED | _PAGE_DIRTY)) == 0;
}

/* The table that holds the entry of this level for va, 0 if there is none. */
static u64 find_table(const struct walk *w, u64 va, int level)
{
	u64 table = w->root;
	int l;

	for (l = w->top; l > level; l--) {
		u64 entry = read_entry(table, entry_index(va, l));

		if (!(entry & _PAGE_PRESENT) || is_leaf(entry, l))
			return 0;
		table = entry & PA_MASK;
	}
	return table;
}

static u64 leaf_pa(u64 entry, int level)
{
	return entry & PA_MASK & ~(level_size(level) - 1);
}

/* All bits but the address and what the hardware sets: bit 12 of a huge leaf is PAT. */
static u64 leaf_flags(u64 entry, int level)
{
	return entry & ~(PA_MASK & ~(level_size(level) - 1)) &
	       ~(u64)(_PAGE_ACCESSED | _PAGE_DIRTY);
}

static const char *region(u64 va)
{
	if (va < page_offset_base)
		return "other";
	if (va < vmalloc_base)
		return "direct";
	if (va < vmemmap_base)
		return "vmalloc";
	if (va < CPU_ENTRY_AREA_BASE)
		return "vmemmap";
	if (va < __START_KERNEL_map)
		return "other";
	if (va < MODULES_VADDR)
		return "image";
	if (va < MODULES_END)
		return "modules";
	return "other";
}

/* The place after an entry: the next one of the highest level that begins there. */
static void step_over(const struct walk *w, u64 va, int level, u64 *next_va, int *next_level)
{
	va = (va & ~(level_size(level) - 1)) + level_size(level);
	while (level < w->top && !(va & (level_size(level + 1) - 1)))
		level++;
	*next_va = va;
	*next_level = level;
}

/*
 * Goes on behind a range that is left out.  Both end with an entry of the level of P4D, in either
 * paging mode.  The kernel fills the whole entry of the top level in which KASAN's shadow begins.
 */
static bool skip_range(struct walk *w)
{
	u64 end = 0;

#ifdef CONFIG_KASAN
	if (w->va >= (KASAN_SHADOW_START & ~(level_size(w->top) - 1)) && w->va < KASAN_SHADOW_END)
		end = KASAN_SHADOW_END;
#endif
#ifdef CONFIG_X86_ESPFIX64
	if (w->va >= ESPFIX_BASE_ADDR && w->va < ESPFIX_BASE_ADDR + level_size(LEVEL_P4D))
		end = ESPFIX_BASE_ADDR + level_size(LEVEL_P4D);
#endif
	if (!end)
		return false;
	w->va = end;
	w->level = LEVEL_P4D;
	return true;
}

/* Moves to the next entry that is worth a line; false at the end. */
static bool settle(struct walk *w)
{
	unsigned int skipped = 0;

	while (w->va) {
		u64 table, entry = 0;

		if (skip_range(w))
			continue;
		table = find_table(w, w->va, w->level);
		if (table)
			entry = read_entry(table, entry_index(w->va, w->level));
		if (!is_none(entry))
			return true;
		step_over(w, w->va, w->level, &w->va, &w->level);
		if (!(++skipped % 4096))
			cond_resched();
	}
	return false;
}

static int show(struct seq_file *m, void *v)
{
	struct walk *w = v;
	u64 table = find_table(w, w->va, w->level);
	unsigned int index = entry_index(w->va, w->level);
	u64 entry = table ? read_entry(table, index) : 0;
	u64 size = level_size(w->level);
	unsigned int n;

	step_over(w, w->va, w->level, &w->next_va, &w->next_level);
	if (is_none(entry))
		return 0;	/* it went away after settle() had seen it */

	if ((entry & _PAGE_PRESENT) && !is_leaf(entry, w->level)) {
		seq_printf(m, "%s %016llx %s table %016llx pa %016llx\n", region(w->va), w->va,
			   level_names[w->level], entry & ~PA_MASK & ~(u64)_PAGE_ACCESSED,
			   entry & PA_MASK);
		w->next_va = w->va;
		w->next_level = w->level - 1;
		return 0;
	}

	for (n = 1; index + n < ENTRIES; n++) {
		u64 other = read_entry(table, index + n);

		if (is_none(other) || !is_leaf(other, w->level) ||
		    leaf_flags(other, w->level) != leaf_flags(entry, w->level) ||
		    leaf_pa(other, w->level) != leaf_pa(entry, w->level) + n * size)
			break;
	}
	seq_printf(m, "%s %016llx %s leaf %016llx pa %016llx n %u\n", region(w->va), w->va,
		   level_names[w->level], leaf_flags(entry, w->level), leaf_pa(entry, w->level), n);
	step_over(w, w->va + (n - 1) * size, w->level, &w->next_va, &w->next_level);
	return 0;
}

static void *start(struct seq_file *m, loff_t *pos)
{
	struct walk *w = m->private;

	if (*pos == 0) {
		w->va = w->top == LEVEL_PGD ? KERNEL_HALF_L5 : KERNEL_HALF_L4;
		w->level = w->top;
	}
	return settle(w) ? w : NULL;
}

static void *next(struct seq_file *m, void *v, loff_t *pos)
{
	struct walk *w = v;

	++*pos;
	w->va = w->next_va;
	w->level = w->next_level;
	cond_resched();
	return settle(w) ? w : NULL;
}

static void stop(struct seq_file *m, void *v)
{
}

static const struct seq_operations pgtables_seq_ops = {
	.start = start,
	.next = next,
	.stop = stop,
	.show = show,
};

static int pgtables_open(struct inode *inode, struct file *file)
{
	struct walk *w = __seq_open_private(file, &pgtables_seq_ops, sizeof(*w));

	if (!w)
		return -ENOMEM;
	/*
	 * The reader's own page table: its kernel half is every process's.  With page-table
	 * isolation, CR3 in the kernel is the full table.
	 */
	w->root = read_cr3_pa();
	w->top = __read_cr4() & X86_CR4_LA57 ? LEVEL_PGD : LEVEL_P4D;
	return 0;
}

static const struct file_operations pgtables_fops = {
	.owner = THIS_MODULE,
	.open = pgtables_open,
	.read = seq_read,
	.release = seq_release_private,
};

static struct dentry *file;

static int __init pgtables_init(void)
{
	file = debugfs_create_file("livedump_pgtables", 0400, NULL, NULL, &pgtables_fops);
	return PTR_ERR_OR_ZERO(file);
}

static void __exit pgtables_exit(void)
{
	debugfs_remove(file);
}

module_init(pgtables_init);
module_exit(pgtables_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: dumps the kernel half of the page tables");

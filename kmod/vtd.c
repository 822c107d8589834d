// SPDX-License-Identifier: GPL-2.0-only
/*
 * What Intel's IOMMU (VT-d) lets devices write, as of the stop: its root, context and page
 * tables are memory in a format that the processor's maker has laid down, and are read as of the
 * stop like all else.  So no function of the kernel is asked, which would tell what is mapped
 * now, and miss what was unmapped since the stop.
 *
 * Not looked at are tables that map more than half of the machine's RAM: those let a device write
 * everything (the IOMMU's driver makes such ones for devices that it does not restrict), or are
 * those of a virtual machine, whose memory is that of a process and flagged for that.
 *
 * Requests with a process's address space (PASID) go to memory of that process, too.
 */
#include <linux/acpi.h>
#include <linux/io.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "entry.h"

/* Registers of a unit. */
#define REG_STATUS	0x1c
#define STATUS_ON	BIT(31)
#define REG_ROOT	0x20
#define ROOT_MODE(v)	(((v) >> 10) & 3)
#define MODE_LEGACY	0
#define MODE_SCALABLE	1

#define UNITS_MAX	128
#define LEVELS_MAX	5
#define ROOTS_MAX	8192

#define ADDRESS(v)	((v) & GENMASK_ULL(51, PAGE_SHIFT))

static struct ld_unit {
	u64 root;
	unsigned int mode;
} units[UNITS_MAX];
static unsigned int nr_units;
static bool whole;		/* all units are known, and of a mode that is */

/* While tables are walked. */
static u64 (*tables)[PT_ENTRIES];
static u64 *roots;		/* page tables that were looked at: devices share them */
static unsigned int nr_roots;
static unsigned long pages, pages_limit;
static bool failed;

static void add_unit(u64 address)
{
	void __iomem *regs = ioremap(address, PAGE_SIZE);
	struct ld_unit u;

	if (!regs) {
		whole = false;
		return;
	}
	if (readl(regs + REG_STATUS) & STATUS_ON) {
		u.root = readq(regs + REG_ROOT);
		u.mode = ROOT_MODE(u.root);
		u.root = ADDRESS(u.root);
		if (nr_units < UNITS_MAX && u.mode <= MODE_SCALABLE)
			units[nr_units++] = u;
		else
			whole = false;
	}
	iounmap(regs);
}

/* Once: the tables that units begin with stay where they are. */
void ld_vtd_init(void)
{
	struct acpi_table_header *table;
	u8 *at, *end;

	if (ACPI_FAILURE(acpi_get_table(ACPI_SIG_DMAR, 0, &table)))
		return;
	whole = true;
	at = (u8 *)table + sizeof(struct acpi_table_dmar);
	end = (u8 *)table + table->length;
	while (at + sizeof(struct acpi_dmar_header) <= end) {
		struct acpi_dmar_header *h = (struct acpi_dmar_header *)at;

		if (h->length < sizeof(*h))
			break;
		if (h->type == ACPI_DMAR_TYPE_HARDWARE_UNIT &&
		    at + sizeof(struct acpi_dmar_hardware_unit) <= end)
			add_unit(((struct acpi_dmar_hardware_unit *)h)->address);
		at += h->length;
	}
	acpi_put_table(table);
	if (nr_units)
		pr_info("%u IOMMUs translate for devices\n", nr_units);
}

static bool read_table(void *dst, u64 at, size_t n)
{
	return at >> PAGE_SHIFT < ld_max_pfn &&
	       ld_read_as_of_stop(dst, (unsigned long)__va(at), n);
}

/* Either counts the pages that may be written, or flags them. */
static void leaf(u64 at, int level, u64 *counted)
{
	unsigned long pfn = at >> PAGE_SHIFT;
	unsigned long n = level_size(level) >> PAGE_SHIFT;

	pfn &= ~(n - 1);
	if (!counted) {
		pages += n;
		return;
	}
	for (; n; n--, pfn++)
		ld_dma_uncover(pfn, counted);
}

/*
 * Second-level entries have a bit for reading and one for writing; first-level ones are those
 * of the processor.  The others' bits that matter are the same.
 */
static void walk_tables(u64 at, int level, bool first, u64 *counted)
{
	u64 *table = tables[level - 1];
	int i;

	if (!read_table(table, at, PAGE_SIZE)) {
		failed = true;
		return;
	}
	for (i = 0; i < PT_ENTRIES && pages <= pages_limit; i++) {
		u64 v = table[i];

		if (first ? !(v & _PAGE_PRESENT) : !(v & 3))
			continue;
		if (!(v & _PAGE_RW))
			continue;
		if (level == LEVEL_PTE || v & _PAGE_PSE)
			leaf(ADDRESS(v), level, counted);
		else
			walk_tables(ADDRESS(v), level - 1, first, counted);
	}
	cond_resched();
}

static void look_at_tables(u64 root, int levels, bool first, u64 *counted)
{
	unsigned int i;

	for (i = 0; i < nr_roots; i++)
		if (roots[i] == root)
			return;
	if (nr_roots == ROOTS_MAX || levels < LEVEL_PUD || levels > LEVELS_MAX) {
		failed = true;
		return;
	}
	roots[nr_roots++] = root;
	pages = 0;
	walk_tables(root, levels, first, NULL);
	if (pages <= pages_limit)
		walk_tables(root, levels, first, counted);
}

#define CONTEXT_PRESENT(c)	((c) & 1)
#define CONTEXT_TYPE(c)		(((c) >> 2) & 3)
#define TYPE_PASS		2
#define CONTEXT_LEVELS(hi)	((int)((hi) & 7) + 2)

static void look_at_legacy(u64 at, u64 *counted)
{
	unsigned int i;
	u64 c[2];

	for (i = 0; i < 256; i++) {
		if (!read_table(c, at + i * sizeof(c), sizeof(c)))
			failed = true;
		else if (CONTEXT_PRESENT(c[0]) && CONTEXT_TYPE(c[0]) < TYPE_PASS)
			look_at_tables(ADDRESS(c[0]), CONTEXT_LEVELS(c[1]), false, counted);
	}
}

/* An entry of a table of address spaces (PASIDs). */
#define SPACE_KIND(w)		(((w) >> 6) & 7)
#define SPACE_FIRST		1
#define SPACE_SECOND		2
#define SPACE_NESTED		3
#define SPACE_LEVELS(w)		((int)(((w) >> 2) & 7) + 2)
#define SPACE_FIRST_LEVELS(w)	((int)(((w) >> 2) & 3) + 4)
#define SPACES_PER_TABLE	64

static void look_at_space(u64 directory, u32 space, u64 *counted)
{
	u64 table, w[8];

	if (!read_table(&table, directory + space / SPACES_PER_TABLE * sizeof(table),
			sizeof(table))) {
		failed = true;
		return;
	}
	if (!(table & 1))
		return;
	if (!read_table(w, ADDRESS(table) + space % SPACES_PER_TABLE * sizeof(w), sizeof(w))) {
		failed = true;
		return;
	}
	if (!(w[0] & 1))
		return;
	switch (SPACE_KIND(w[0])) {
	case SPACE_FIRST:
		look_at_tables(ADDRESS(w[2]), SPACE_FIRST_LEVELS(w[2]), true, counted);
		break;
	case SPACE_SECOND:
	case SPACE_NESTED:
		look_at_tables(ADDRESS(w[0]), SPACE_LEVELS(w[0]), false, counted);
		break;
	}
}

static void look_at_scalable(u64 at, u64 *counted)
{
	unsigned int i;
	u64 c[4];

	for (i = 0; i < 128; i++) {
		if (!read_table(c, at + i * sizeof(c), sizeof(c)))
			failed = true;
		else if (CONTEXT_PRESENT(c[0]))
			look_at_space(ADDRESS(c[0]), c[1] & GENMASK(19, 0), counted);
	}
}

static void look_at_unit(const struct ld_unit *u, u64 *counted)
{
	unsigned int bus;
	u64 r[2];

	for (bus = 0; bus < 256; bus++) {
		if (!read_table(r, u->root + bus * sizeof(r), sizeof(r))) {
			failed = true;
			return;
		}
		if (u->mode == MODE_LEGACY && r[0] & 1)
			look_at_legacy(ADDRESS(r[0]), counted);
		if (u->mode == MODE_SCALABLE && r[0] & 1)
			look_at_scalable(ADDRESS(r[0]), counted);
		if (u->mode == MODE_SCALABLE && r[1] & 1)
			look_at_scalable(ADDRESS(r[1]), counted);
	}
}

/*
 * After the stop.  *counted grows by the pages to be dumped that a device may write.  False: it
 * is not known what devices may write that an IOMMU translates for.
 */
bool ld_vtd_mark(u64 *counted)
{
	unsigned int i;

	nr_roots = 0;
	failed = false;
	pages_limit = ld_ram_pages / 2;
	for (i = 0; i < nr_units; i++)
		look_at_unit(&units[i], counted);
	return nr_units && whole && !failed;
}

int ld_vtd_prepare(void)
{
	if (!nr_units)
		return 0;
	tables = ld_alloc(LEVELS_MAX * sizeof(*tables));
	roots = ld_alloc(ROOTS_MAX * sizeof(*roots));
	if (!tables || !roots)
		return -ENOMEM;
	ld_wp_add_own(tables, LEVELS_MAX * sizeof(*tables));
	ld_wp_add_own(roots, ROOTS_MAX * sizeof(*roots));
	return 0;
}

void ld_vtd_release(void)
{
	vfree(tables);
	vfree(roots);
	tables = NULL;
	roots = NULL;
}

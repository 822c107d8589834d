// SPDX-License-Identifier: GPL-2.0-only
/*
 * Four ways to write a page that come into being after the stop, and that no protection of
 * the mappings of the stop can see:
 *
 *	vmap() and its like	map pages that are in use once more
 *	text patching		maps code in the user half for a moment (jump labels,
 *				tracing, BPF)
 *	set_memory_rw() and	make entries writable that the kernel had made read-only before
 *	freeing code		the stop, so that we had nothing to protect
 *	huge pages of the pool	whose struct pages the kernel maps anew, so as to give most of
 *				them away (vm.hugetlb_optimize_vmemmap): it replaces their leaf
 *				of 2 MiB, protected or not, by a table of writable entries
 *
 * Before the last we split such a leaf ourselves: then the kernel changes entries of the few pages
 * that it gives away, and the others stay as they are.
 *
 * All go through few functions of the kernel.  A kprobe on each saves the pages before
 * they can be written.  The probes are there for as long as the module is: registering one makes
 * the kernel allocate code, and that breaks up its direct map, as loading a module does.
 *
 * A call may be under way at the stop: it passed the probe before, and maps after.  So what
 * the probes see before the stop is remembered: code is copied in the stop, and pages
 * that were to be mapped but were not are reported as uncovered.  An entry that becomes
 * writable in that gap is found by who saves or sweeps the page (pages.c).
 *
 * Where a function has another name, or was inlined, its probe can't be registered:
 * ld_watch_missing says so, in the log and in the statistics.
 */
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include "compat.h"
#include "entry.h"

/* Calls that are remembered; what is older is done. */
#define MAPS_MAX	256	/* a power of two, as is the other */
#define PATCHES_MAX	16
#define REMAPS_MAX	64

struct ld_map_call {
	const struct task_struct *task;
	unsigned int seq;
	unsigned long va;
	unsigned long pages;	/* address of an array of struct page * */
	unsigned long n;
};

static struct ld_map_call maps[MAPS_MAX];
static unsigned long patches[PATCHES_MAX];	/* addresses */
/* First address, of 2 MiB, and in the bits below how many: the stop may come between two writes. */
static unsigned long remaps[REMAPS_MAX];
static atomic_t nr_maps, nr_patches, nr_remaps;
bool ld_watch_frozen;

u32 ld_watch_missing;

static void note_map(unsigned long va, struct page **pages, unsigned long n)
{
	unsigned long i;

	if (!READ_ONCE(ld_watch_frozen)) {
		unsigned int seq = atomic_inc_return(&nr_maps);
		struct ld_map_call *c = &maps[seq % MAPS_MAX];

		c->task = current;
		c->seq = seq;
		c->va = va;
		c->pages = (unsigned long)pages;
		c->n = n;
		/*
		 * If the stop came in between, the call may be too late for those who look for
		 * it: then the pages are saved.  Same CPU, so program order will do.
		 */
		barrier();
		if (!READ_ONCE(ld_watch_frozen))
			return;
	}
	for (i = 0; i < n; i++)
		ld_page_save(page_to_pfn(pages[i]));
}

/* (start, end, prot, pages, ...) */
static int on_map_to(struct kprobe *p, struct pt_regs *regs)
{
	note_map(regs->di, (struct page **)regs->cx, (regs->si - regs->di) >> PAGE_SHIFT);
	return 0;
}

/* (start, size, prot, pages) */
static int on_map_size(struct kprobe *p, struct pt_regs *regs)
{
	note_map(regs->di, (struct page **)regs->cx, regs->si >> PAGE_SHIFT);
	return 0;
}

static void note_patch(unsigned long va, unsigned long bytes)
{
	unsigned long at, last = bytes ? va + bytes - 1 : va;

	for (at = va & PAGE_MASK; at <= last; at += PAGE_SIZE) {
		if (!READ_ONCE(ld_watch_frozen)) {
			WRITE_ONCE(patches[(unsigned int)atomic_inc_return(&nr_patches) % PATCHES_MAX],
				   at);
			/* As in note_map(). */
			barrier();
		}
		if (READ_ONCE(ld_watch_frozen))
			ld_page_save(ld_va_to_pfn(at));
	}
}

/* (address, code, bytes) */
static int on_patch(struct kprobe *p, struct pt_regs *regs)
{
	note_patch(regs->di, regs->dx);
	return 0;
}

/* (how, address, code, bytes) */
static int on_patch_how(struct kprobe *p, struct pt_regs *regs)
{
	note_patch(regs->si, regs->cx);
	return 0;
}

static void note_writable(unsigned long va, unsigned long n)
{
	if (READ_ONCE(ld_watch_frozen))
		for (; n; n--, va += PAGE_SIZE)
			ld_page_save(ld_va_to_pfn(va));
}

/* (address, number of pages) */
static int on_set_memory(struct kprobe *p, struct pt_regs *regs)
{
	note_writable(regs->di, (int)regs->si);
	return 0;
}

/*
 * (page): code is given back.  Its entry in the direct map is made invalid and then writable;
 * it must be saved while it can be read.
 */
static int on_direct_map_invalid(struct kprobe *p, struct pt_regs *regs)
{
	note_writable((unsigned long)page_address((struct page *)regs->di), 1);
	return 0;
}

/* The kernel may take leaves of vmemmap apart from here on. */
static void note_remap(unsigned long start, unsigned long end)
{
	unsigned long va = start & PMD_MASK;
	unsigned long n = min((end - va + PMD_SIZE - 1) >> PMD_SHIFT, ~PMD_MASK);

	if (!READ_ONCE(ld_watch_frozen)) {
		unsigned int i = atomic_inc_return(&nr_remaps);

		WRITE_ONCE(remaps[i % REMAPS_MAX], va | n);
		/* As in note_map(). */
		barrier();
		if (!READ_ONCE(ld_watch_frozen))
			return;
	}
	for (; va < end; va += PMD_SIZE) {
		ld_restore_keep_split(va);
		ld_wp_open(max(va, start));
	}
}

/* (start, end, ...) */
static int on_remap_vmemmap(struct kprobe *p, struct pt_regs *regs)
{
	note_remap(regs->di, regs->si);
	return 0;
}

/* Not told to others: where it is not watched that counts as LIVEDUMP_UNWATCHED_ATTRIBUTES. */
#define GROUP_REMAP	BIT(31)

/*
 * One of a group must be there.  All of a group that are there are probed, the inner ones
 * too: a compiler may have put a copy of the outer one into its caller.
 */
static const struct {
	const char *symbol;
	kprobe_pre_handler_t handler;
	u32 group;
} targets[] = {
	{ "vmap_small_pages_range_noflush", on_map_to, LIVEDUMP_UNWATCHED_MAPPINGS },
	{ "__vmap_pages_range_noflush", on_map_to, LIVEDUMP_UNWATCHED_MAPPINGS },
	{ "map_kernel_range_noflush", on_map_size, LIVEDUMP_UNWATCHED_MAPPINGS },	/* to 5.12 */
	{ "__text_poke", LD_PATCH_HAS_HOW ? on_patch_how : on_patch,
	  LIVEDUMP_UNWATCHED_CODE },
	{ "set_memory_rw", on_set_memory, LIVEDUMP_UNWATCHED_ATTRIBUTES },
	{ "set_direct_map_invalid_noflush", on_direct_map_invalid, LIVEDUMP_UNWATCHED_ATTRIBUTES },
	{ "vmemmap_remap_range", on_remap_vmemmap, GROUP_REMAP },
};

static struct kprobe probes[ARRAY_SIZE(targets)];
static bool registered[ARRAY_SIZE(targets)];

/* Its being there keeps the kernel from turning a probe into a jump, some time after the stop. */
static void no_jump(struct kprobe *p, struct pt_regs *regs, unsigned long flags)
{
}

static bool is_tracers(const u8 *code)
{
	/* To 5.12 the kernel chooses at boot what it uses to do nothing, by processor. */
	static const u8 nops[][5] = {
		{ 0x0f, 0x1f, 0x44, 0x00, 0x00 },
		{ 0x66, 0x66, 0x66, 0x66, 0x90 },
		{ 0x3e, 0x8d, 0x74, 0x26, 0x00 },
	};
	const u8 call = 0xe8;
	int i;

	for (i = 0; i < ARRAY_SIZE(nops); i++)
		if (!memcmp(code, nops[i], sizeof(nops[i])))
			return true;
	return *code == call;
}

/*
 * Probes a function behind the place that function tracing keeps at its entry, where
 * arguments are still in their registers.  Not at that place itself: a probe there works through
 * the tracer, which changes five bytes with other CPUs running over them, and while many
 * processes were forked a CPU has met the breakpoint of such a change too late, took
 * it for a probe of its own and jumped to address 0.  Here it is one byte that changes.
 */
int ld_probe_entry(struct kprobe *p, const char *symbol, kprobe_pre_handler_t handler, u32 flags)
{
	static const unsigned int offsets[] = { 5, 9 };	/* without and with endbr64 */
	int err = -ENOENT, i;

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		memset(p, 0, sizeof(*p));
		p->symbol_name = symbol;
		p->offset = offsets[i];
		p->pre_handler = handler;
		p->post_handler = no_jump;
		p->flags = flags;
		err = register_kprobe(p);
		if (err == -ENOENT)
			break;
		if (err)
			continue;	/* not the beginning of an instruction */
		if (is_tracers((u8 *)p->addr - 5))
			return 0;
		/* Somewhere in the function: the arguments may be gone. */
		unregister_kprobe(p);
		err = -EOPNOTSUPP;
	}
	return err;
}

void ld_watch_init(void)
{
	u32 missing = LIVEDUMP_UNWATCHED_MAPPINGS | LIVEDUMP_UNWATCHED_CODE |
		      LIVEDUMP_UNWATCHED_ATTRIBUTES | (LD_REMAPS_VMEMMAP ? GROUP_REMAP : 0);
	int i;

	for (i = 0; i < ARRAY_SIZE(targets); i++) {
		int err = ld_probe_entry(&probes[i], targets[i].symbol, targets[i].handler, 0);

		registered[i] = !err;
		if (!err)
			missing &= ~targets[i].group;
		else if (err != -ENOENT)
			pr_warn("cannot probe %s: %d\n", targets[i].symbol, err);
	}
	if (missing & GROUP_REMAP) {
		pr_warn("struct pages that are mapped anew after the stop will not be noticed\n");
		missing |= LIVEDUMP_UNWATCHED_ATTRIBUTES;
	}
	ld_watch_missing = missing & ~GROUP_REMAP;
	if (ld_watch_missing & LIVEDUMP_UNWATCHED_MAPPINGS)
		pr_warn("mappings of pages in use that are made after the stop will not be noticed\n");
	if (ld_watch_missing & LIVEDUMP_UNWATCHED_CODE)
		pr_warn("changes of code after the stop will not be noticed\n");
	if (ld_watch_missing & LIVEDUMP_UNWATCHED_ATTRIBUTES)
		pr_warn("memory that is made writable after the stop will not be noticed\n");
}

/* In the stop, before anything is protected. */
int ld_watch_copy_patched(void)
{
	int i, err = 0;

	for (i = 0; i < PATCHES_MAX && !err; i++) {
		unsigned long pfn = patches[i] ? ld_va_to_pfn(patches[i]) : ULONG_MAX;

		if (pfn < ld_max_pfn)
			err = ld_page_copy_in_stop(pfn);
	}
	return err;
}

/* In the stop. */
void ld_watch_freeze(void)
{
	WRITE_ONCE(ld_watch_frozen, true);
}

/* A task is in one call at a time: only its last one can be under way. */
static bool last_of_task(const struct ld_map_call *c)
{
	unsigned int i;

	for (i = 0; i < MAPS_MAX; i++)
		if (maps[i].task == c->task && (int)(maps[i].seq - c->seq) > 0)
			return false;
	return true;
}

/*
 * A leaf of vmemmap that was there in the stop, and that the kernel was about to take apart: if it
 * was done with it, it had left a table.
 */
static void mark_remapped(void)
{
	unsigned int i;

	for (i = 0; i < REMAPS_MAX; i++) {
		unsigned long va = remaps[i] & PMD_MASK;
		unsigned long end = va + (remaps[i] & ~PMD_MASK) * PMD_SIZE;

		for (; va < end; va += PMD_SIZE) {
			unsigned long pfn, left;
			ld_entry v;
			int level;

			ld_restore_keep_split(va);
			if (!ld_walk_as_of_stop(va, &level, &v) || level != LEVEL_PMD)
				continue;
			pfn = leaf_pfn(v, level);
			/* As below. */
			for (left = PT_ENTRIES; left; left--, pfn++)
				if (ld_page_is_ram(pfn))
					set_bit(pfn, ld_uncovered);
		}
	}
}

static void mark_mapped(void)
{
	unsigned long first = (unsigned long)pfn_to_page(0);
	unsigned long end = (unsigned long)pfn_to_page(ld_max_pfn);
	unsigned int i;

	for (i = 0; i < MAPS_MAX; i++) {
		const struct ld_map_call *c = &maps[i];
		unsigned long j, page;

		if (!c->task || !last_of_task(c))
			continue;
		for (j = 0; j < min(c->n, ld_ram_pages); j++) {
			/* The array may be gone and its memory be something else by now. */
			if (!ld_read_as_of_stop(&page, c->pages + j * sizeof(page), sizeof(page)) ||
			    page < first || page >= end || (page - first) % sizeof(struct page))
				break;
			/* Not ld_page_uncover(): a copy of it may have come after such a write. */
			if (ld_va_to_pfn_as_of_stop(c->va + j * PAGE_SIZE) !=
			    page_to_pfn((struct page *)page) &&
			    ld_page_is_ram(page_to_pfn((struct page *)page)))
				set_bit(page_to_pfn((struct page *)page), ld_uncovered);
		}
		cond_resched();
	}
}

/* After the stop: what was about to be mapped. */
void ld_watch_mark(void)
{
	mark_mapped();
	mark_remapped();
}

/*
 * Before what the handlers use is freed: none that saves pages is under way any more when
 * this returns.  Any number of times.
 */
void ld_watch_thaw(void)
{
	if (!ld_watch_frozen)
		return;
	WRITE_ONCE(ld_watch_frozen, false);
	/* Handlers run with preemption off. */
	synchronize_rcu();
}

void ld_watch_exit(void)
{
	struct kprobe *p[ARRAY_SIZE(probes)];
	int i, n = 0;

	for (i = 0; i < ARRAY_SIZE(probes); i++)
		if (registered[i])
			p[n++] = &probes[i];
	if (n)
		unregister_kprobes(p, n);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that is handed to a device or to a program after the stop: kprobes on the functions
 * through which drivers do that save the pages first, as watch.c does for mappings of the
 * kernel's own.  What was handed over before is found as of the stop (dma.c, users.c).
 *
 * These functions are called for every packet and request, so the probes are armed for a session
 * only.  Arming one changes code, which takes an answer of every CPU: where one does not answer,
 * they stay off and ld_handed_missing() says so.
 *
 * A call may be under way at the stop: it passed the probe before, and the page is handed over
 * after.  So what the last calls before the stop handed over is remembered and reported as
 * uncovered, that of devices and that of programs each by itself: a device has many calls, a
 * program may have large ones.  Not pages of which a program's call has the struct page in hand:
 * inflight.c finds them.
 *
 * The pages that a balloon or virtio-mem takes from the machine are handed over too, in a way: the
 * hypervisor throws away what is in them.  These calls are remembered by themselves: virtio-mem's
 * may take seconds.
 */
#include <linux/dma-direction.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "compat.h"
#include "livedump.h"

/* Calls that are remembered; what is older is done. */
#define RECENT_MAX	512	/* a power of two */
/* First page frame and number of pages in one word, for the stop may come between two writes. */
#define RANGE_SHIFT	24
#define RANGE_MAX	((1UL << RANGE_SHIFT) - 1)
/* No call has more pieces: what is no list must not keep us here. */
#define PIECES_MAX	4096
/* Copies for one range that is emptied, for all of them are made with interrupts off. */
#define EMPTIED_MAX	4096

#define ANSWER_US	1000000
#define SWITCH_PATIENCE	(5 * HZ)

static struct recent {
	unsigned long ranges[RECENT_MAX];
	atomic_t nr;
} by_devices, by_programs, to_hypervisor;
static bool armed, answered = true;
static bool wanted_on, are_on;
static DECLARE_WAIT_QUEUE_HEAD(switched);

/* Of n pages, those that there are: addresses on a bus need not be those of memory. */
static unsigned long pages_there(unsigned long pfn, unsigned long n)
{
	unsigned long max = READ_ONCE(ld_max_pfn);

	return pfn < max ? min(n, max - pfn) : 0;
}

/* Before the stop a range is remembered.  False: it is after it, and the pages are to be saved. */
static bool remember(struct recent *recent, unsigned long pfn, unsigned long n)
{
	unsigned int i;

	if (READ_ONCE(ld_watch_frozen))
		return false;
	i = atomic_inc_return(&recent->nr);
	WRITE_ONCE(recent->ranges[i % RECENT_MAX], pfn << RANGE_SHIFT | min(n, RANGE_MAX));
	/*
	 * If the stop came in between, the range may be too late for those who look
	 * for it: then the pages are saved.  Same CPU, so program order will do.
	 */
	barrier();
	return !READ_ONCE(ld_watch_frozen);
}

static void hand_pages(struct recent *recent, unsigned long pfn, unsigned long n)
{
	n = pages_there(pfn, n);
	if (!n || remember(recent, pfn, n))
		return;
	for (; n; n--, pfn++)
		if (!ld_pages_need_no_copy(pfn, 1))
			ld_page_save(pfn);
}

static void hand(phys_addr_t at, size_t bytes)
{
	unsigned long pfn = at >> PAGE_SHIFT;

	if (bytes)
		hand_pages(&by_devices, pfn, ((at + bytes - 1) >> PAGE_SHIFT) - pfn + 1);
}

/* An address on the bus: the same in memory, where no IOMMU translates; else we save in vain. */
static void hand_bus(dma_addr_t at, size_t bytes)
{
	hand(at & ~sme_me_mask, bytes);
}

static void hand_piece(struct scatterlist *sg)
{
	struct page *page = sg_page(sg);

	/* virtio's drivers may have mapped it themselves, and then give the address alone. */
	if (page)
		hand(page_to_phys(page) + sg->offset, sg->length);
	else
		hand_bus(sg_dma_address(sg), sg->length);
}

static void hand_list(struct scatterlist *sg, unsigned int n)
{
	for (n = min_t(unsigned int, n, PIECES_MAX); sg && n; n--, sg = sg_next(sg))
		hand_piece(sg);
}

static bool device_writes(unsigned long direction)
{
	return (u32)direction != DMA_TO_DEVICE;
}

/* (device, page, offset, size, direction) */
static int on_map_page(struct kprobe *p, struct pt_regs *regs)
{
	if (device_writes(regs->r8))
		hand(page_to_phys((struct page *)regs->si) + regs->dx, regs->cx);
	return 0;
}

/* (device, physical address, size, direction) */
static int on_map_phys(struct kprobe *p, struct pt_regs *regs)
{
	if (device_writes(regs->cx))
		hand(regs->si, regs->dx);
	return 0;
}

/* (device, state, physical address, offset in the state, size, direction) */
static int on_link(struct kprobe *p, struct pt_regs *regs)
{
	if (device_writes(regs->r9))
		hand(regs->dx, regs->r8);
	return 0;
}

/* (device, list, number, direction) */
static int on_list(struct kprobe *p, struct pt_regs *regs)
{
	if (device_writes(regs->cx))
		hand_list((struct scatterlist *)regs->si, (u32)regs->dx);
	return 0;
}

/* (device, table, direction) */
static int on_map_table(struct kprobe *p, struct pt_regs *regs)
{
	struct sg_table *t = (struct sg_table *)regs->si;

	if (device_writes(regs->dx))
		hand_list(t->sgl, t->orig_nents);
	return 0;
}

/* (device, address on the bus, size, direction) */
static int on_sync(struct kprobe *p, struct pt_regs *regs)
{
	if (device_writes(regs->cx))
		hand_bus(regs->si, regs->dx);
	return 0;
}

/* (queue, lists, how many of them to read, how many to write) */
static int on_add_lists(struct kprobe *p, struct pt_regs *regs)
{
	struct scatterlist **lists = (struct scatterlist **)regs->si;
	u32 i, first = regs->dx, n = min_t(u32, regs->cx, PIECES_MAX);

	for (i = first; i < first + n; i++)
		hand_list(lists[i], PIECES_MAX);
	return 0;
}

/* (queue, list): all of it is to be written */
static int on_add(struct kprobe *p, struct pt_regs *regs)
{
	hand_list((struct scatterlist *)regs->si, PIECES_MAX);
	return 0;
}

/* A page that a program is about to be given; most are new ones, or of files. */
static void map_page(struct page *page)
{
	if (READ_ONCE(ld_watch_frozen) && page)
		hand_pages(&by_programs, page_to_pfn(page), 1);
}

static void map_pages(struct page **pages, unsigned long n)
{
	unsigned long i;

	if (READ_ONCE(ld_watch_frozen))
		for (i = 0; i < n; i++)
			map_page(pages[i]);
}

/* (fault): a driver's, or the file system's, has said which page it is */
static int on_fault(struct kprobe *p, struct pt_regs *regs)
{
	const struct vm_fault *f = (const struct vm_fault *)regs->di;

	map_page(f->cow_page ?: f->page);
	return 0;
}

/* (area, address, page) */
static int on_insert(struct kprobe *p, struct pt_regs *regs)
{
	map_page((struct page *)regs->dx);
	return 0;
}

/* (fault, page, ...) */
static int on_insert_at_fault(struct kprobe *p, struct pt_regs *regs)
{
	map_page((struct page *)regs->si);
	return 0;
}

/* (area, address, pages, their number) */
static int on_insert_several(struct kprobe *p, struct pt_regs *regs)
{
	map_pages((struct page **)regs->dx, *(const unsigned long *)regs->cx);
	return 0;
}

/* (area, pages, their number) */
static int on_insert_all(struct kprobe *p, struct pt_regs *regs)
{
	map_pages((struct page **)regs->si, regs->dx);
	return 0;
}

/* (area, address, page frame, ...): as a rule of a device, and then no memory */
static int on_insert_frame(struct kprobe *p, struct pt_regs *regs)
{
	hand_pages(&by_programs, regs->dx, 1);
	return 0;
}

/* The same with flags in the page frame's highest bits (to 6.16). */
static int on_insert_mixed(struct kprobe *p, struct pt_regs *regs)
{
	hand_pages(&by_programs, regs->dx & (PTE_PFN_MASK >> PAGE_SHIFT), 1);
	return 0;
}

/* (area, address, page frame, size, ...) */
static int on_insert_frames(struct kprobe *p, struct pt_regs *regs)
{
	hand_pages(&by_programs, regs->dx, (regs->cx + PAGE_SIZE - 1) >> PAGE_SHIFT);
	return 0;
}

#ifdef LD_HAS_REMAP_ACTION
/* (area, action): what a driver wanted to be mapped once the area is there */
static int on_remap_action(struct kprobe *p, struct pt_regs *regs)
{
	const struct mmap_action *a = (const struct mmap_action *)regs->si;

	hand_pages(&by_programs, a->remap.start_pfn,
		   (a->remap.size + PAGE_SIZE - 1) >> PAGE_SHIFT);
	return 0;
}
#else
# define on_remap_action	on_insert_frames
#endif

#ifdef LD_HAS_MAP_ACTION
/* (area, action) */
static int on_map_action(struct kprobe *p, struct pt_regs *regs)
{
	const struct mmap_action *a = (const struct mmap_action *)regs->si;

	map_pages(a->map_kernel.pages, a->map_kernel.nr_pages);
	return 0;
}
#endif

/* (balloon, page) */
static int on_balloon(struct kprobe *p, struct pt_regs *regs)
{
	hand_pages(&to_hypervisor, page_to_pfn((struct page *)regs->si), 1);
	return 0;
}

/* (balloon, list of pages) */
static int on_balloon_list(struct kprobe *p, struct pt_regs *regs)
{
	struct list_head *pages = (struct list_head *)regs->si;
	struct page *page;

	list_for_each_entry(page, pages, lru)
		hand_pages(&to_hypervisor, page_to_pfn(page), 1);
	return 0;
}

/* (number, page frames): Xen's balloon; no guest that we run in has other numbers for them */
static int on_balloon_frames(struct kprobe *p, struct pt_regs *regs)
{
	const unsigned long *pfns = (const unsigned long *)regs->si;
	u32 i, n = min_t(u32, regs->di, PIECES_MAX);

	for (i = 0; i < n; i++)
		hand_pages(&to_hypervisor, pfns[i], 1);
	return 0;
}

/*
 * The kernel's own callers want huge pages and buffers, try many ranges for one, and write what
 * they get through mappings that we protect.  The return address is on top of the stack: the probe
 * is before anything is pushed.
 */
static bool for_virtio_mem(const struct pt_regs *regs)
{
	unsigned long caller = *(const unsigned long *)regs->sp;

	return IS_BUILTIN(CONFIG_VIRTIO_MEM) || (caller >= MODULES_VADDR && caller < MODULES_END);
}

/* (first page frame, end, ...): what is in use there is moved away, the range is the caller's. */
static int on_emptied(struct kprobe *p, struct pt_regs *regs)
{
	unsigned long pfn = regs->di, n = pages_there(pfn, regs->si - pfn);
	unsigned int copies = 0;

	if (!n || !for_virtio_mem(regs) || remember(&to_hypervisor, pfn, n))
		return 0;
	for (; n; n--, pfn++) {
		if (ld_pages_need_no_copy(pfn, 1))
			continue;
		if (copies == EMPTIED_MAX)
			ld_page_uncover_late(pfn);
		else if (ld_page_save(pfn) == LD_SAVED_COPY)
			copies++;
	}
	return 0;
}

/* One of each group must be there, but for 0, and all that are there must be probed. */
#define GROUP_PAGE	BIT(0)
#define GROUP_LIST	BIT(1)
#define GROUP_VIRTIO	BIT(2)
#define GROUP_FAULT	BIT(3)
#define GROUP_INSERT	BIT(4)
#define GROUP_FRAMES	BIT(5)
#define GROUPS_DMA	(GROUP_PAGE | GROUP_LIST)
#define GROUPS_PROGRAMS	(GROUP_FAULT | GROUP_INSERT | GROUP_FRAMES)

static const struct {
	const char *symbol;
	kprobe_pre_handler_t handler;
	u32 group;
} targets[] = {
	{ "dma_map_page_attrs", on_map_page, GROUP_PAGE },
	{ "dma_map_phys", on_map_phys, GROUP_PAGE },
	{ "dma_iova_link", on_link, 0 },
	{ "dma_map_sg_attrs", on_list, GROUP_LIST },
	{ "dma_map_sgtable", on_map_table, 0 },
	{ "dma_sync_single_for_device", on_sync, 0 },
	{ "__dma_sync_single_for_device", on_sync, 0 },
	{ "dma_sync_sg_for_device", on_list, 0 },
	{ "__dma_sync_sg_for_device", on_list, 0 },
	{ "virtqueue_add_sgs", on_add_lists, GROUP_VIRTIO },
	{ "virtqueue_add_inbuf", on_add, 0 },
	{ "virtqueue_add_inbuf_ctx", on_add, 0 },
	{ "virtqueue_add_inbuf_premapped", on_add, 0 },
	{ "virtqueue_add_inbuf_cache_clean", on_add, 0 },
	{ "balloon_page_enqueue", on_balloon, 0 },
	{ "balloon_page_list_enqueue", on_balloon_list, 0 },
	{ "xenmem_reservation_decrease", on_balloon_frames, 0 },
	{ "alloc_contig_range", on_emptied, 0 },
	{ "alloc_contig_range_noprof", on_emptied, 0 },		/* since 6.10 */
	{ "finish_fault", on_fault, GROUP_FAULT },
	{ "vm_insert_page", on_insert, GROUP_INSERT },
	{ "vm_insert_pages", on_insert_several, 0 },
	{ "vm_map_pages", on_insert_all, 0 },
	{ "vm_map_pages_zero", on_insert_all, 0 },
	{ "vmf_insert_page_mkwrite", on_insert_at_fault, 0 },
	{ "vmf_insert_pfn", on_insert_frame, 0 },
	{ "vmf_insert_pfn_prot", on_insert_frame, 0 },
	{ "vmf_insert_mixed", on_insert_mixed, 0 },
	{ "vmf_insert_mixed_mkwrite", on_insert_mixed, 0 },
	{ "remap_pfn_range", on_insert_frames, GROUP_FRAMES },
	{ "remap_pfn_range_complete", on_remap_action, 0 },
#ifdef LD_HAS_MAP_ACTION
	{ "map_kernel_pages_complete", on_map_action, 0 },
#endif
};

static struct kprobe probes[ARRAY_SIZE(targets)];
static bool registered[ARRAY_SIZE(targets)];
static u32 groups_there;
static bool one_failed;

void ld_handed_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(targets); i++) {
		int err = ld_probe_entry(&probes[i], targets[i].symbol, targets[i].handler,
					 KPROBE_FLAG_DISABLED);

		registered[i] = !err;
		if (!err) {
			groups_there |= targets[i].group;
		} else if (err != -ENOENT) {
			pr_warn("cannot probe %s: %d\n", targets[i].symbol, err);
			one_failed = true;
		}
	}
}

/*
 * Changing code waits for every CPU, and for locks of the kernel that a task may hold that
 * hangs.  So somebody else does it, and nobody waits for him for ever.
 */
static void switch_probes(struct work_struct *work)
{
	bool on = READ_ONCE(wanted_on);
	int i, err = 0;

	for (i = 0; i < ARRAY_SIZE(targets); i++)
		/* One whose module is gone can't be switched, and need not be. */
		if (registered[i] && !kprobe_gone(&probes[i]))
			err = (on ? enable_kprobe(&probes[i]) : disable_kprobe(&probes[i])) ?: err;
	if (err)
		pr_warn("cannot switch probes on what is handed to devices and programs: %d\n", err);
	if (on && !err) {
		WRITE_ONCE(are_on, true);
		wake_up(&switched);
	}
}

static DECLARE_WORK(switch_work, switch_probes);

/* In PREPARE. */
void ld_handed_arm(void)
{
	/* Of a run that switches them off only now: another one follows it. */
	WRITE_ONCE(are_on, false);
	armed = true;
	answered = ld_cpus_answer(ANSWER_US);
	if (answered) {
		WRITE_ONCE(wanted_on, true);
		schedule_work(&switch_work);
		answered = wait_event_timeout(switched, READ_ONCE(are_on), SWITCH_PATIENCE);
	}
	if (!answered)
		pr_warn("code can't be changed now: what is handed to devices and programs will not be noticed\n");
}

/* Does not wait.  Where a CPU does not answer they stay on: they do no harm. */
void ld_handed_disarm(void)
{
	if (!armed)
		return;
	armed = false;
	WRITE_ONCE(wanted_on, false);
	if (ld_cpus_answer(ANSWER_US))
		schedule_work(&switch_work);
}

/* LIVEDUMP_UNWATCHED_*: what can be handed over without our notice. */
u32 ld_handed_missing(void)
{
	u32 dma = GROUPS_DMA | (ld_dma_found.virtio ? GROUP_VIRTIO : 0);
	u32 there = one_failed || !answered ? 0 : groups_there;

	return ((there & dma) == dma ? 0 : LIVEDUMP_UNWATCHED_DMA) |
	       ((there & GROUPS_PROGRAMS) == GROUPS_PROGRAMS ? 0 : LIVEDUMP_UNWATCHED_PROGRAMS);
}

static void mark(struct recent *recent)
{
	int i;

	for (i = 0; i < RECENT_MAX; i++) {
		unsigned long pfn = recent->ranges[i] >> RANGE_SHIFT;
		unsigned long n = recent->ranges[i] & RANGE_MAX;

		for (; n; n--, pfn++) {
			ld_dma_uncover(pfn, &ld_dma_found.handed);
			cond_resched();
		}
		recent->ranges[i] = 0;
	}
}

/* After the stop: what was about to be handed over. */
void ld_handed_mark(void)
{
	mark(&by_devices);
	mark(&by_programs);
	mark(&to_hypervisor);
}

void ld_handed_exit(void)
{
	struct kprobe *p[ARRAY_SIZE(probes)];
	int i, n = 0;

	cancel_work_sync(&switch_work);
	for (i = 0; i < ARRAY_SIZE(probes); i++)
		if (registered[i])
			p[n++] = &probes[i];
	if (n)
		unregister_kprobes(p, n);
}

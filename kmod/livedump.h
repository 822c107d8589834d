/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * livedump - what the parts of the module know of each other.
 *
 *   chardev.c    /dev/livedump: checks arguments, calls the session
 *   vmcore.c     /dev/livedump-vmcore: the frozen machine as an ELF core
 *   session.c    the state machine; owns every resource of a session
 *   guard.c      refuses what must not happen meanwhile: suspend, hotplug
 *   stop.c       holds all CPUs for the one instant
 *   notes.c      registers of every CPU, VMCOREINFO
 *   alias.c      which virtual ranges exist and how each is covered
 *   wrprotect.c  page-table entries: the model, the fault path
 *   plan.c       ... what is protected in the stop
 *   window.c     ... what the fault path writes outside the direct map
 *   restore.c    ... everything as it was
 *   pages.c      one state word per page frame: saved, reported, lost
 *   classify.c   what a page is, by its struct page as of the stop
 *   shadow.c     KASAN's own memory, in kernels that have it
 *   reserve.c    preallocated pages for copies and page tables
 *   blocks.c     ... which pages those are
 *   calibrate.c  ... how many: a dry run tells
 *   sysfs.c      /sys/class/misc/livedump
 *   trace.c      trace events; trace.h says what they may do in the fault path
 *   cost.c       test builds only: what a fault costs
 *   users.c      page tables and mappings of processes, as of the stop
 *   outside.c    what the kernel maps outside the ranges that are protected, as of the stop
 *   inflight.c   pages on their way to a process, as of the stop
 *   freelists.c  free pages on the allocator's per-CPU lists, as of the stop
 *   watch.c      mappings and code that are made after the stop
 *   dma.c        what devices may write, as of the stop
 *   vtd.c        ... what Intel's IOMMU lets them write
 *   handed.c     memory that is handed to a device or program after the stop
 *   truth.c      test builds only: is every page as it was in the stop?
 *   eager.c      test builds only: the method of earlier systems, to compare with
 *
 * All state of the session is static data of the module.  Nothing of it may lie
 * in the direct map, which is protected: a write to it from the fault path
 * would fault in turn, for ever.  Memory from vmalloc is reached through
 * mappings that are not protected.
 */
#ifndef _LIVEDUMP_H
#define _LIVEDUMP_H

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/cpumask.h>
#include <linux/mm.h>
#include <linux/types.h>
#include <linux/vmalloc.h>
#include <uapi/livedump.h>

#define LD_NO_SLOT	U32_MAX
#define LD_MAX_NEXT_CALLERS	32	/* at once */

/* Counters that the fault path and the stop add to; reported by STATS. */
struct ld_counters {
	atomic64_t faults;
	atomic64_t fault_copies;
	atomic64_t fault_pushdowns;
	atomic64_t fault_splits;
	atomic64_t fault_excluded;
	atomic64_t fault_leaves;	/* huge leaves released as a whole, all of it excluded */
	atomic64_t fault_class[LIVEDUMP_CLASS_SLOTS];	/* pages made writable, by class */
	atomic64_t copies;
	atomic64_t lost;
	atomic64_t lost_writer;		/* of these, by the writer itself */
	atomic64_t emergency;		/* slots drawn from the emergency part */
	atomic64_t uncovered_late;	/* found so by the sweep only */
	atomic64_t page_tables;		/* of processes, to be dumped */
	atomic64_t page_pool;		/* buffers of network drivers, to be dumped */
	atomic64_t reported;
	atomic64_t acknowledged;
	atomic64_t tables_split;
	atomic64_t tables_joined;
};

extern struct ld_counters ld_counters;

/*
 * Memory of the session, some of which grows with RAM: a gigabyte of it for a terabyte.  Where there is not
 * as much, PREPARE fails; the kernel does not kill a process to make room.
 */
static inline void *ld_alloc(size_t size)
{
	return __vmalloc(size, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN);
}

static inline void *ld_zalloc(size_t size)
{
	return __vmalloc(size, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN | __GFP_ZERO);
}

/* ---- session.c ---- */

int ld_session_prepare(struct file *owner, struct livedump_prepare *arg,
		       unsigned long caller);
int ld_session_freeze(struct file *owner, struct livedump_freeze *arg,
		      unsigned long caller);
int ld_session_notes(struct file *owner, struct livedump_notes *arg);
int ld_session_next(struct file *owner, struct livedump_next *arg);
int ld_session_stats(struct file *owner, struct livedump_stats *arg);
int ld_session_thaw(struct file *owner);
int ld_session_acknowledge(struct file *owner, struct livedump_ack *arg);
int ld_session_takeover(struct file *file, struct livedump_takeover *arg);

/**
 * ld_session_peek() - statistics of whatever session there is, or was last
 * @st: out; the size is not set
 * @uuid: out, or NULL
 *
 * Context: any that may read; takes no lock, so numbers may be of different instants.
 */
void ld_session_peek(struct livedump_stats *st, u8 *uuid);
void ld_session_release(struct file *owner);
void ld_session_end_for_reboot(void);
int ld_session_init(void);
void ld_session_exit(void);
/* Notes why PREPARE refuses, for the caller; returns err. */
int ld_refuse(enum livedump_refusal why, int err);

/* The reserve is used up.  Called from the fault path. */
void ld_session_reserve_exhausted(void);

/*
 * For readers of the frozen memory besides NEXT.  Between the two calls it stays
 * frozen and no session ends, so there must be little between them.  *session: 0, then
 * it is filled in; else it must still be that session.  -ENODATA: none is frozen that
 * keeps its pages, or it has failed.
 */
int ld_session_read_begin(u64 *session);
void ld_session_read_end(void);

/* ---- guard.c ---- */

int ld_guard_register(void);
void ld_guard_unregister(void);
int ld_guard_begin(void);
void ld_guard_freeze(void);
void ld_guard_end(void);

/* ---- chardev.c ---- */

int ld_chardev_register(void);
void ld_chardev_unregister(void);

/* ---- vmcore.c ---- */

int ld_vmcore_register(void);
void ld_vmcore_unregister(void);
void ld_vmcore_release(void);

/* ---- stop.c ---- */

#define LD_STOP_STEPS_MAX	8

struct ld_stop_times {
	u64 stop_ns;		/* from before the first CPU was held till the last had left */
	u64 rendezvous_ns;	/* parts of it, one after the other */
	u64 step_ns[LD_STOP_STEPS_MAX];
	u64 flush_ns;
	u64 registers_ns;	/* the longest that a CPU took; part of the rendezvous */
	u32 attempts;
	u64 missing_cpus;
};

/* A step of what is done in the stop: no lock, no allocation, perhaps NMI context. */
struct ld_stop_step {
	/* On several CPUs at once: takes pieces of the work until none is left. */
	void (*work)(void);
	/* On the leader, when all is done; NULL: fine.  An error: all retreat. */
	int (*judge)(void);
};

struct ld_stop_ops {
	/* Before each attempt, in process context. */
	int (*plan)(void);
	/* On every CPU, on its arrival. */
	void (*arrive)(int cpu);
	/* -EAGAIN from a step that has changed nothing yet: another attempt. */
	const struct ld_stop_step *steps;
	unsigned int nr_steps;
};

int ld_stop_init(void);
void ld_stop_exit(void);
int ld_stop_run(const struct ld_stop_ops *ops, unsigned long caller,
		struct ld_stop_times *times);
void ld_flush_tlb_all_cpus(unsigned int patience_us);	/* 0: until all have */
/* Does every CPU take an interrupt within that time?  What waits for all of them may be done then. */
bool ld_cpus_answer(unsigned int patience_us);

/* ---- notes.c ---- */

int ld_notes_prepare(void);
void ld_notes_begin(void);
void ld_notes_release(void);
void ld_notes_capture_interrupted(int cpu, const struct pt_regs *regs);
void ld_notes_capture_caller(int cpu, unsigned long caller);
/* As captured; zeroes for a CPU that was not held. */
const struct pt_regs *ld_notes_regs(int cpu);
size_t ld_notes_bytes(void);
unsigned int ld_notes_cpus(void);
ssize_t ld_notes_fill(void *buf, size_t room, u64 *info_offset, u64 *info_bytes);

/* ---- alias.c ---- */

struct ld_va_range {
	unsigned long start;	/* inclusive, aligned to the range's top entries */
	unsigned long end;	/* exclusive */
};

/* Protected by level. */
extern struct ld_va_range ld_direct_map, ld_vmemmap;
/* Protected at their leaves, in the stop. */
extern struct ld_va_range ld_vmalloc, ld_modules, ld_image;

int ld_alias_prepare(void);
int ld_alias_find_stop_copies(void);
void ld_alias_arrive(int cpu);
void ld_alias_copy(void);
int ld_alias_copy_error(void);
void ld_alias_release(void);

/* ---- wrprotect.c, plan.c, restore.c ---- */

int ld_wp_prepare(void);
int ld_wp_plan(void);
/* Steps of the stop. */
void ld_wp_check_plan(void);
int ld_wp_plan_is_stale(void);		/* -EAGAIN: it is */
void ld_wp_protect_leaves(void);
void ld_wp_protect_upper(void);
void ld_wp_restore(void);
void ld_wp_release(void);
int ld_wp_add_tables(int (*add)(unsigned long pfn));
bool ld_wp_is_protected(unsigned long va);
/* Leaves of 1 GiB that a fault may have to split. */
unsigned int ld_wp_count_leaves_1g(void);
unsigned long ld_va_to_pfn(unsigned long va);	/* ULONG_MAX: not mapped */
unsigned long ld_va_to_pfn_as_of_stop(unsigned long va);
/*
 * Memory at va is written by the fault path: never protect this mapping of it.  What is
 * from vmalloc() is the session's own, and left out of the dump.
 */
void ld_wp_add_own(const void *va, size_t bytes);

/* Entries changed in the stop, by level (1: 4 KiB). */
u64 ld_wp_changed(int level);

/* ---- pages.c ---- */

extern unsigned long ld_max_pfn;
extern unsigned long ld_ram_pages;	/* those that are offline too */
extern unsigned long ld_offline_pages;

int ld_pages_prepare(u32 exclude, u64 flags);
void ld_pages_release(void);
u64 ld_pages_overhead(void);
bool ld_page_is_ram(unsigned long pfn);	/* and online */
/* The same; true: also the range of RAM that the page lies in. */
bool ld_find_ram(unsigned long pfn, unsigned long *first, unsigned long *end);
bool ld_class_excluded(u32 class_id);
/**
 * enum ld_saved - what became of a page that had to be saved
 * @LD_SAVED_NOTHING: nothing had to be done, or another CPU was first
 * @LD_SAVED_COPY: this call has made the copy
 * @LD_SAVED_LOST: the reserve is used up, and this call has lost it
 */
enum ld_saved { LD_SAVED_NOTHING, LD_SAVED_COPY, LD_SAVED_LOST };

/**
 * ld_page_save() - keep what must be kept of a page that is about to become writable
 * @pfn: the page
 *
 * Context: any, NMI included.  The caller makes the page writable afterwards, whatever this says.
 * Return: what this call has done.
 */
enum ld_saved ld_page_save(unsigned long pfn);
void ld_page_trace(unsigned long pfn, enum ld_saved saved);
bool ld_pages_need_no_copy(unsigned long pfn, unsigned long nr);
int ld_page_copy_in_stop(unsigned long pfn);
void ld_page_uncover(unsigned long pfn);
void ld_page_uncover_late(unsigned long pfn);
void ld_page_lose(unsigned long pfn);
void ld_page_set_class(unsigned long pfn, u32 class_id);
void ld_page_force_class(unsigned long pfn, u32 class_id);
bool ld_page_is_uncovered(unsigned long pfn, u32 class_id);
u32 ld_page_class(unsigned long pfn);
/**
 * ld_window_take_marks_off() - make content of a page table what it was in the stop
 * @pfn: the page that it is of; most are no such tables
 * @content: of the page, or a part of it that begins and ends with an entry
 * @n: its bytes
 *
 * Context: process context.
 */
void ld_window_take_marks_off(unsigned long pfn, void *content, size_t n);
/* Copies n bytes at va, all on one page, as they were in the stop; false: they can't be read. */
bool ld_read_as_of_stop(void *dst, unsigned long va, size_t n);

/* pfn-indexed bitmaps, all from vmalloc */
extern unsigned long *ld_hot;		/* stays writable in the direct map */
extern unsigned long *ld_self;		/* the module's own, reserve and all */
extern unsigned long *ld_tables;	/* was a page table of a process in the stop */
extern unsigned long *ld_uncovered;	/* has a writable mapping that is not protected */

/*
 * Hands out the next page: copies it to dst and describes it.
 * 1: a page; 0: all reported; a negative errno: the session failed.
 */
struct ld_cursor {
	unsigned long pfn, end;		/* a stretch of the sweep taken by this caller */
};
int ld_page_next(struct ld_cursor *cur, unsigned long stretch, void *dst,
		 struct livedump_page *out);
void ld_cursor_return(struct ld_cursor *cur);
/*
 * Reads any page of a session that keeps its pages.  1: its content; 0: its class is
 * left out, nothing was read; -EIO: its content is gone.
 */
int ld_page_read(unsigned long pfn, void *dst);
bool ld_page_is_wanted(unsigned long pfn);	/* online RAM, of a class that is not left out */
void ld_pages_classified(void);
bool ld_page_acknowledge(unsigned long pfn);
void ld_pages_hand_out_again(void);

bool ld_copy_page_safe(void *dst, const void *src);
const void *ld_page_stop_content(unsigned long pfn);

/* ---- classify.c ---- */

u32 ld_classify(unsigned long pfn);
/* A task of the stop had the struct page of that page in hand: see inflight.c. */
void ld_page_in_flight(unsigned long pfn);
void ld_classify_all(u64 *class_pages, u64 *to_dump, u64 *uncovered);

/* ---- users.c, outside.c, inflight.c, freelists.c: after the stop, before ld_classify_all() ---- */

int ld_users_prepare(void);
void ld_users_release(void);
void ld_users_mark(void);
void ld_outside_mark(void);
void ld_in_flight_look_at(unsigned long task);	/* address of a task_struct */
void ld_in_flight_look_at_cpus(void);
void ld_free_lists_mark(void);

/* ---- watch.c ---- */

extern u32 ld_watch_missing;	/* LIVEDUMP_UNWATCHED_* */
extern bool ld_watch_frozen;	/* what the probes see has to be saved */

void ld_watch_init(void);
void ld_watch_exit(void);
int ld_watch_copy_patched(void);
void ld_watch_freeze(void);
void ld_watch_thaw(void);
void ld_watch_mark(void);

struct kprobe;
struct pt_regs;
/**
 * ld_probe_entry() - probe a function where its arguments are still in their registers
 * @p: the probe; filled in
 * @symbol: the function
 * @handler: called for each call
 * @flags: KPROBE_FLAG_DISABLED or 0
 *
 * Return: 0; -ENOENT: there is no such function; another error: it can't be probed there.
 */
int ld_probe_entry(struct kprobe *p, const char *symbol,
		   int (*handler)(struct kprobe *p, struct pt_regs *regs), u32 flags);

/* ---- dma.c, vtd.c: what devices may write ---- */

/**
 * struct ld_dma_found - pages that devices may write; those to be dumped
 * @buffers: buffers of virtio devices
 * @mapped: what an IOMMU lets devices write
 * @handed: what was about to be handed to a device in the stop
 * @devices: devices that master the bus
 * @unknown: of these, those of which it is not known what they may write
 * @virtio: there are rings of virtio
 */
struct ld_dma_found {
	u64 buffers, mapped, handed;
	u64 devices, unknown;
	bool virtio;
};

extern struct ld_dma_found ld_dma_found;

int ld_dma_prepare(void);
void ld_dma_release(void);
void ld_dma_find(void);
int ld_dma_add_rings(int (*add)(unsigned long pfn));
void ld_dma_mark(void);
void ld_dma_uncover(unsigned long pfn, u64 *counted);

void ld_vtd_init(void);
int ld_vtd_prepare(void);
void ld_vtd_release(void);
bool ld_vtd_mark(u64 *counted);

/* ---- handed.c ---- */

void ld_handed_init(void);
void ld_handed_exit(void);
void ld_handed_arm(void);
void ld_handed_disarm(void);
u32 ld_handed_missing(void);
void ld_handed_mark(void);

/* ---- reserve.c ---- */

/**
 * enum ld_use - what a page of the reserve is wanted for
 * @LD_FOR_STOP: a copy or a table, before or in the stop; never from the emergency part
 * @LD_FOR_COPY: a copy, by a fault
 * @LD_FOR_TABLE: the table that a fault splits a leaf of 2 MiB into
 * @LD_FOR_TABLE_1G: the table that takes the place of a leaf of 1 GiB, before the stop or by a fault
 */
enum ld_use {
	LD_FOR_STOP,
	LD_FOR_COPY,
	LD_FOR_TABLE,
	LD_FOR_TABLE_1G,
};

/**
 * struct ld_reserve_layout - where the reserve lies: what protecting by level costs for it
 * @gigabytes: how many blocks of 1 GiB hold some of it
 * @leaves: the same of 2 MiB
 * @emergency: slots of the emergency part
 * @tables_1g: slots for tables in the place of leaves of 1 GiB
 */
struct ld_reserve_layout {
	u32 gigabytes, leaves;
	u32 emergency, tables_1g;
};

#define LD_RESERVE_MIN	2048U	/* pages, and those of ld_reserve_tables_1g() */
#define LD_GIB_ORDER	(30 - PAGE_SHIFT)

/* How many of its pages can be nothing else but tables in the place of leaves of 1 GiB. */
unsigned int ld_reserve_tables_1g(void);
int ld_reserve_prepare(u64 pages);
void ld_reserve_release(void);

/**
 * ld_reserve_get() - take a free slot
 * @use: what for
 *
 * Context: any, NMI included.
 * Return: its number, or LD_NO_SLOT if there is none for this use and context.
 */
u32 ld_reserve_get(enum ld_use use);

/**
 * ld_reserve_mark_writer() - the calling process carries pages away
 *
 * What it writes may draw on all of the emergency part, until the session ends.  There is room
 * for eight processes.
 *
 * Context: process context.
 */
void ld_reserve_mark_writer(void);
bool ld_reserve_is_writer(void);
void ld_reserve_get_layout(struct ld_reserve_layout *l);

/**
 * ld_reserve_put() - give a slot back to its home
 * @slot: from ld_reserve_get()
 *
 * Context: any, NMI included.
 */
void ld_reserve_put(u32 slot);

void *ld_reserve_page(u32 slot);
u32 ld_reserve_slot_of(unsigned long pfn);
void ld_reserve_give_away(unsigned long pfn);

/**
 * ld_reserve_queue_copy() - a copy is complete and can be reported
 * @slot: the slot that holds it
 * @pfn: the page that it is a copy of
 *
 * Context: any, NMI included.
 */
void ld_reserve_queue_copy(u32 slot, unsigned long pfn);

/**
 * ld_reserve_pop_copy() - take a queued copy, to report it
 * @pfn: out, the page that it is a copy of
 *
 * Context: process context.
 * Return: the slot, which is the caller's now, or LD_NO_SLOT.
 */
u32 ld_reserve_pop_copy(unsigned long *pfn);
u64 ld_reserve_pages(void);
u64 ld_reserve_low(void);
u64 ld_reserve_free(void);
u64 ld_reserve_overhead(void);

/* ---- blocks.c ---- */

/**
 * ld_reserve_size() - how many pages the reserve should have
 * @limit_bytes: the most that the caller wants it to be; 0: no wish
 * @estimate: pages that a dry run has found to be needed; 0: there was none
 *
 * Return: pages, never more than half of what is available now.
 */
u64 ld_reserve_size(u64 limit_bytes, u64 estimate);
int ld_blocks_add(u64 want, u64 (*add)(void *page));

/* ---- calibrate.c ---- */

/**
 * struct ld_calibration - what a dry run has seen; all zero if there was none
 * @window_ns: how long it was watched
 * @half_ns: when in between there was a look
 * @pages: pages that a dump would have kept by the end
 * @half_pages: ... by the look in between
 * @per_second: distinct pages written, by class, left out or not
 * @stop_copies: pages copied in its stop
 * @stop_ns: how long its stop was
 * @estimate: pages for the expected duration
 */
struct ld_calibration {
	u64 window_ns, half_ns;
	u64 pages, half_pages;
	u64 per_second[LIVEDUMP_CLASS_SLOTS];
	u64 stop_copies;
	u64 stop_ns;
	u64 estimate;
};

void ld_calibrate_reset(void);
int ld_calibrate_observe(u64 start, u32 ms, u64 stop_ns);
u64 ld_calibrate_estimate(u32 expected_ms);
void ld_calibrate_get(struct ld_calibration *c);

/* ---- cost.c, test builds only ---- */

#ifdef LIVEDUMP_TEST
extern bool ld_no_leaves;
u64 ld_cost_begin(void);
void ld_cost_end(u64 began, u32 what);
void ld_cost_lost(unsigned int pages);
#else
#define ld_no_leaves	false
static inline u64 ld_cost_begin(void) { return 0; }
static inline void ld_cost_end(u64 began, u32 what) { }
static inline void ld_cost_lost(unsigned int pages) { }
#endif

/* ---- sysfs.c ---- */

struct attribute_group;
extern const struct attribute_group *ld_sysfs_groups[];

/* ---- shadow.c, kernels with KASAN only ---- */

#ifdef CONFIG_KASAN
void ld_shadow_mark(void);
#else
static inline void ld_shadow_mark(void) { }
#endif

/* ---- eager.c and truth.c, test builds only ---- */

#ifdef LIVEDUMP_TEST
/* Is the test pretending that this machine has to be refused for that reason? */
bool ld_pretend(enum livedump_refusal why);
/* Is set_memory_*() to split a huge leaf of the plan that was just made? */
bool ld_pretend_split(void);
void ld_truth_init(void);
void ld_truth_exit(void);
int ld_truth_prepare(void);
void ld_truth_take(void);
void ld_truth_reported(const struct livedump_page *d);
void ld_truth_compare(const void *page, const struct livedump_page *d);
bool ld_truth_spoils(const struct ld_va_range *r);
bool ld_truth_skips(const char *what);
#else
static inline bool ld_pretend(enum livedump_refusal why) { return false; }
static inline bool ld_pretend_split(void) { return false; }
static inline void ld_truth_init(void) { }
static inline void ld_truth_exit(void) { }
static inline int ld_truth_prepare(void) { return 0; }
static inline void ld_truth_take(void) { }
static inline void ld_truth_reported(const struct livedump_page *d) { }
static inline void ld_truth_compare(const void *page, const struct livedump_page *d) { }
static inline bool ld_truth_spoils(const struct ld_va_range *r) { return false; }
static inline bool ld_truth_skips(const char *what) { return false; }
#endif

#endif /* _LIVEDUMP_H */

/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * livedump - userspace ABI of /dev/livedump
 *
 * One session at a time.  A session belongs to the open file that prepared it:
 *
 *	open -> PREPARE -> FREEZE -> NEXT ... NEXT -> THAW -> close
 *
 * When the last reference to the file goes away, whatever the step, the session
 * ends and the page tables are as they were before PREPARE; unless memory is
 * frozen and PREPARE asked for a grace.  Then the session stays as it is for so
 * long, and another open file may take it over by its UUID:
 *
 *	open -> TAKEOVER -> NEXT ... NEXT -> THAW -> close
 *
 * From PREPARE to the end suspend, hibernation and memory hotplug are refused, and
 * while memory is frozen CPU hotplug too (EBUSY or EPERM to whoever asks, and a line in the log).
 * A reboot ends the session.
 *
 * Every structure starts with its size in bytes as the caller knows it.  The
 * kernel refuses a size it does not know with EINVAL.  Reserved fields and
 * unknown flags must be zero (EINVAL).  All integers are host-endian, all
 * structures have the same layout for 32- and 64-bit callers.
 */
#ifndef _UAPI_LIVEDUMP_H
#define _UAPI_LIVEDUMP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define LIVEDUMP_ABI_VERSION	1
#define LIVEDUMP_DEVICE		"livedump"	/* /dev/livedump */
#define LIVEDUMP_VMCORE_DEVICE	"livedump-vmcore"	/* /dev/livedump-vmcore, see PREPARE_KEEP */
#define LIVEDUMP_PAGE_SIZE	4096

/*
 * Dump level: classes left out of the dump, makedumpfile's bits.  Zero pages
 * (bit 0) are recognised by the reader of the session, not by the module.
 * Pages that cannot be read safely (hwpoison, offline) are always left out.
 */
#define LIVEDUMP_EXCLUDE_ZERO		(1U << 0)
#define LIVEDUMP_EXCLUDE_CACHE		(1U << 1)	/* page cache without private data */
#define LIVEDUMP_EXCLUDE_CACHE_PRIVATE	(1U << 2)	/* all page cache */
#define LIVEDUMP_EXCLUDE_USER		(1U << 3)	/* anonymous and hugetlb pages */
#define LIVEDUMP_EXCLUDE_FREE		(1U << 4)
#define LIVEDUMP_EXCLUDE_ALL		0x1fU		/* the default */

/* What a page is, by its struct page as of the stop. */
enum livedump_class {
	LIVEDUMP_CLASS_UNKNOWN		= 0,	/* not classified yet; never reported */
	LIVEDUMP_CLASS_KERNEL		= 1,
	LIVEDUMP_CLASS_CACHE		= 2,
	LIVEDUMP_CLASS_CACHE_PRIVATE	= 3,
	LIVEDUMP_CLASS_USER		= 4,
	LIVEDUMP_CLASS_HUGETLB		= 5,
	LIVEDUMP_CLASS_FREE		= 6,
	LIVEDUMP_CLASS_OFFLINE		= 7,	/* ballooned out, or of a block that is not online */
	LIVEDUMP_CLASS_HWPOISON		= 8,
	LIVEDUMP_CLASS_SELF		= 9,	/* this session's own reserve and tables */
	LIVEDUMP_CLASS_UNMAPPED		= 10,	/* RAM without a mapping in the direct map */
	LIVEDUMP_NR_CLASSES		= 11,
};
#define LIVEDUMP_CLASS_SLOTS	16		/* size of the by-class arrays below */

/* What happens when the reserve is used up. */
enum livedump_mode {
	LIVEDUMP_MODE_STRICT		= 0,	/* the dump fails, the node does not */
	LIVEDUMP_MODE_BEST_EFFORT	= 1,	/* the page is lost: counted and listed */
};

enum livedump_state {
	LIVEDUMP_STATE_IDLE		= 0,	/* no session */
	LIVEDUMP_STATE_PREPARED		= 1,
	LIVEDUMP_STATE_FROZEN		= 2,
	LIVEDUMP_STATE_THAWED		= 3,	/* restored, statistics still readable */
};

/* Why a frozen session can no longer give a good dump (livedump_stats.failure). */
enum livedump_failure {
	LIVEDUMP_FAILURE_NONE		= 0,
	LIVEDUMP_FAILURE_RESERVE	= 1,	/* strict, and the reserve was used up */
	LIVEDUMP_FAILURE_DEADLINE	= 2,	/* thawed by the deadline */
	LIVEDUMP_FAILURE_REBOOT		= 3,	/* thawed because the machine goes down */
};

/* Why PREPARE refused (livedump_prepare.refusal); set with an error, otherwise NONE. */
enum livedump_refusal {
	LIVEDUMP_REFUSAL_NONE		= 0,	/* an argument (EINVAL), or a signal */
	LIVEDUMP_REFUSAL_SESSION	= 1,	/* EBUSY: there is a session */
	LIVEDUMP_REFUSAL_SUSPEND	= 2,	/* EBUSY: suspend or hibernation is under way */
	LIVEDUMP_REFUSAL_MEMORY_HOTPLUG	= 3,	/* EBUSY: memory is going on- or offline */
	LIVEDUMP_REFUSAL_LOCKDOWN	= 4,	/* EPERM */
	LIVEDUMP_REFUSAL_XEN_PV		= 5,	/* EOPNOTSUPP, and those to 11 */
	LIVEDUMP_REFUSAL_TRACEPOINT	= 6,	/* no exceptions:page_fault_kernel, or no probe on it */
	LIVEDUMP_REFUSAL_ENTRY_BITS	= 7,	/* somebody uses the page-table bits for marks */
	LIVEDUMP_REFUSAL_STACKS		= 8,	/* kernel stacks lie in the direct map */
	LIVEDUMP_REFUSAL_LAYOUT		= 9,	/* RAM, per-CPU areas or idle tasks not as known */
	LIVEDUMP_REFUSAL_VMCOREINFO	= 10,	/* the kernel has none */
	LIVEDUMP_REFUSAL_TSC		= 11,	/* no time stamp counter */
	LIVEDUMP_REFUSAL_MEMORY		= 12,	/* ENOMEM: too little for reserve and bookkeeping */
	LIVEDUMP_REFUSAL_SHUTDOWN	= 13,	/* EBUSY: the machine goes down */
};

/*
 * livedump_prepare.flags.  KEEP: pages stay readable until the thaw, through
 * /dev/livedump-vmcore, also those that NEXT has handed out.  Their copies are not given
 * back to the reserve, so it must hold every page written while frozen.
 *
 * ACK: a page that NEXT has handed out is not done with before the owner acknowledges it
 * (LIVEDUMP_IOC_ACK), once it is where it outlives the owner.  After a TAKEOVER all pages that
 * were handed out and not acknowledged come again, with the content of the stop.  Until then
 * their copies stay in the reserve, and a write to them takes a slot of it.  Not together with KEEP.
 */
#define LIVEDUMP_PREPARE_KEEP		(1U << 0)
#define LIVEDUMP_PREPARE_ACK		(1U << 1)
#define LIVEDUMP_PREPARE_FLAGS		0x3U	/* all of them */

/*
 * PREPARE: allocate everything, look at the page tables, register the fault hook.
 *
 * EPERM        kernel lockdown (confidentiality) forbids reading kernel memory
 * EBUSY        there is a session already, or something that must not meet one
 * EOPNOTSUPP   this kernel or machine cannot be dumped
 * ENOMEM       not enough free memory for the reserve
 *
 * Of these errors refusal says which it is, and the kernel log has the details.
 * EINVAL besides the usual: a grace without a UUID.
 */
struct livedump_prepare {
	__u32 size;
	__u32 abi_version;	/* LIVEDUMP_ABI_VERSION */
	__u32 exclude;		/* LIVEDUMP_EXCLUDE_* */
	__u32 mode;		/* enum livedump_mode */
	__u64 reserve_bytes;	/* limit for copies and tables; 0: a share of free memory */
	__u64 deadline_ms;	/* from FREEZE to the forced thaw; 0: one hour */
	__u8  uuid[16];		/* names the session in logs and statistics */
	/* out */
	__u64 max_pfn;		/* one more than the last page frame of RAM */
	__u64 ram_pages;
	__u64 reserve_pages;	/* pages the reserve really has */
	__u64 overhead_bytes;	/* memory held besides the reserve */
	__u64 prepare_ns;
	__u64 flags;		/* in: LIVEDUMP_PREPARE_* */
	__u32 grace_ms;		/* in: how long a frozen session outlives its owner; 0: not at all */
	__u32 refusal;		/* out, with an error too: enum livedump_refusal */
	/*
	 * A dry run: memory is frozen for calibrate_ms (0: not at all, at most 10,000), the
	 * pages written are counted, and it is thawed again, all within PREPARE.  The reserve is
	 * made large enough for a dump of expected_ms, as far as reserve_bytes and free memory allow.
	 */
	__u32 calibrate_ms;	/* in */
	__u32 expected_ms;	/* in: from FREEZE to THAW */
	__u32 estimate_pages;	/* out: likely needed; 0: no dry run, or a CPU could not be held */
	__u32 reserved0;
};

/*
 * FREEZE: the stop.  EAGAIN: a CPU did not arrive in time, nothing was changed
 * (statistics name it); ENOSPC: the reserve cannot hold even the copies of the stop.
 */
struct livedump_freeze {
	__u32 size;
	__u32 nr_cpus;			/* out: CPUs with registers in the notes */
	/* out */
	__u64 stop_ns;			/* from before the first CPU was held till the last had left */
	__u64 classify_ns;
	__u64 notes_bytes;		/* size for LIVEDUMP_IOC_NOTES */
	__u64 pages_to_dump;		/* pages NEXT will report, lost ones included */
	__u64 class_pages[LIVEDUMP_CLASS_SLOTS];
	__u64 realtime_ns;		/* wall clock at the stop */
	__u64 reserved[4];
};

/* NOTES: ELF notes: NT_PRSTATUS of each online CPU in order (pr_pid = cpu + 1), VMCOREINFO. */
struct livedump_notes {
	__u32 size;
	__u32 reserved0;
	__u64 buf;			/* user address */
	__u64 buf_bytes;		/* in: room; out: bytes written.  ENOSPC: too small */
	__u64 vmcoreinfo_offset;	/* out: of the VMCOREINFO text in buf */
	__u64 vmcoreinfo_bytes;		/* out */
	char  utsname[6][65];		/* out: sysname nodename release version machine domainname */
	__u8  reserved[10];
};

#define LIVEDUMP_PAGE_COPY	(1U << 0)	/* came from the reserve */
#define LIVEDUMP_PAGE_LOST	(1U << 1)	/* content is gone: no data, leave it out */
#define LIVEDUMP_PAGE_UNCOVERED	(1U << 2)	/* written through a mapping that is not
						 * protected: may not be of the one instant */
#define LIVEDUMP_PAGE_TABLE	(1U << 3)	/* a page table: the processor may have set Accessed and
						 * Dirty bits in it since the stop */

struct livedump_page {
	__u64 pfn;
	__u32 class_id;			/* enum livedump_class */
	__u32 flags;			/* LIVEDUMP_PAGE_* */
};

/*
 * NEXT: the next pages, at most max_pages.  Page i's content is at
 * buf + i * LIVEDUMP_PAGE_SIZE.  Several threads may call it at once; each page is
 * reported exactly once.  nr_pages == 0 means that all have been reported.
 *
 * ENODATA  the session failed (see livedump_stats.failure)
 * EFAULT   bad buffer; no page was handed out.  Only if the memory of this structure itself goes away during
 *          the call, there is nowhere to say how many were: then those of the call do not come again, unless
 *          the session acknowledges, and then after a TAKEOVER.  Whoever lets that happen must thaw.
 */
struct livedump_next {
	__u32 size;
	__u32 max_pages;		/* 1 .. LIVEDUMP_NEXT_MAX */
	__u64 buf;			/* user address, max_pages * LIVEDUMP_PAGE_SIZE */
	__u64 pages;			/* user address of struct livedump_page[max_pages] */
	__u32 nr_pages;			/* out */
	__u32 reserved0;
	__u64 reserved[2];
};
#define LIVEDUMP_NEXT_MAX	1024

/* STATS: readable in every state by the owner of the session. */
struct livedump_stats {
	__u32 size;
	__u32 state;			/* enum livedump_state */
	__u32 failure;			/* enum livedump_failure */
	__u32 stop_attempts;
	__u64 stop_ns;			/* from before the first CPU was held till the last had left */
	__u64 rendezvous_ns;		/* parts of it: until the last CPU arrived, */
	__u64 copies_ns;		/* pages copied, */
	__u64 entries_ns;		/* entries changed, */
	__u64 flush_ns;			/* until the last CPU had flushed its TLB */
	__u64 entries_pud;		/* changed in the stop, by level */
	__u64 entries_pmd;
	__u64 entries_pte;
	__u64 stop_copies;		/* pages copied in the stop */
	__u64 faults;			/* faults mended */
	__u64 fault_copies;
	__u64 fault_pushdowns;
	__u64 fault_splits;
	__u64 fault_excluded;		/* released without a copy: the class is left out */
	__u64 copies;			/* in all */
	__u64 reserve_pages;
	__u64 reserve_low;		/* fewest free reserve pages seen */
	__u64 lost_pages;
	__u64 uncovered_pages;		/* to be dumped, reachable by unprotected mappings */
	__u64 pages_to_dump;
	__u64 pages_reported;
	__u64 class_pages[LIVEDUMP_CLASS_SLOTS];
	__u64 missing_cpus;		/* bit per CPU (of the first 64) that missed the last stop */
	__u64 tables_split;		/* huge entries split before the stop or by faults */
	__u64 tables_joined;		/* of these, joined again by thaw */
	__u64 thaw_ns;
	__u64 registers_ns;		/* longest time a CPU took to save its registers: in rendezvous_ns */
	__u64 pages_acked;
	__u64 page_tables;		/* to be dumped with LIVEDUMP_PAGE_TABLE */
	__u64 unwatched;		/* LIVEDUMP_UNWATCHED_* */
	__u64 dma_pages;		/* of the uncovered ones: devices may write them */
	__u32 dma_devices;		/* devices that write memory themselves */
	__u32 dma_devices_unknown;	/* of these: which pages is not known, and none is flagged */
	__u64 reserved[2];
};

/* What could not be watched on this kernel, so changes of pages go unnoticed. */
#define LIVEDUMP_UNWATCHED_MAPPINGS	(1U << 0)	/* of pages in use, made after the stop */
#define LIVEDUMP_UNWATCHED_CODE		(1U << 1)	/* patched after the stop */
#define LIVEDUMP_UNWATCHED_ATTRIBUTES	(1U << 2)	/* memory made writable after the stop */
#define LIVEDUMP_UNWATCHED_DMA		(1U << 3)	/* buffers handed to devices after the stop */
#define LIVEDUMP_UNWATCHED_PROGRAMS	(1U << 4)	/* the kernel's pages, mapped into programs after it */

/*
 * TAKEOVER: makes the caller's file the owner of a frozen session whose owner is gone.
 * The deadline goes on; a new grace begins when this owner goes too.
 *
 * EINVAL  the file has a session
 * ESRCH   there is no session: it ended, or there never was one
 * ENOENT  there is one, of another UUID
 * EBUSY   it is not frozen, or its owner lives
 *
 * Pages that NEXT has handed to the former owner do not come again, unless the session
 * acknowledges (LIVEDUMP_PREPARE_ACK): then those without acknowledgement do.
 */
struct livedump_takeover {
	__u32 size;
	__u32 flags;			/* none yet */
	__u8  uuid[16];
	/* out */
	__u64 deadline_ms;		/* what is left of it */
	__u64 pages_reported;		/* by former owners and done with: with ACK the acknowledged ones */
	struct livedump_prepare prepare; /* as PREPARE and FREEZE were answered */
	struct livedump_freeze freeze;
	__u64 reserved[4];
};

/*
 * ACK: these pages, handed out by NEXT, need not come again.  Any order, any thread.  Pages that were
 * not handed out, or are acknowledged already, are passed over.
 *
 * EINVAL  not frozen, or PREPARE did not ask for it
 */
struct livedump_ack {
	__u32 size;
	__u32 nr_pages;			/* 1 .. LIVEDUMP_NEXT_MAX */
	__u64 pages;			/* user address of struct livedump_page[]; pfn counts */
	__u32 nr_acked;			/* out: how many this call made so */
	__u32 reserved[3];
};

#define LIVEDUMP_IOC_MAGIC	0xd6
#define LIVEDUMP_IOC_PREPARE	_IOWR(LIVEDUMP_IOC_MAGIC, 1, struct livedump_prepare)
#define LIVEDUMP_IOC_FREEZE	_IOWR(LIVEDUMP_IOC_MAGIC, 2, struct livedump_freeze)
#define LIVEDUMP_IOC_NOTES	_IOWR(LIVEDUMP_IOC_MAGIC, 3, struct livedump_notes)
#define LIVEDUMP_IOC_NEXT	_IOWR(LIVEDUMP_IOC_MAGIC, 4, struct livedump_next)
#define LIVEDUMP_IOC_STATS	_IOWR(LIVEDUMP_IOC_MAGIC, 5, struct livedump_stats)
#define LIVEDUMP_IOC_THAW	_IO(LIVEDUMP_IOC_MAGIC, 6)
#define LIVEDUMP_IOC_TAKEOVER	_IOWR(LIVEDUMP_IOC_MAGIC, 7, struct livedump_takeover)
#define LIVEDUMP_IOC_ACK	_IOWR(LIVEDUMP_IOC_MAGIC, 8, struct livedump_ack)

#endif /* _UAPI_LIVEDUMP_H */

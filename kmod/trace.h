/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Trace events livedump:freeze, fault, copy, lost and thaw (see docs/kmod.md).
 *
 * fault, copy and lost come from the fault path.  To record them, tracing writes its own
 * memory, which is protected like any other: such a write faults in turn, in the
 * middle of our probe.  That ends, and harms nothing:
 *
 *  - An event is sent only after what it tells of is complete, and the entry writable (or, for
 *    the pages of a huge leaf, the page's word changed): a nested fault on the same page has
 *    nothing to save.  Each fault makes one more page writable, so there are
 *    only so many.
 *  - The ring buffer takes a nested writer for an interrupt, and drops its event if it is nested
 *    once more in the same context; programs attached by perf are not run again.
 *  - In an NMI nothing is sent at all: its stack has room for our probe, but not for a row of
 *    nested faults with tracing in between.
 *
 * So events can be fewer than the counters say, by those of NMIs and by nested ones, and they
 * are never more.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM livedump

#if !defined(_LIVEDUMP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _LIVEDUMP_TRACE_H

#include <linux/tracepoint.h>

#ifndef LD_FAULT_PUSHDOWN
/* What mending a fault took. */
# define LD_FAULT_PUSHDOWN	BIT(0)	/* protection of a gigabyte moved one level down */
# define LD_FAULT_SPLIT		BIT(1)	/* a huge leaf was split */
# define LD_FAULT_LEAF		BIT(2)	/* a huge leaf was released as a whole */
# define LD_FAULT_PAGE		BIT(3)	/* a page was released */
# define LD_FAULT_COPY		BIT(4)	/* ... and a copy was made of it */
# define LD_FAULT_THAW		BIT(5)	/* an entry was released while the session ended */
#endif

TRACE_EVENT(freeze,
	TP_PROTO(u64 stop_ns, u64 entries, u64 copies, u64 to_dump),
	TP_ARGS(stop_ns, entries, copies, to_dump),
	TP_STRUCT__entry(
		__field(u64, stop_ns)
		__field(u64, entries)
		__field(u64, copies)
		__field(u64, to_dump)
	),
	TP_fast_assign(
		__entry->stop_ns = stop_ns;
		__entry->entries = entries;
		__entry->copies = copies;
		__entry->to_dump = to_dump;
	),
	TP_printk("stop_ns=%llu entries=%llu copies=%llu to_dump=%llu",
		  __entry->stop_ns, __entry->entries, __entry->copies, __entry->to_dump)
);

TRACE_EVENT(fault,
	TP_PROTO(unsigned long address, unsigned int what),
	TP_ARGS(address, what),
	TP_STRUCT__entry(
		__field(unsigned long, address)
		__field(unsigned int, what)
	),
	TP_fast_assign(
		__entry->address = address;
		__entry->what = what;
	),
	TP_printk("address=0x%lx what=%s", __entry->address,
		  __print_flags(__entry->what, "|",
				{ LD_FAULT_PUSHDOWN, "pushdown" },
				{ LD_FAULT_SPLIT, "split" },
				{ LD_FAULT_LEAF, "leaf" },
				{ LD_FAULT_PAGE, "page" },
				{ LD_FAULT_COPY, "copy" },
				{ LD_FAULT_THAW, "thaw" }))
);

DECLARE_EVENT_CLASS(livedump_page_event,
	TP_PROTO(unsigned long pfn, u32 class_id),
	TP_ARGS(pfn, class_id),
	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(u32, class_id)
	),
	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->class_id = class_id;
	),
	TP_printk("pfn=0x%lx class=%u", __entry->pfn, __entry->class_id)
);

/* A fault's copy; those of the stop are counted in freeze. */
DEFINE_EVENT(livedump_page_event, copy,
	TP_PROTO(unsigned long pfn, u32 class_id),
	TP_ARGS(pfn, class_id));

DEFINE_EVENT(livedump_page_event, lost,
	TP_PROTO(unsigned long pfn, u32 class_id),
	TP_ARGS(pfn, class_id));

TRACE_EVENT(thaw,
	TP_PROTO(u64 thaw_ns, u64 faults, u64 reported, u64 lost),
	TP_ARGS(thaw_ns, faults, reported, lost),
	TP_STRUCT__entry(
		__field(u64, thaw_ns)
		__field(u64, faults)
		__field(u64, reported)
		__field(u64, lost)
	),
	TP_fast_assign(
		__entry->thaw_ns = thaw_ns;
		__entry->faults = faults;
		__entry->reported = reported;
		__entry->lost = lost;
	),
	TP_printk("thaw_ns=%llu faults=%llu reported=%llu lost=%llu",
		  __entry->thaw_ns, __entry->faults, __entry->reported, __entry->lost)
);

#endif /* _LIVEDUMP_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>

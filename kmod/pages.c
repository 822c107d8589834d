// SPDX-License-Identifier: GPL-2.0-only
/*
 * One 32-bit word per page frame says what it is and where its content of the
 * stop is to be found:
 *
 *	bits 0-3   class, 0 while nobody has looked
 *	bits 4-6   state
 *	bit 7      REPORTED: NEXT has handed the page out
 *	bits 8-31  slot of the reserve, in state COPY
 *
 *	UNTOUCHED -> COPY      the content was saved to the reserve
 *	UNTOUCHED -> LOST      ... could not be saved
 *	UNTOUCHED -> DONE      the sweep has reported the page itself
 *	COPY, LOST -> DONE     reported
 *
 * A session that keeps its pages (LIVEDUMP_PREPARE_KEEP) never goes to DONE: NEXT
 * only sets REPORTED, which says nothing about where the content is.  An
 * UNTOUCHED page stays protected after it was reported, so a later write saves it
 * as any other, and a slot is not used again before the thaw.
 *
 * A session whose owner acknowledges (LIVEDUMP_PREPARE_ACK) sets REPORTED too, and the
 * acknowledgement makes it DONE; until then the page can come again, for a new owner:
 *
 *	UNTOUCHED, COPY, LOST -> the same with REPORTED		handed out
 *	REPORTED -> DONE					acknowledged; a slot is free again
 *	REPORTED UNTOUCHED -> REPORTED COPY			written meanwhile, saved
 *	REPORTED UNTOUCHED -> REPORTED GONE			... could not be saved: no loss yet
 *	REPORTED -> without it, GONE -> LOST			takeover: it comes again
 *
 * A slot is in the queue of copies only while its word is COPY without REPORTED: whoever
 * makes it that queues the slot, and NEXT takes it off before it sets REPORTED.
 *
 * Invariant: while a word is UNTOUCHED, no mapping that is protected lets anybody
 * write the page.  Whoever makes a mapping of the page writable has first seen,
 * or made, the word something else, or the page belongs to a class that is left out.
 *
 * From this follows that a copy is good exactly if the exchange of the word from
 * UNTOUCHED succeeds after it: had anybody released the page before, the word
 * would have changed before that.  A copy torn by another CPU's write can never
 * win, and no lock is needed; all of it works in NMI context.
 *
 * Barriers: cmpxchg on the word is a full barrier.  It orders the copy (before)
 * against its publication, and the publication against the page-table entry that is
 * made writable after it (wrprotect.c, release_entry(), a cmpxchg too).  A reader
 * that sees COPY sees the slot's content through the address dependency.
 */
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <linux/ioport.h>
#include <linux/memory_hotplug.h>
#include <linux/sched.h>
#include <asm/asm.h>
#include "compat.h"
#include "livedump.h"
#include "trace.h"

#define W_CLASS_MASK	0xfU
#define W_STATE_SHIFT	4
#define W_STATE_MASK	(0x7U << W_STATE_SHIFT)
#define W_REPORTED	BIT(7)
#define W_SLOT_SHIFT	8

enum {
	UNTOUCHED	= 0,
	COPY		= 1,
	DONE		= 2,
	LOST		= 3,
	NOT_RAM		= 4,
	GONE		= 5,
};

unsigned long ld_max_pfn;
unsigned long ld_ram_pages, ld_offline_pages;
unsigned long *ld_hot, *ld_self, *ld_uncovered, *ld_tables;
struct ld_counters ld_counters;

static atomic_t *words;
/*
 * What is RAM and online, in order.  The stop asks about pages all over memory, whose words would
 * have to be fetched.
 */
static struct ld_ram_range { unsigned long first, end; } *ram;
static unsigned int nr_ram, room_ram;
static u32 excluded_classes;	/* bit per class */
static bool keep;		/* content stays readable after it was reported */
static bool acks;		/* ... until that is acknowledged */
static atomic_long_t sweep_pos;
static DEFINE_SPINLOCK(returned_lock);
static struct ld_cursor returned[LD_MAX_NEXT_CALLERS];
static unsigned int nr_returned;

static inline u32 w_state(u32 w)
{
	return (w & W_STATE_MASK) >> W_STATE_SHIFT;
}

static inline u32 w_make(u32 class_id, u32 state, u32 slot)
{
	return class_id | (state << W_STATE_SHIFT) | (slot << W_SLOT_SHIFT);
}

static inline u32 w_slot(u32 w)
{
	return w >> W_SLOT_SHIFT;
}

/*
 * Copies one page; false if it can't be read (not mapped, or unmapped by
 * another CPU meanwhile).  The exception table makes the fault harmless.
 */
bool ld_copy_page_safe(void *dst, const void *src)
{
	unsigned long left = PAGE_SIZE / 8;

	asm volatile("1:	rep movsq\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+c" (left), "+D" (dst), "+S" (src)
		     : : "memory");
	return !left;
}

static inline void *pfn_va(unsigned long pfn)
{
	return __va((u64)pfn << PAGE_SHIFT);
}

bool ld_find_ram(unsigned long pfn, unsigned long *first, unsigned long *end)
{
	unsigned int lo = 0, hi = nr_ram;

	while (lo < hi) {
		unsigned int mid = lo + (hi - lo) / 2;

		if (pfn < ram[mid].first) {
			hi = mid;
		} else if (pfn >= ram[mid].end) {
			lo = mid + 1;
		} else {
			*first = ram[mid].first;
			*end = ram[mid].end;
			return true;
		}
	}
	return false;
}

bool ld_page_is_ram(unsigned long pfn)
{
	unsigned long first, end;

	return ld_find_ram(pfn, &first, &end);
}

bool ld_class_excluded(u32 class_id)
{
	return excluded_classes & BIT(class_id);
}

u32 ld_page_class(unsigned long pfn)
{
	return (u32)atomic_read(&words[pfn]) & W_CLASS_MASK;
}

void ld_page_set_class(unsigned long pfn, u32 class_id)
{
	u32 w = (u32)atomic_read(&words[pfn]);

	/* The first to look decides; all see the same struct page. */
	while (!(w & W_CLASS_MASK)) {
		u32 was = (u32)atomic_cmpxchg(&words[pfn], (int)w, (int)(w | class_id));

		if (was == w)
			return;
		w = was;
	}
}

/* What a page is, whatever its struct page made others think.  Before anything is reported. */
void ld_page_force_class(unsigned long pfn, u32 class_id)
{
	u32 w = (u32)atomic_read(&words[pfn]);

	for (;;) {
		u32 was = (u32)atomic_cmpxchg(&words[pfn], (int)w,
					      (int)((w & ~W_CLASS_MASK) | class_id));

		if (was == w)
			return;
		w = was;
	}
}

/*
 * UNTOUCHED -> state; class and REPORTED stay.  False: somebody was first.  *reported: had
 * the page been handed out by then?
 */
static bool leave_untouched(unsigned long pfn, u32 state, u32 slot, bool *reported)
{
	u32 w = (u32)atomic_read(&words[pfn]);

	while (w_state(w) == UNTOUCHED) {
		u32 to = acks && state == LOST && w & W_REPORTED ? GONE : state;
		u32 n = w_make(w & W_CLASS_MASK, to, slot) | (w & W_REPORTED);
		u32 was = (u32)atomic_cmpxchg(&words[pfn], (int)w, (int)n);

		if (was == w) {
			*reported = w & W_REPORTED;
			return true;
		}
		w = was;
	}
	return false;
}

/* True: the dump lacks it now. */
static bool lose(unsigned long pfn)
{
	bool reported;

	if (!leave_untouched(pfn, LOST, 0, &reported) || (acks && reported))
		return false;
	atomic64_inc(&ld_counters.lost);
	if (ld_reserve_is_writer())
		atomic64_inc(&ld_counters.lost_writer);
	return true;
}

void ld_page_lose(unsigned long pfn)
{
	if (lose(pfn))
		trace_lost(pfn, ld_page_class(pfn));
}

/* -ENOSPC: the reserve is used up.  1: a copy was made; 0: it was not needed. */
static int save_to_reserve(unsigned long pfn, enum ld_use use)
{
	u32 slot = ld_reserve_get(use);
	bool reported;
	bool was_protected = true;

	if (slot == LD_NO_SLOT)
		return -ENOSPC;
	if (!ld_copy_page_safe(ld_reserve_page(slot), pfn_va(pfn))) {
		/* Not mapped, so nothing could have been dumped of it. */
		ld_reserve_put(slot);
		ld_page_set_class(pfn, LIVEDUMP_CLASS_UNMAPPED);
		return 0;
	}
	/*
	 * Saved because another mapping is about to be written.  If the kernel itself has
	 * made the direct map's entry writable before, this may be too late: say so.
	 */
	if (use == LD_FOR_COPY)
		was_protected = ld_wp_is_protected((unsigned long)pfn_va(pfn));
	if (!leave_untouched(pfn, COPY, slot, &reported)) {
		ld_reserve_put(slot);
		return 0;
	}
	if (!was_protected && !test_and_set_bit(pfn, ld_uncovered))
		atomic64_inc(&ld_counters.uncovered_late);
	if (!reported)
		ld_reserve_queue_copy(slot, pfn);
	atomic64_inc(&ld_counters.copies);
	return 1;
}

/*
 * May all of these pages become writable without a copy of any?  Once true it stays so:
 * a class is set once, and no word becomes UNTOUCHED again.
 */
bool ld_pages_need_no_copy(unsigned long pfn, unsigned long nr)
{
	unsigned long end = min(pfn + nr, ld_max_pfn);

	for (; pfn < end; pfn++) {
		u32 w = (u32)atomic_read(&words[pfn]);

		if (w_state(w) == UNTOUCHED && !ld_class_excluded(w & W_CLASS_MASK))
			return false;
	}
	return true;
}

/*
 * The page is about to become writable: keep what must be kept.  Any context.
 * Never fails; a page that can't be kept becomes LOST.
 */
enum ld_saved ld_page_save(unsigned long pfn)
{
	u32 w, class_id;
	int copied;

	if (pfn >= ld_max_pfn)
		return LD_SAVED_NOTHING;
	w = (u32)atomic_read(&words[pfn]);
	if (w_state(w) != UNTOUCHED)
		return LD_SAVED_NOTHING;
	class_id = w & W_CLASS_MASK;
	if (!class_id) {
		/*
		 * The word's class counts, not what this look found: between the two
		 * the sweep of all struct pages may have ended and slots been reused.
		 */
		ld_page_set_class(pfn, ld_classify(pfn));
		class_id = ld_page_class(pfn);
	}
	atomic64_inc(&ld_counters.fault_class[class_id]);
	if (ld_class_excluded(class_id)) {
		atomic64_inc(&ld_counters.fault_excluded);
		return LD_SAVED_NOTHING;
	}
	copied = save_to_reserve(pfn, LD_FOR_COPY);
	if (copied > 0)
		atomic64_inc(&ld_counters.fault_copies);
	if (copied >= 0)
		return copied ? LD_SAVED_COPY : LD_SAVED_NOTHING;
	if (!lose(pfn))
		return LD_SAVED_NOTHING;
	ld_session_reserve_exhausted();
	return LD_SAVED_LOST;
}

/* Tells tracing what ld_page_save() did.  After the page is writable: see trace.h. */
void ld_page_trace(unsigned long pfn, enum ld_saved saved)
{
	if (in_nmi())
		return;
	if (saved == LD_SAVED_COPY)
		trace_copy(pfn, ld_page_class(pfn));
	else if (saved == LD_SAVED_LOST)
		trace_lost(pfn, ld_page_class(pfn));
}

/* Copies a page that is going to stay writable.  Its class is found out later. */
int ld_page_copy_in_stop(unsigned long pfn)
{
	if (pfn >= ld_max_pfn || w_state((u32)atomic_read(&words[pfn])) != UNTOUCHED)
		return 0;
	return min(save_to_reserve(pfn, LD_FOR_STOP), 0);
}

/*
 * In the stop: a mapping of the page stays writable.  What the stop has copied is of
 * the instant all the same.
 */
void ld_page_uncover(unsigned long pfn)
{
	if (pfn < ld_max_pfn && w_state((u32)atomic_read(&words[pfn])) == UNTOUCHED)
		set_bit(pfn, ld_uncovered);
}

/* After it: the page is about to change, and no copy is made. */
void ld_page_uncover_late(unsigned long pfn)
{
	if (!test_and_set_bit(pfn, ld_uncovered))
		atomic64_inc(&ld_counters.uncovered_late);
}

/* memcpy() that ends early where nothing is mapped. */
static bool read_safe(void *dst, const void *src, size_t n)
{
	asm volatile("1:	rep movsb\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+c" (n), "+D" (dst), "+S" (src)
		     : : "memory");
	return !n;
}

/*
 * Reads memory that is mapped at va in a protected range, as of the stop.  The
 * live bytes are good if the page has no copy after they were read: a copy is
 * published before the page becomes writable (see above).
 */
bool ld_read_as_of_stop(void *dst, unsigned long va, size_t n)
{
	unsigned long pfn = ld_va_to_pfn(va);
	u32 w;

	if (pfn >= ld_max_pfn || !read_safe(dst, (void *)va, n))
		return false;
	/* Pairs with the cmpxchg of leave_untouched(). */
	smp_rmb();
	w = (u32)atomic_read(&words[pfn]);
	if (w_state(w) == COPY)
		memcpy(dst, ld_reserve_page(w_slot(w)) + offset_in_page(va), n);
	if (IS_ALIGNED(va | n, sizeof(long)))
		ld_window_take_marks_off(pfn, dst, n);
	return w_state(w) == UNTOUCHED || w_state(w) == COPY;
}

/* The sweep begins, or begins again. */
void ld_pages_classified(void)
{
	atomic_long_set(&sweep_pos, 0);
	nr_returned = 0;
}

/* In the stop: where the content of a page is, its copy or the page itself; NULL: nowhere. */
const void *ld_page_stop_content(unsigned long pfn)
{
	u32 w = (u32)atomic_read(&words[pfn]);

	if (w_state(w) == COPY)
		return ld_reserve_page(w_slot(w));
	return ld_va_to_pfn((unsigned long)pfn_va(pfn)) == ULONG_MAX ? NULL : pfn_va(pfn);
}

/*
 * May the page have been written since the stop by a way that is not covered?  Programs
 * write their pages and those of files through mappings of their own, which come and go.
 */
bool ld_page_is_uncovered(unsigned long pfn, u32 class_id)
{
	const u32 users = BIT(LIVEDUMP_CLASS_USER) | BIT(LIVEDUMP_CLASS_HUGETLB) |
			  BIT(LIVEDUMP_CLASS_CACHE) | BIT(LIVEDUMP_CLASS_CACHE_PRIVATE);

	return test_bit(pfn, ld_uncovered) || BIT(class_id) & users;
}

static u32 page_flags(unsigned long pfn, u32 class_id)
{
	return (ld_page_is_uncovered(pfn, class_id) ? LIVEDUMP_PAGE_UNCOVERED : 0) |
	       (test_bit(pfn, ld_tables) ? LIVEDUMP_PAGE_TABLE : 0);
}

static void describe(struct livedump_page *out, unsigned long pfn, u32 class_id, u32 flags)
{
	if (!(flags & LIVEDUMP_PAGE_LOST))
		flags |= page_flags(pfn, class_id);
	out->pfn = pfn;
	out->class_id = class_id;
	out->flags = flags;
	atomic64_inc(&ld_counters.reported);
}

/* What a word becomes when its page is handed out. */
static u32 w_reported(u32 w)
{
	return keep || acks ? w | W_REPORTED : w_make(w & W_CLASS_MASK, DONE, 0);
}

/* To the last state.  False: the word has changed. */
static bool finish(unsigned long pfn, u32 w)
{
	return (u32)atomic_cmpxchg(&words[pfn], (int)w,
				   (int)w_make(w & W_CLASS_MASK, DONE, 0)) == w;
}

/* Reports COPY or LOST.  False: the word has changed, or somebody else took it. */
static bool take(unsigned long pfn, u32 w)
{
	return (u32)atomic_cmpxchg(&words[pfn], (int)w, (int)w_reported(w)) == w;
}

/* Reports UNTOUCHED, once its content was read.  False: a fault or another reader was first. */
static bool take_untouched(unsigned long pfn)
{
	u32 w = (u32)atomic_read(&words[pfn]);

	while (w_state(w) == UNTOUCHED && !(w & W_REPORTED)) {
		u32 was = (u32)atomic_cmpxchg(&words[pfn], (int)w, (int)w_reported(w));

		if (was == w)
			return true;
		w = was;
	}
	return false;
}

/* Reports a page in state COPY.  The caller got it from the queue, so it is alone. */
static bool report_copy(unsigned long pfn, u32 slot, void *dst, struct livedump_page *out)
{
	u32 w = (u32)atomic_read(&words[pfn]);
	u32 class_id = w & W_CLASS_MASK;
	bool wanted = w_state(w) == COPY && !(w & W_REPORTED) && !ld_class_excluded(class_id);

	if (wanted) {
		memcpy(dst, ld_reserve_page(slot), PAGE_SIZE);
		ld_window_take_marks_off(pfn, dst, PAGE_SIZE);
		describe(out, pfn, class_id, LIVEDUMP_PAGE_COPY);
	}
	if (keep || (acks && wanted)) {
		take(pfn, w);
	} else {
		finish(pfn, w);
		ld_reserve_put(slot);
	}
	return wanted;
}

/* Reports a page that the sweep has come to. */
static bool report_swept(unsigned long pfn, void *dst, struct livedump_page *out)
{
	u32 w = (u32)atomic_read(&words[pfn]);
	u32 class_id = w & W_CLASS_MASK;
	bool was_protected;

	if (w_state(w) == NOT_RAM || w & W_REPORTED || ld_class_excluded(class_id))
		return false;
	if (w_state(w) == LOST && take(pfn, w)) {
		describe(out, pfn, class_id, LIVEDUMP_PAGE_LOST);
		return true;
	}
	if (w_state(w) != UNTOUCHED)
		return false;		/* reported already, or in the queue of copies */
	if (!ld_copy_page_safe(dst, pfn_va(pfn))) {
		/* It was mapped when it was classified; it is gone now. */
		ld_page_lose(pfn);
		w = (u32)atomic_read(&words[pfn]);
		if (w_state(w) != LOST || !take(pfn, w))
			return false;
		describe(out, pfn, class_id, LIVEDUMP_PAGE_LOST);
		return true;
	}
	/*
	 * The word alone proves nothing if the kernel itself has made the entry
	 * writable meanwhile (set_memory_rw and its like).  Then say so.
	 */
	was_protected = ld_wp_is_protected((unsigned long)pfn_va(pfn));
	if (!take_untouched(pfn))
		return false;		/* a fault saved it first: it is in the queue */
	if (!was_protected && !test_and_set_bit(pfn, ld_uncovered))
		atomic64_inc(&ld_counters.uncovered_late);
	ld_window_take_marks_off(pfn, dst, PAGE_SIZE);
	describe(out, pfn, class_id, 0);
	return true;
}

bool ld_page_is_wanted(unsigned long pfn)
{
	u32 w = (u32)atomic_read(&words[pfn]);

	return w_state(w) != NOT_RAM && !ld_class_excluded(w & W_CLASS_MASK);
}

int ld_page_read(unsigned long pfn, void *dst)
{
	struct livedump_page d = { .pfn = pfn };
	bool was_protected;
	u32 w;

	for (;;) {
		if (!ld_page_is_wanted(pfn))
			return 0;
		w = (u32)atomic_read(&words[pfn]);
		if (w_state(w) == COPY) {
			memcpy(dst, ld_reserve_page(w_slot(w)), PAGE_SIZE);
			break;
		}
		if (w_state(w) != UNTOUCHED)
			return -EIO;
		if (!ld_copy_page_safe(dst, pfn_va(pfn))) {
			ld_page_lose(pfn);	/* as the sweep does */
			continue;
		}
		was_protected = ld_wp_is_protected((unsigned long)pfn_va(pfn));
		/* Pairs with the cmpxchg of leave_untouched(), which comes before a release. */
		smp_rmb();
		if (w_state((u32)atomic_read(&words[pfn])) != UNTOUCHED)
			continue;	/* it may have been written meanwhile */
		if (!was_protected && !test_and_set_bit(pfn, ld_uncovered))
			atomic64_inc(&ld_counters.uncovered_late);
		break;
	}
	ld_window_take_marks_off(pfn, dst, PAGE_SIZE);
	d.class_id = w & W_CLASS_MASK;
	d.flags = page_flags(pfn, d.class_id);
	ld_truth_compare(dst, &d);
	return 1;
}

static bool next_stretch(struct ld_cursor *cur, unsigned long stretch)
{
	spin_lock(&returned_lock);
	if (nr_returned) {
		*cur = returned[--nr_returned];
		spin_unlock(&returned_lock);
		return true;
	}
	spin_unlock(&returned_lock);
	cur->pfn = (unsigned long)atomic_long_fetch_add((long)stretch, &sweep_pos);
	if (cur->pfn >= ld_max_pfn) {
		/* Keep it from running on for ever with every further call. */
		atomic_long_set(&sweep_pos, (long)ld_max_pfn);
		cur->pfn = cur->end = 0;
		return false;
	}
	cur->end = min(cur->pfn + stretch, ld_max_pfn);
	return true;
}

/* What is left of a stretch goes back, for the next caller. */
void ld_cursor_return(struct ld_cursor *cur)
{
	if (cur->pfn >= cur->end)
		return;
	spin_lock(&returned_lock);
	/* A new stretch is only begun when none is here, so there is at most one per caller. */
	if (!WARN_ON_ONCE(nr_returned >= ARRAY_SIZE(returned)))
		returned[nr_returned++] = *cur;
	spin_unlock(&returned_lock);
}

int ld_page_next(struct ld_cursor *cur, unsigned long stretch, void *dst,
		 struct livedump_page *out)
{
	for (;;) {
		unsigned long pfn;
		u32 slot = ld_reserve_pop_copy(&pfn);

		/* Copies first: their slots are needed for the next faults. */
		if (slot != LD_NO_SLOT) {
			if (report_copy(pfn, slot, dst, out))
				goto found;
			continue;
		}
		if (cur->pfn >= cur->end && !next_stretch(cur, stretch)) {
			/*
			 * Nothing here now.  A fault that has just won its page may
			 * be about to queue it: the session counts (session.c).
			 */
			return 0;
		}
		if (report_swept(cur->pfn++, dst, out))
			goto found;
		if (!(cur->pfn % 4096))
			cond_resched();
	}
found:
	ld_truth_reported(out);
	return 1;
}

static void add_online(unsigned long first, unsigned long end)
{
	unsigned long pfn;

	if (nr_ram && ram[nr_ram - 1].end == first)
		ram[nr_ram - 1].end = end;
	else if (nr_ram < room_ram)
		ram[nr_ram++] = (struct ld_ram_range){ first, end };
	else
		return;
	for (pfn = first; pfn < end; pfn++) {
		if (!(pfn % 4096))
			cond_resched();
		atomic_set(&words[pfn], 0);
	}
}

/*
 * What has been plugged in and is not online counts as RAM in /proc/iomem.  It is nobody's: its struct
 * pages hold nothing that can be trusted, and a hypervisor need not have memory behind it, so it must
 * not be read.  For all that follows there is no RAM.  That changes by whole sections only, and
 * not while there is a session (guard.c).
 */
static int add_ram(struct resource *res, void *arg)
{
	unsigned long first = PFN_UP(res->start);
	unsigned long last = PFN_DOWN(res->end + 1);	/* exclusive */
	unsigned long end;
	bool was_online = false;

	/* Memory may have been plugged in since; it is not online. */
	if (arg)
		last = min(last, ld_max_pfn);
	for (; first < last; first = end) {
		bool online = pfn_to_online_page(first);

		end = min(last, SECTION_ALIGN_DOWN(first) + PAGES_PER_SECTION);
		if (!arg) {
			ld_max_pfn = max(ld_max_pfn, end);
			ld_ram_pages += end - first;
			ld_offline_pages += online ? 0 : end - first;
			room_ram += online && !was_online;
		} else if (online) {
			add_online(first, end);
		}
		was_online = online;
	}
	return 0;
}

static int walk_ram(void *arg)
{
	return walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY,
				   0, (u64)-1, arg, add_ram);
}

u64 ld_pages_overhead(void)
{
	return (u64)ld_max_pfn * sizeof(*words) + 4 * BITS_TO_LONGS(ld_max_pfn) * sizeof(long);
}

/*
 * The owner has the page where it outlives him.  False: it was not handed out, or is
 * acknowledged already.
 */
bool ld_page_acknowledge(unsigned long pfn)
{
	u32 w;

	if (pfn >= ld_max_pfn)
		return false;
	do {
		w = (u32)atomic_read(&words[pfn]);
		if (!(w & W_REPORTED))
			return false;
	} while (!finish(pfn, w));
	if (w_state(w) == COPY)
		ld_reserve_put(w_slot(w));
	atomic64_inc(&ld_counters.acknowledged);
	return true;
}

/*
 * A new owner: what was handed out and not acknowledged comes again.  Nobody is in NEXT, for
 * the former owner's file is gone, but pages go on being written.
 */
void ld_pages_hand_out_again(void)
{
	unsigned long pfn;

	if (!acks)
		return;
	for (pfn = 0; pfn < ld_max_pfn; pfn++) {
		u32 w = (u32)atomic_read(&words[pfn]);

		if (!(pfn % 4096))
			cond_resched();
		while (w & W_REPORTED) {
			u32 n = w & ~W_REPORTED;
			u32 was;

			if (w_state(w) == GONE)
				n = w_make(w & W_CLASS_MASK, LOST, 0);
			was = (u32)atomic_cmpxchg(&words[pfn], (int)w, (int)n);
			if (was != w) {
				w = was;	/* a fault */
				continue;
			}
			atomic64_dec(&ld_counters.reported);
			if (w_state(w) == COPY)
				ld_reserve_queue_copy(w_slot(w), pfn);
			if (w_state(w) == GONE) {
				atomic64_inc(&ld_counters.lost);
				ld_session_reserve_exhausted();
			}
			break;
		}
	}
	ld_pages_classified();
}

int ld_pages_prepare(u32 exclude, u64 flags)
{
	unsigned long pfn;
	size_t map_bytes;

	ld_max_pfn = 0;
	ld_ram_pages = 0;
	ld_offline_pages = 0;
	nr_ram = 0;
	room_ram = 0;
	walk_ram(NULL);
	if (!ld_ram_pages) {
		pr_err("no System RAM found\n");
		return ld_refuse(LIVEDUMP_REFUSAL_LAYOUT, -EOPNOTSUPP);
	}
	keep = flags & LIVEDUMP_PREPARE_KEEP;
	acks = flags & LIVEDUMP_PREPARE_ACK;
	memset(&ld_counters, 0, sizeof(ld_counters));
	map_bytes = BITS_TO_LONGS(ld_max_pfn) * sizeof(long);
	words = ld_alloc(array_size(ld_max_pfn, sizeof(*words)));
	ram = ld_alloc(array_size(room_ram, sizeof(*ram)));
	ld_hot = ld_zalloc(map_bytes);
	ld_self = ld_zalloc(map_bytes);
	ld_uncovered = ld_zalloc(map_bytes);
	ld_tables = ld_zalloc(map_bytes);
	if (!words || !ram || !ld_hot || !ld_self || !ld_uncovered || !ld_tables) {
		ld_pages_release();
		return -ENOMEM;
	}
	for (pfn = 0; pfn < ld_max_pfn; pfn++) {
		if (!(pfn % 4096))
			cond_resched();
		atomic_set(&words[pfn], (int)w_make(0, NOT_RAM, 0));
	}
	walk_ram(words);
	/* The stop writes all of them while it protects. */
	ld_wp_add_own(words, array_size(ld_max_pfn, sizeof(*words)));
	ld_wp_add_own(ld_hot, map_bytes);
	ld_wp_add_own(ld_self, map_bytes);
	ld_wp_add_own(ld_uncovered, map_bytes);
	ld_wp_add_own(ld_tables, map_bytes);

	excluded_classes = BIT(LIVEDUMP_CLASS_OFFLINE) | BIT(LIVEDUMP_CLASS_HWPOISON) |
			   BIT(LIVEDUMP_CLASS_SELF) | BIT(LIVEDUMP_CLASS_UNMAPPED);
	if (exclude & (LIVEDUMP_EXCLUDE_CACHE | LIVEDUMP_EXCLUDE_CACHE_PRIVATE))
		excluded_classes |= BIT(LIVEDUMP_CLASS_CACHE);
	if (exclude & LIVEDUMP_EXCLUDE_CACHE_PRIVATE)
		excluded_classes |= BIT(LIVEDUMP_CLASS_CACHE_PRIVATE);
	if (exclude & LIVEDUMP_EXCLUDE_USER)
		excluded_classes |= BIT(LIVEDUMP_CLASS_USER) | BIT(LIVEDUMP_CLASS_HUGETLB);
	if (exclude & LIVEDUMP_EXCLUDE_FREE)
		excluded_classes |= BIT(LIVEDUMP_CLASS_FREE);
	return 0;
}

void ld_pages_release(void)
{
	vfree(words);
	nr_ram = 0;
	vfree(ram);
	vfree(ld_hot);
	vfree(ld_self);
	vfree(ld_uncovered);
	vfree(ld_tables);
	words = NULL;
	ram = NULL;
	ld_hot = NULL;
	ld_self = NULL;
	ld_uncovered = NULL;
	ld_tables = NULL;
}

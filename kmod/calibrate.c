// SPDX-License-Identifier: GPL-2.0-only
/*
 * How large a reserve is likely needed: a dry run tells.
 *
 * A dry run is a freeze whose pages nobody reads: the same plan, stop, classification
 * and faults as the real one some moments later, and then a thaw.  It is a stop of its own.
 * That is the price for an answer that counts what a dump will count: a page's class
 * must be that of one instant (a free page that is being handed out is the bulk of
 * all faults and needs no copy, but looks like a kernel page a moment later), and protecting
 * entries while other CPUs change them could leave a stack or a page table
 * read-only.  What it takes away is put back by the thaw of every session.
 *
 * Extrapolation: the number of distinct pages written grows ever more slowly, for what is
 * written often is soon in.  It is taken to grow by the same factor with each doubling of the
 * time, and the factor is what the second half of the dry run added to the first: 2 if new pages
 * are written all the time, 1 if nothing new is.  To that come the copies of the stop, which
 * were counted too, and a margin.
 */
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/sched/signal.h>
#include "compat.h"
#include "livedump.h"

#define MARGIN_NUM	5	/* a quarter more than the estimate */
#define MARGIN_DEN	4
#define FACTOR_BITS	16

static struct ld_calibration result;

struct ld_sample {
	u64 at;			/* ktime_get_ns() */
	u64 pages;		/* that a dump would have to keep */
	u64 by_class[LIVEDUMP_CLASS_SLOTS];
};

static void take_sample(struct ld_sample *sample)
{
	unsigned int i;

	sample->at = ktime_get_ns();
	sample->pages = atomic64_read(&ld_counters.fault_copies) +
			atomic64_read(&ld_counters.lost);
	for (i = 0; i < LIVEDUMP_CLASS_SLOTS; i++)
		sample->by_class[i] = atomic64_read(&ld_counters.fault_class[i]);
}

/* False: the caller is being killed. */
static bool wait_until(u64 at)
{
	for (;;) {
		u64 now = ktime_get_ns();

		if (now >= at)
			return true;
		if (fatal_signal_pending(current))
			return false;
		schedule_timeout_killable(nsecs_to_jiffies(at - now) + 1);
	}
}

void ld_calibrate_reset(void)
{
	memset(&result, 0, sizeof(result));
}

/**
 * ld_calibrate_observe() - watch the faults of a dry run
 * @start: when memory was frozen, in ktime_get_ns()
 * @ms: how long
 * @stop_ns: how long the stop took
 *
 * Context: process context, memory is frozen; sleeps.
 * Return: 0, or -EINTR if the caller is being killed.
 */
int ld_calibrate_observe(u64 start, u32 ms, u64 stop_ns)
{
	u64 ns = (u64)ms * NSEC_PER_MSEC;
	struct ld_sample half, full;
	unsigned int i;

	if (!wait_until(start + ns / 2))
		return -EINTR;
	take_sample(&half);
	/* On a busy machine the first sample may be late; the second needs as much time again. */
	if (!wait_until(max(start + ns, 2 * half.at - start)))
		return -EINTR;
	take_sample(&full);

	result.stop_ns = stop_ns;
	result.window_ns = full.at - start;
	result.half_ns = half.at - start;
	result.half_pages = half.pages;
	result.pages = full.pages;
	result.stop_copies = atomic64_read(&ld_counters.copies) -
			     atomic64_read(&ld_counters.fault_copies);
	for (i = 0; i < LIVEDUMP_CLASS_SLOTS; i++)
		result.per_second[i] = mul_u64_u64_div_u64(full.by_class[i], NSEC_PER_SEC,
							   max(result.window_ns, 1ULL));
	return 0;
}

/*
 * How much more is written in twice the time, in 1/65536: from 1 to 2.  The second half is
 * never the shorter one; if it is longer the factor is too large rather than too small.
 */
static u64 doubling(void)
{
	const u64 one = BIT_ULL(FACTOR_BITS);

	if (!result.half_pages)
		return 2 * one;
	return clamp_t(u64, div64_u64(result.pages << FACTOR_BITS, result.half_pages),
		       one, 2 * one);
}

/**
 * ld_calibrate_estimate() - pages that a dump of that duration likely needs
 * @expected_ms: from the freeze to the thaw
 *
 * Return: pages, never 0; what a dry run has seen is the least.
 */
u64 ld_calibrate_estimate(u32 expected_ms)
{
	u64 want = (u64)expected_ms * NSEC_PER_MSEC;
	u64 t = max(result.window_ns, 1ULL);
	u64 factor = doubling();
	u64 pages = max(result.pages, 1ULL);

	/* Never beyond RAM, so nothing overflows. */
	while (t < want && pages < ld_ram_pages) {
		u64 more = (pages * (factor - BIT_ULL(FACTOR_BITS))) >> FACTOR_BITS;

		/* The last stretch is less than a doubling: its share of it. */
		if (want - t < t)
			more = mul_u64_u64_div_u64(more, want - t, t);
		pages += more;
		t *= 2;
	}
	pages = min_t(u64, pages, ld_ram_pages) + result.stop_copies;
	result.estimate = pages * MARGIN_NUM / MARGIN_DEN;
	return result.estimate;
}

void ld_calibrate_get(struct ld_calibration *c)
{
	*c = result;
}

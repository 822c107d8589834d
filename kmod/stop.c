// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stop: holds every CPU for one instant.
 *
 * The leader, the CPU of the FREEZE call, sends an interrupt to each of the others
 * and waits, with interrupts off, until all have come, but no longer than a deadline.
 * A CPU that does not come (interrupts off, perhaps spinning on a lock whose holder has
 * come already) makes everybody leave; nothing has been changed by then, and the
 * attempt is repeated a few times.
 *
 *	phase	leader			others
 *	GATHER	waits for arrivals	save registers, arrive
 *	COPY	copies what is shared	copy what is theirs, report
 *		waits for the others
 *		changes the entries
 *	LEAVE	flushes its TLB		flush their TLB, leave
 *	RETREAT				leave
 *
 * An interrupt of an attempt that was given up may still be pending.  Its handler sees
 * that its attempt is over and returns; the module stays until it has run
 * (ld_stop_wait_idle()).
 *
 * Barriers: phase is written with smp_store_release() and read with
 * smp_load_acquire(), so what the leader did before a phase (the changed
 * entries before LEAVE) is seen by whoever sees the phase.  Arrivals and
 * reports are atomic_inc_return(), full barriers, read with atomic_read_acquire().
 */
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <asm/tsc.h>
#include <asm/processor-flags.h>
#include "compat.h"
#include "livedump.h"

static unsigned int stop_deadline_us = 20000;
module_param(stop_deadline_us, uint, 0644);
MODULE_PARM_DESC(stop_deadline_us, "Longest wait for the CPUs to arrive, in microseconds (default 20000)");

static unsigned int stop_attempts = 20;
module_param(stop_attempts, uint, 0644);
MODULE_PARM_DESC(stop_attempts, "How often the stop is tried before FREEZE gives up (default 20)");

enum phase { RETREAT, GATHER, COPY, LEAVE };

static int phase;
static unsigned int attempt;
/* attempt in the upper half, CPUs that have arrived in the lower */
static atomic64_t arrivals;
static atomic_t reported, flushed, pending;
static const struct ld_stop_ops *stop_ops;

struct ld_stop_cpu {
	call_single_data_t csd;
	u64 held;		/* time stamp counter */
	unsigned int came;	/* the last attempt it arrived in */
};

static DEFINE_PER_CPU(struct ld_stop_cpu, stop_cpu);

/*
 * The time stamp counter, not a clock: clocks may write memory that is being
 * protected.
 */
static inline u64 now(void)
{
	return rdtsc_ordered();
}

static u64 tsc_to_ns(u64 t)
{
	return tsc_khz ? mul_u64_u64_div_u64(t, 1000000, tsc_khz) : 0;
}

static u64 us_to_tsc(u64 us)
{
	return us * tsc_khz / 1000;
}

/*
 * Drops every translation of this CPU, global ones and all address spaces
 * included: what a change of CR4.PGE does.  Interrupts are off.
 */
static void flush_tlb_this_cpu(void)
{
	unsigned long cr4;

	asm volatile("mov %%cr4, %0" : "=r" (cr4) : : "memory");
	asm volatile("mov %0, %%cr4" : : "r" (cr4 ^ X86_CR4_PGE) : "memory");
	asm volatile("mov %0, %%cr4" : : "r" (cr4) : "memory");
}

static void flush_tlb_ipi(void *unused)
{
	unsigned long flags;

	local_irq_save(flags);
	flush_tlb_this_cpu();
	local_irq_restore(flags);
}

void ld_flush_tlb_all_cpus(void)
{
	on_each_cpu(flush_tlb_ipi, NULL, 1);
}

/* A CPU that slept through the end of its attempt must not wait in the next one. */
static void wait_for_phase_after(int old, unsigned int mine)
{
	while (smp_load_acquire(&phase) == old && READ_ONCE(attempt) == mine)
		cpu_relax();
}

/* Counts only for the attempt it was meant for, however late it comes. */
static void arrive(struct ld_stop_cpu *c, unsigned int mine)
{
	u64 old = atomic64_read(&arrivals);

	while ((unsigned int)(old >> 32) == mine) {
		u64 was = atomic64_cmpxchg(&arrivals, old, old + 1);

		if (was == old) {
			WRITE_ONCE(c->came, mine);
			return;
		}
		old = was;
	}
}

static void stop_other_cpu(void *info)
{
	struct ld_stop_cpu *c = this_cpu_ptr(&stop_cpu);
	unsigned int mine = READ_ONCE(attempt);
	int cpu = smp_processor_id();
	u64 start = now();

	if (smp_load_acquire(&phase) == GATHER) {
		ld_notes_capture_interrupted(cpu);
		arrive(c, mine);
		wait_for_phase_after(GATHER, mine);
		if (READ_ONCE(attempt) == mine && smp_load_acquire(&phase) == COPY) {
			stop_ops->each_cpu(cpu);
			atomic_inc_return(&reported);
			wait_for_phase_after(COPY, mine);
			if (READ_ONCE(attempt) == mine && smp_load_acquire(&phase) == LEAVE) {
				flush_tlb_this_cpu();
				c->held = now() - start;
				atomic_inc_return(&flushed);
			}
		}
	}
	atomic_dec(&pending);
}

static bool wait_for_arrivals(unsigned int n, u64 deadline)
{
	while ((u32)atomic64_read_acquire(&arrivals) < n) {
		if (now() > deadline)
			return false;
		cpu_relax();
	}
	return true;
}

static void wait_for(atomic_t *v, int n)
{
	while (atomic_read_acquire(v) < n)
		cpu_relax();
}

static void set_phase(int p)
{
	smp_store_release(&phase, p);
}

static int try_stop(const struct ld_stop_ops *ops, unsigned long caller,
		    struct ld_stop_times *times)
{
	u64 start, gathered, copied, changed, done;
	int cpu, me, others = 0, err;
	unsigned long flags;

	preempt_disable();
	me = smp_processor_id();
	stop_ops = ops;
	WRITE_ONCE(attempt, attempt + 1);
	atomic64_set(&arrivals, (u64)attempt << 32);
	atomic_set(&reported, 0);
	atomic_set(&flushed, 0);
	set_phase(GATHER);

	start = now();
	times->missing_cpus = 0;
	for_each_online_cpu(cpu) {
		struct ld_stop_cpu *c = per_cpu_ptr(&stop_cpu, cpu);

		if (cpu == me)
			continue;
		others++;
		atomic_inc(&pending);
		if (smp_call_function_single_async(cpu, &c->csd)) {
			/* The interrupt of an earlier attempt has not been taken yet. */
			atomic_dec(&pending);
		}
	}
	local_irq_save(flags);
	if (!wait_for_arrivals(others, start + us_to_tsc(stop_deadline_us))) {
		set_phase(RETREAT);
		local_irq_restore(flags);
		for_each_online_cpu(cpu)
			if (cpu != me && per_cpu(stop_cpu, cpu).came != attempt && cpu < 64)
				times->missing_cpus |= BIT_ULL(cpu);
		preempt_enable();
		return -EAGAIN;
	}
	gathered = now();
	err = ops->check();
	if (err) {
		set_phase(RETREAT);
		local_irq_restore(flags);
		preempt_enable();
		return err;
	}
	set_phase(COPY);
	ld_notes_capture_caller(me, caller);
	ops->each_cpu(me);
	err = ops->copy();
	/* Nobody can be late here: they only copy. */
	wait_for(&reported, others);
	copied = now();
	if (!err)
		err = ops->copy_error();
	if (err) {
		set_phase(RETREAT);
		local_irq_restore(flags);
		preempt_enable();
		return err;
	}
	ops->protect();
	changed = now();
	set_phase(LEAVE);
	flush_tlb_this_cpu();
	wait_for(&flushed, others);
	done = now();
	local_irq_restore(flags);
	preempt_enable();

	times->rendezvous_ns = tsc_to_ns(gathered - start);
	times->copies_ns = tsc_to_ns(copied - gathered);
	times->entries_ns = tsc_to_ns(changed - copied);
	times->flush_ns = tsc_to_ns(done - changed);
	times->stop_ns = tsc_to_ns(done - start);
	for_each_online_cpu(cpu)
		times->stop_ns = max(times->stop_ns, tsc_to_ns(per_cpu(stop_cpu, cpu).held));
	return 0;
}

/*
 * Stops all CPUs and runs ops.  -EAGAIN: some CPU could not be held (times->missing_cpus)
 * or the plan was out of date (none missing); any error: nothing was protected.
 */
int ld_stop_run(const struct ld_stop_ops *ops, unsigned long caller,
		struct ld_stop_times *times)
{
	int cpu, err = -EAGAIN;
	unsigned int i;

	if (!tsc_khz) {
		pr_err("no time stamp counter to measure the stop with\n");
		return -EOPNOTSUPP;
	}
	cpus_read_lock();
	if (!atomic_read(&pending))
		for_each_possible_cpu(cpu)
			per_cpu(stop_cpu, cpu).csd.func = stop_other_cpu;
	for (i = 0; i < max(stop_attempts, 1U); i++) {
		if (i)
			usleep_range(1000, 3000);
		err = ops->plan();
		if (err)
			break;
		times->attempts++;
		err = try_stop(ops, caller, times);
		if (err != -EAGAIN)
			break;
	}
	cpus_read_unlock();
	if (err == -EAGAIN)
		pr_err("gave up after %u attempts; CPUs that did not come: %*pbl\n",
		       times->attempts, 64, &times->missing_cpus);
	return err;
}

/* Before the module goes: every interrupt that was sent has been taken. */
void ld_stop_wait_idle(void)
{
	while (atomic_read(&pending))
		msleep(20);
	/* And its handler has returned. */
	synchronize_rcu();
}

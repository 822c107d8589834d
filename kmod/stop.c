// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stop: holds every CPU for one instant.
 *
 * The leader, the CPU of the FREEZE call, sends an interrupt to each of the others and
 * waits, with interrupts off, until all have come.  A CPU that has not come after
 * stop_nmi_us has interrupts off (perhaps it spins on a lock whose holder has come
 * already, and would wait for ever): it gets an NMI.  If one has not come even at the deadline,
 * everybody leaves; nothing has been changed by then, and the attempt is repeated a few times.
 *
 *	phase	leader				others
 *	GATHER	saves its registers		save registers, arrive
 *		waits for arrivals
 *	step	works until none is left	work, as long as there is some
 *	CLOSED	waits for who is still at work	wait
 *		judges: go on or retreat
 *	...
 *	LEAVE	flushes its TLB, leaves		flush their TLB, leave
 *	RETREAT	leaves				leave
 *
 * The steps are the session's: is the plan right, copies, leaves, upper entries.  A step is made of
 * pieces that any CPU can take, and all do so at the same time.  Nobody waits for a CPU that
 * has taken none: on a virtual machine it may not be running at all.  For the same reason the leader
 * leaves without waiting for the others: they do nothing before they have flushed.
 *
 * From GATHER to LEAVE a CPU may be in interrupt or in NMI context, in the middle of
 * anything.  So nobody takes a lock, prints or allocates.  While nothing is protected no write
 * of these contexts can fault; from the first changed entry on they write only what is never
 * protected: their stack, per-CPU areas, page tables, the module's data.  What the kernel
 * writes on the way out of the NMI may be protected, and is mended like any other write.
 *
 * Late interrupts.  An interrupt of an attempt that was given up, or whose CPU came by
 * NMI, may still be pending.  Its handler sees that its attempt is over and returns.  For
 * each CPU at most one NMI of ours is on its way (ld_stop_cpu.nmi); whenever it comes, our handler
 * owns up to it, and to one: an NMI that nobody owns up to is reported as an error of
 * the hardware.  If an NMI of somebody else comes between the flag and ours, it is the one that is
 * owned up to; ours then comes while that is handled, and the kernel expects such a second one.  The module cannot be unloaded before all have been taken (pin_while_pending()).
 *
 * Barriers: state is written with smp_store_release() and read with
 * smp_load_acquire(), so what the leader did before a phase (the changed
 * entries before LEAVE) is seen by whoever sees the phase.  Arrivals are a cmpxchg, a full
 * barrier, read with atomic64_read_acquire().  Who wants to work at a step counts itself in (a
 * full barrier) and then looks again whether the step is still open; the leader closes it, then
 * smp_mb(), then looks at the count: one of the two sees the other.
 * The handlers begin with smp_mb(): a sender that finds the interrupt of an earlier attempt still
 * pending sends none, so that one's handler must not have read the state before.
 */
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/workqueue.h>
#include <asm/apic.h>
#include <asm/nmi.h>
#include <asm/tsc.h>
#include <asm/processor-flags.h>
#include "compat.h"
#include "livedump.h"

static unsigned int stop_deadline_us = 20000;
module_param(stop_deadline_us, uint, 0644);
MODULE_PARM_DESC(stop_deadline_us, "Longest wait for the CPUs to arrive, in microseconds (default 20000)");

static unsigned int stop_nmi_us = 2000;
module_param(stop_nmi_us, uint, 0644);
MODULE_PARM_DESC(stop_nmi_us, "When to send an NMI to CPUs that have not arrived, in microseconds after the interrupt (default 2000)");

static unsigned int stop_attempts = 20;
module_param(stop_attempts, uint, 0644);
MODULE_PARM_DESC(stop_attempts, "How often the stop is tried before FREEZE gives up (default 20)");

#ifdef LIVEDUMP_TEST
/* A CPU that takes its interrupts but does not arrive, as if it took none. */
static int absent_cpu = -1;
module_param(absent_cpu, int, 0644);
MODULE_PARM_DESC(absent_cpu, "CPU that does not arrive in the stop (default -1: none)");
#else
# define absent_cpu (-1)
#endif

enum { RETREAT, GATHER, CLOSED, LEAVE, FIRST_STEP };
#define PHASE_BITS	8

/* One word, so that nobody takes the phase of one attempt for that of another. */
static u64 state;
/* attempt in the upper half, CPUs that have arrived in the lower */
static atomic64_t arrivals;
static atomic_t working;	/* CPUs at the present step, but for the leader */
static atomic_t left;		/* CPUs that have flushed, in this attempt */
/* Interrupts and NMIs that have not been taken. */
static atomic_t pending;
static const struct ld_stop_ops *stop_ops;
static cpumask_t missing;

struct ld_stop_cpu {
	call_single_data_t csd;
	atomic_t nmi;		/* 1: one of ours is on its way */
	bool interrupted;	/* our interrupt's handler runs */
	u32 came;		/* the last attempt it arrived in */
	u64 registers;		/* time it took to save them, and */
	u64 left_at;		/* when it left, by the time stamp counter */
	int flushed;		/* the last request that it flushed its TLB for */
};

static DEFINE_PER_CPU(struct ld_stop_cpu, stop_cpu);

/* Requests of ld_flush_tlb_all_cpus(). */
static atomic_t flush_request;

static inline u64 make_state(u32 attempt, unsigned int p)
{
	return ((u64)attempt << PHASE_BITS) | p;
}

static inline u32 attempt_of(u64 s)
{
	return s >> PHASE_BITS;
}

static inline unsigned int phase_of(u64 s)
{
	return s & (BIT(PHASE_BITS) - 1);
}

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
 * included: what a change of CR4.PGE does.  Interrupts are off.  If an NMI comes here
 * amidst the kernel's own change of CR4.PGE, the bit is left as it was found.
 */
static void flush_tlb_this_cpu(void)
{
	unsigned long cr4;

	asm volatile("mov %%cr4, %0" : "=r" (cr4) : : "memory");
	asm volatile("mov %0, %%cr4" : : "r" (cr4 ^ X86_CR4_PGE) : "memory");
	asm volatile("mov %0, %%cr4" : : "r" (cr4) : "memory");
}

/* Waits for the end of a phase; returns what comes after it. */
static u64 wait_for_end_of(u64 s)
{
	u64 next;

	/* Not for a certain phase: a CPU that slept through the end of its attempt must leave. */
	while ((next = smp_load_acquire(&state)) == s)
		cpu_relax();
	return next;
}

/* Counts only for the attempt it was meant for, however late it comes. */
static void arrive(struct ld_stop_cpu *c, u32 attempt)
{
	u64 old = atomic64_read(&arrivals);

	while ((u32)(old >> 32) == attempt) {
		u64 was = atomic64_cmpxchg(&arrivals, old, old + 1);

		if (was == old) {
			WRITE_ONCE(c->came, attempt);
			return;
		}
		old = was;
	}
}

/* regs: the interrupted context; NULL: it is to be found by unwinding. */
static void take_part(struct ld_stop_cpu *c, int cpu, const struct pt_regs *regs)
{
	u64 start = now();
	u64 s = smp_load_acquire(&state);
	u32 attempt = attempt_of(s);

	if (phase_of(s) != GATHER || cpu == absent_cpu)
		return;
	ld_notes_capture_interrupted(cpu, regs);
	c->registers = now() - start;
	stop_ops->arrive(cpu);
	arrive(c, attempt);
	for (;;) {
		s = wait_for_end_of(s);
		if (attempt_of(s) != attempt || phase_of(s) == RETREAT)
			return;
		if (phase_of(s) == LEAVE)
			break;
		if (phase_of(s) == CLOSED)
			continue;
		atomic_inc_return(&working);
		if (smp_load_acquire(&state) == s)
			stop_ops->steps[phase_of(s) - FIRST_STEP].work();
		atomic_dec_return(&working);
	}
	flush_tlb_this_cpu();
	c->left_at = now();
	atomic_inc_return(&left);
}

static void flush_if_asked(struct ld_stop_cpu *c)
{
	int request = atomic_read(&flush_request);

	if (READ_ONCE(c->flushed) == request)
		return;
	flush_tlb_this_cpu();
	smp_store_release(&c->flushed, request);
}

/*
 * Interrupts are off.  Also run, without an interrupt, by an idle loop that polls, and by the
 * sender for itself.
 */
static void on_interrupt(void *unused)
{
	struct ld_stop_cpu *c = this_cpu_ptr(&stop_cpu);

	/* An NMI from here on leaves it to us, for its registers would be ours. */
	WRITE_ONCE(c->interrupted, true);
	smp_mb();
	flush_if_asked(c);
	take_part(c, smp_processor_id(), NULL);
	WRITE_ONCE(c->interrupted, false);
	atomic_dec(&pending);
}

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	int cpu = raw_smp_processor_id();
	struct ld_stop_cpu *c = per_cpu_ptr(&stop_cpu, cpu);

	if (atomic_cmpxchg(&c->nmi, 1, 0) != 1)
		return NMI_DONE;	/* somebody else's */
	smp_mb();
	flush_if_asked(c);
	if (!READ_ONCE(c->interrupted))
		take_part(c, cpu, regs);
	atomic_dec(&pending);
	return NMI_HANDLED;
}

static struct nmiaction nmi_action = {
	.list		= LIST_HEAD_INIT(nmi_action.list),
	.handler	= on_nmi,
	.name		= KBUILD_MODNAME,
	/* The kernel reports handlers that run longer than ever before; this one may. */
	.max_duration	= U64_MAX,
};

static void send_interrupt(int cpu)
{
	atomic_inc(&pending);
	/* -EBUSY: an earlier one is still on its way, and will do; -ENXIO: offline by now. */
	if (smp_call_function_single_async(cpu, &per_cpu(stop_cpu, cpu).csd))
		atomic_dec(&pending);
}

static void send_nmi(int cpu)
{
	if (atomic_cmpxchg(&per_cpu(stop_cpu, cpu).nmi, 0, 1))
		return;		/* an earlier one will do */
	atomic_inc(&pending);
	apic->send_IPI(cpu, NMI_VECTOR);
}

/*
 * Makes every CPU drop all its translations.  Asks as the stop does, for a CPU that has
 * interrupts off would keep on_each_cpu() waiting.  Returns after patience_us at
 * the latest, if that is not 0; false: not all have.  In process context; one caller at a time.
 */
static bool flush_all(unsigned int patience_us, bool may_nmi)
{
	int request = atomic_inc_return(&flush_request), cpu;
	u64 start = now();
	bool nmis = !may_nmi, all = true;

	preempt_disable();
	for_each_online_cpu(cpu)
		send_interrupt(cpu);
	preempt_enable();
	for_each_online_cpu(cpu) {
		while (smp_load_acquire(&per_cpu(stop_cpu, cpu).flushed) != request) {
			u64 waited = now() - start;

			/* One that goes offline flushes; one that comes has nothing yet. */
			if (!cpu_online(cpu))
				break;
			if (patience_us && waited > us_to_tsc(patience_us)) {
				all = false;
				break;
			}
			if (!nmis && waited > us_to_tsc(stop_deadline_us)) {
				int other;

				nmis = true;
				preempt_disable();
				for_each_online_cpu(other)
					if (READ_ONCE(per_cpu(stop_cpu, other).flushed) != request)
						send_nmi(other);
				preempt_enable();
			}
			if (waited > us_to_tsc(1000))
				usleep_range(100, 200);
			else
				cpu_relax();
		}
	}
	return all;
}

void ld_flush_tlb_all_cpus(unsigned int patience_us)
{
	flush_all(patience_us, true);
}

bool ld_cpus_answer(unsigned int patience_us)
{
	return flush_all(patience_us, false);
}

static bool wait_for_arrivals(u32 attempt, int me, unsigned int n, u64 start)
{
	u64 nmi_at = start + us_to_tsc(stop_nmi_us);
	u64 give_up_at = start + us_to_tsc(stop_deadline_us);
	bool nmis = false;
	int cpu;

	while ((u32)atomic64_read_acquire(&arrivals) < n) {
		u64 t = now();

		if (t > give_up_at)
			return false;
		if (!nmis && t > nmi_at) {
			nmis = true;
			for_each_online_cpu(cpu)
				if (cpu != me && READ_ONCE(per_cpu(stop_cpu, cpu).came) != attempt)
					send_nmi(cpu);
		}
		cpu_relax();
	}
	return true;
}

static void set_phase(u32 attempt, unsigned int p)
{
	smp_store_release(&state, make_state(attempt, p));
}

/* The leader's way through the steps, interrupts off.  step_end: by the time stamp counter. */
static int run_steps(const struct ld_stop_ops *ops, u32 attempt, u64 *step_end)
{
	unsigned int i;
	int err;

	for (i = 0; i < ops->nr_steps; i++) {
		const struct ld_stop_step *step = &ops->steps[i];

		set_phase(attempt, FIRST_STEP + i);
		step->work();
		set_phase(attempt, CLOSED);
		smp_mb();
		while (atomic_read_acquire(&working))
			cpu_relax();
		err = step->judge ? step->judge() : 0;
		if (err)
			return err;
		step_end[i] = now();
	}
	return 0;
}

static void measure(const struct ld_stop_ops *ops, int me, u64 start, u64 gathered,
		    const u64 *step_end, u64 flushed, u64 registers,
		    struct ld_stop_times *times)
{
	u64 done = flushed, begin = gathered, end = step_end[ops->nr_steps - 1];
	unsigned int i;
	int cpu;

	for_each_online_cpu(cpu) {
		struct ld_stop_cpu *c = per_cpu_ptr(&stop_cpu, cpu);

		if (cpu == me)
			continue;
		registers = max(registers, c->registers);
		done = max(done, c->left_at);
	}
	for (i = 0; i < ops->nr_steps; i++) {
		times->step_ns[i] = tsc_to_ns(step_end[i] - begin);
		begin = step_end[i];
	}
	times->stop_ns = tsc_to_ns(done - start);
	times->rendezvous_ns = tsc_to_ns(gathered - start);
	times->flush_ns = tsc_to_ns(done - end);
	times->registers_ns = tsc_to_ns(registers);
}

static int try_stop(const struct ld_stop_ops *ops, unsigned long caller,
		    struct ld_stop_times *times)
{
	u64 start, gathered, registers, flushed, step_end[LD_STOP_STEPS_MAX];
	int cpu, me, others = 0, err;
	unsigned long flags;
	u32 attempt;

	preempt_disable();
	me = smp_processor_id();
	stop_ops = ops;
	attempt = attempt_of(state) + 1;
	atomic64_set(&arrivals, (u64)attempt << 32);
	atomic_set(&left, 0);
	ld_notes_begin();
	set_phase(attempt, GATHER);

	/* The first CPU can be held from here on. */
	start = now();
	for_each_online_cpu(cpu) {
		if (cpu == me)
			continue;
		others++;
		send_interrupt(cpu);
	}
	local_irq_save(flags);
	registers = now();
	ld_notes_capture_caller(me, caller);
	registers = now() - registers;
	ops->arrive(me);
	if (!wait_for_arrivals(attempt, me, others, start)) {
		set_phase(attempt, RETREAT);
		local_irq_restore(flags);
		for_each_online_cpu(cpu)
			if (cpu != me && per_cpu(stop_cpu, cpu).came != attempt)
				cpumask_set_cpu(cpu, &missing);
		preempt_enable();
		return -EAGAIN;
	}
	gathered = now();
	err = run_steps(ops, attempt, step_end);
	if (err) {
		set_phase(attempt, RETREAT);
		local_irq_restore(flags);
		preempt_enable();
		return err;
	}
	set_phase(attempt, LEAVE);
	flush_tlb_this_cpu();
	flushed = now();
	local_irq_restore(flags);
	preempt_enable();

	/* They are on their way out, and nothing here holds them. */
	while (atomic_read_acquire(&left) < others)
		cond_resched();
	measure(ops, me, start, gathered, step_end, flushed, registers, times);
	return 0;
}

/*
 * The module must stay while an interrupt is pending, which may be for ever if a CPU has
 * interrupts off: then it cannot be unloaded, instead of an unloading that hangs.
 */
static bool pinned;
static void unpin(struct work_struct *work);
static DECLARE_DELAYED_WORK(unpin_work, unpin);

/* A CPU that went offline has lost the NMI that it had not taken. */
static void forget_offline(void)
{
	int cpu;

	cpus_read_lock();
	for_each_possible_cpu(cpu)
		if (!cpu_online(cpu) && atomic_cmpxchg(&per_cpu(stop_cpu, cpu).nmi, 1, 0) == 1)
			atomic_dec(&pending);
	cpus_read_unlock();
}

static void unpin(struct work_struct *work)
{
	forget_offline();
	if (atomic_read(&pending)) {
		schedule_delayed_work(&unpin_work, msecs_to_jiffies(50));
		return;
	}
	WRITE_ONCE(pinned, false);
	/* ld_stop_exit() waits for this function to return. */
	module_put(THIS_MODULE);
}

static void pin_while_pending(void)
{
	int tries;

	/* As a rule the last handler is just returning. */
	for (tries = 0; tries < 20 && atomic_read(&pending); tries++)
		usleep_range(500, 1000);
	if (!atomic_read(&pending) || READ_ONCE(pinned))
		return;
	WRITE_ONCE(pinned, true);
	__module_get(THIS_MODULE);
	schedule_delayed_work(&unpin_work, msecs_to_jiffies(50));
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
	if (WARN_ON_ONCE(!ops->nr_steps || ops->nr_steps > LD_STOP_STEPS_MAX))
		return -EINVAL;
	cpus_read_lock();
	cpumask_clear(&missing);
	for (i = 0; i < max(stop_attempts, 1U); i++) {
		if (i)
			usleep_range(1000, 3000);
		err = ops->plan();
		if (err)
			break;
		times->attempts++;
		cpumask_clear(&missing);
		err = try_stop(ops, caller, times);
		if (err != -EAGAIN)
			break;
	}
	cpus_read_unlock();
	times->missing_cpus = 0;
	for_each_cpu(cpu, &missing)
		if (cpu < 64)
			times->missing_cpus |= BIT_ULL(cpu);
	if (err == -EAGAIN && cpumask_empty(&missing))
		pr_err("gave up after %u attempts: the page tables changed each time\n",
		       times->attempts);
	else if (err == -EAGAIN)
		pr_err("gave up after %u attempts; CPUs that took neither interrupt nor NMI: %*pbl\n",
		       times->attempts, cpumask_pr_args(&missing));
	pin_while_pending();
	return err;
}

int ld_stop_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		per_cpu(stop_cpu, cpu).csd.func = on_interrupt;
	return __register_nmi_handler(NMI_LOCAL, &nmi_action);
}

/* Nobody holds the module, so nothing is pending: see pin_while_pending(). */
void ld_stop_exit(void)
{
	cancel_delayed_work_sync(&unpin_work);
	while (atomic_read(&pending))
		msleep(20);
	unregister_nmi_handler(NMI_LOCAL, KBUILD_MODNAME);
	/* The last handlers have returned. */
	synchronize_rcu();
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * CPUs that are stuck, for tests of the stop: one spins with preemption off, one with
 * interrupts off, each in a function of its own, that a reader of the dump must name.
 *
 *	echo '2 60000' >/sys/module/livedump_stuck/parameters/preempt_off
 *	echo '3 60000' >/sys/module/livedump_stuck/parameters/interrupts_off
 *	cat /sys/module/livedump_stuck/parameters/spinning	(CPUs that do: 2-3)
 *	echo 1 >/sys/module/livedump_stuck/parameters/released
 *
 * The first number is the CPU, the second how many milliseconds it spins at most, for the
 * guest's sake.  The kernel's own watchdogs have to be off.
 */
#include <linux/cpumask.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sysfs.h>
#include <asm/processor.h>
#include <asm/tsc.h>

static bool released;
module_param(released, bool, 0644);
MODULE_PARM_DESC(released, "End all spinning");

static cpumask_t spinning;

struct stuck {
	void (*spin)(u64 end);
	const char *name;
	struct task_struct *task;
	unsigned int cpu, ms;
};

static bool over(u64 end)
{
	cpu_relax();
	return READ_ONCE(released) || rdtsc() > end;
}

/* Not static, not inlined: their names are what the test looks for. */
void livedump_stuck_preempt_off(u64 end);
void livedump_stuck_interrupts_off(u64 end);

noinline void livedump_stuck_preempt_off(u64 end)
{
	preempt_disable();
	cpumask_set_cpu(smp_processor_id(), &spinning);
	while (!over(end))
		;
	cpumask_clear_cpu(smp_processor_id(), &spinning);
	preempt_enable();
}

noinline void livedump_stuck_interrupts_off(u64 end)
{
	unsigned long flags;

	local_irq_save(flags);
	cpumask_set_cpu(smp_processor_id(), &spinning);
	while (!over(end))
		;
	cpumask_clear_cpu(smp_processor_id(), &spinning);
	local_irq_restore(flags);
}

static struct stuck preempt_off = {
	.spin = livedump_stuck_preempt_off, .name = "stuck_preempt",
};
static struct stuck interrupts_off = {
	.spin = livedump_stuck_interrupts_off, .name = "stuck_irqs",
};

static int spin(void *arg)
{
	struct stuck *s = arg;

	s->spin(rdtsc() + (u64)s->ms * tsc_khz);
	/* Stays until it is collected. */
	set_current_state(TASK_INTERRUPTIBLE);
	while (!kthread_should_stop()) {
		schedule();
		set_current_state(TASK_INTERRUPTIBLE);
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

static void collect(struct stuck *s)
{
	if (s->task)
		kthread_stop(s->task);
	s->task = NULL;
}

static int begin(const char *value, const struct kernel_param *kp)
{
	struct stuck *s = kp->arg;
	struct task_struct *t;

	collect(s);
	if (sscanf(value, "%u %u", &s->cpu, &s->ms) != 2 || s->cpu >= nr_cpu_ids ||
	    !cpu_online(s->cpu) || !s->ms || !tsc_khz)
		return -EINVAL;
	t = kthread_create(spin, s, "%s", s->name);
	if (IS_ERR(t))
		return PTR_ERR(t);
	kthread_bind(t, s->cpu);
	s->task = t;
	wake_up_process(t);
	return 0;
}

static const struct kernel_param_ops begin_ops = { .set = begin };
module_param_cb(preempt_off, &begin_ops, &preempt_off, 0200);
MODULE_PARM_DESC(preempt_off, "CPU and milliseconds: spin there with preemption off");
module_param_cb(interrupts_off, &begin_ops, &interrupts_off, 0200);
MODULE_PARM_DESC(interrupts_off, "CPU and milliseconds: spin there with interrupts off");

static int get_spinning(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%*pbl\n", cpumask_pr_args(&spinning));
}

static const struct kernel_param_ops spinning_ops = { .get = get_spinning };
module_param_cb(spinning, &spinning_ops, NULL, 0444);
MODULE_PARM_DESC(spinning, "CPUs that spin now");

static int __init stuck_init(void)
{
	return 0;
}

static void __exit stuck_exit(void)
{
	WRITE_ONCE(released, true);
	collect(&preempt_off);
	collect(&interrupts_off);
}

module_init(stuck_init);
module_exit(stuck_exit);

MODULE_DESCRIPTION("Stuck CPUs, for tests of livedump");
MODULE_LICENSE("GPL");

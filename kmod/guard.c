// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must not happen during a session is refused here, with a line in the log:
 *
 *	suspend, hibernation	from PREPARE on.  The image would hold protected
 *				tables and a hook, and no clock of ours goes on
 *	memory on- or offline	from PREPARE on.  The state words, the plan and the
 *				classes are about the memory there was
 *	CPU on- or offline	while frozen.  The kernel calls no tracepoint on a CPU
 *				that is not online (the condition of every one),
 *				and a CPU runs much code on its way in and out with its
 *				bit in that mask clear.  Its first write to a
 *				protected page would be an oops, or, before it has
 *				an interrupt table, a reset of the machine
 *
 * And the other way round: PREPARE is refused while one of the first two goes on.
 * A reboot or kexec is not refused: it ends the session first, for other CPUs are
 * taken offline by it too, and none can begin any more.  A panic is left alone; the hook goes on mending faults.
 *
 * Notifiers must not take the session's lock: they run under locks (CPU hotplug,
 * memory hotplug) that the session takes while it holds its own.  They take
 * guard_lock only, or read a flag.
 *
 * cpus_fixed is set in the stop, with cpus_read_lock() held, and cleared when nothing
 * is protected any more; the callbacks run with CPU hotplug write-locked.  So a CPU
 * that comes or goes either does so before the stop, or sees the flag.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/memory.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/spinlock.h>
#include <linux/suspend.h>
#include "compat.h"
#include "livedump.h"

static DEFINE_SPINLOCK(guard_lock);
static bool present;		/* there is a session */
static bool suspending;		/* from the question to the end of it */
static bool memory_changing;
static bool cpus_fixed;
static bool going_down;

int ld_guard_begin(void)
{
	int err = 0;

	spin_lock(&guard_lock);
	if (going_down)
		err = ld_refuse(LIVEDUMP_REFUSAL_SHUTDOWN, -EBUSY);
	else if (suspending)
		err = ld_refuse(LIVEDUMP_REFUSAL_SUSPEND, -EBUSY);
	else if (memory_changing)
		err = ld_refuse(LIVEDUMP_REFUSAL_MEMORY_HOTPLUG, -EBUSY);
	else
		present = true;
	spin_unlock(&guard_lock);
	return err;
}

/* In the stop, before the first entry is protected. */
void ld_guard_freeze(void)
{
	WRITE_ONCE(cpus_fixed, true);
}

/* Nothing is protected any more, or nothing ever was. */
void ld_guard_end(void)
{
	/* Pairs with the acquire in may_change_cpus(): all entries are restored. */
	smp_store_release(&cpus_fixed, false);
	spin_lock(&guard_lock);
	present = false;
	spin_unlock(&guard_lock);
}

/* Begins what a session forbids, unless there is one. */
static int begin(bool *what, const char *name)
{
	int ret = NOTIFY_OK;

	spin_lock(&guard_lock);
	if (present)
		ret = NOTIFY_BAD;
	else
		*what = true;
	spin_unlock(&guard_lock);
	if (ret == NOTIFY_BAD)
		pr_warn_ratelimited("%s refused: a session is under way\n", name);
	return ret;
}

static int end(bool *what)
{
	spin_lock(&guard_lock);
	*what = false;
	spin_unlock(&guard_lock);
	return NOTIFY_OK;
}

static int on_pm(struct notifier_block *nb, unsigned long action, void *data)
{
	switch (action) {
	case PM_SUSPEND_PREPARE:
		return begin(&suspending, "suspend");
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		return begin(&suspending, "hibernation");
	case PM_POST_SUSPEND:
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		return end(&suspending);
	}
	return NOTIFY_DONE;
}

static int on_memory(struct notifier_block *nb, unsigned long action, void *data)
{
	switch (action) {
	case MEM_GOING_ONLINE:
		return begin(&memory_changing, "memory going online");
	case MEM_GOING_OFFLINE:
		return begin(&memory_changing, "memory going offline");
	case MEM_ONLINE:
	case MEM_OFFLINE:
	case MEM_CANCEL_ONLINE:
	case MEM_CANCEL_OFFLINE:
		return end(&memory_changing);
	}
	return NOTIFY_DONE;
}

static int on_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	spin_lock(&guard_lock);
	going_down = true;
	spin_unlock(&guard_lock);
	/* A PREPARE that has not seen this has the session's lock, and is waited for. */
	ld_session_end_for_reboot();
	return NOTIFY_DONE;
}

static int may_change_cpus(unsigned int cpu, const char *way)
{
	if (!smp_load_acquire(&cpus_fixed))
		return 0;
	pr_warn_ratelimited("CPU %u may not go %s: memory is frozen\n", cpu, way);
	return -EBUSY;
}

static int cpu_coming(unsigned int cpu)
{
	return may_change_cpus(cpu, "online");
}

static int cpu_going(unsigned int cpu)
{
	return may_change_cpus(cpu, "offline");
}

static struct notifier_block pm_nb = { .notifier_call = on_pm };
static struct notifier_block memory_nb = { .notifier_call = on_memory };
static struct notifier_block reboot_nb = { .notifier_call = on_reboot };
static int coming_state, going_state;

int ld_guard_register(void)
{
	int err;

	/* Asked before a CPU is started, and before a running one is taken down. */
	coming_state = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, "livedump:prepare",
						 cpu_coming, NULL);
	if (coming_state < 0)
		return coming_state;
	going_state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "livedump:online",
						NULL, cpu_going);
	if (going_state < 0) {
		err = going_state;
		goto no_going;
	}
	err = register_pm_notifier(&pm_nb);
	if (err)
		goto no_pm;
	err = register_memory_notifier(&memory_nb);
	if (err)
		goto no_memory;
	err = register_reboot_notifier(&reboot_nb);
	if (!err)
		return 0;
	unregister_memory_notifier(&memory_nb);
no_memory:
	unregister_pm_notifier(&pm_nb);
no_pm:
	cpuhp_remove_state_nocalls(going_state);
no_going:
	cpuhp_remove_state_nocalls(coming_state);
	return err;
}

void ld_guard_unregister(void)
{
	unregister_reboot_notifier(&reboot_nb);
	unregister_memory_notifier(&memory_nb);
	unregister_pm_notifier(&pm_nb);
	cpuhp_remove_state_nocalls(going_state);
	cpuhp_remove_state_nocalls(coming_state);
}

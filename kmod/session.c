// SPDX-License-Identifier: GPL-2.0-only
/*
 * The session: one freeze and what follows.
 *
 *	IDLE --PREPARE--> PREPARED --FREEZE--> FROZEN --THAW--> THAWED --close--> IDLE
 *
 * Every arrow back to IDLE restores the page tables first: closing the file, the
 * deadline, a failed step, a reboot.  Steps that change the state hold the lock for
 * writing, the others for reading; the fault path takes no lock at all and is told of
 * the end by ld_wp_restore(), which waits for it.
 *
 * Nothing that waits for user memory is done with the lock held: pages may hang on a
 * network or on another process, and then no deadline could thaw the machine.
 *
 * The owner is the open file that prepared the session or took it over.  When its last
 * reference goes while memory is frozen, and PREPARE asked for a grace, the session becomes
 * an orphan: frozen, without an owner, and kept until TAKEOVER gives it one or the grace is
 * over.  An orphan holds a reference to the module, for no open file does.  s.owner
 * is NULL exactly in IDLE and for an orphan.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/security.h>
#include <linux/uaccess.h>
#include <linux/utsname.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <asm/cpufeature.h>
#include <asm/tsc.h>
#include "compat.h"
#include "livedump.h"
#include "trace.h"

#define DEFAULT_DEADLINE_MS	(3600ULL * 1000)
#define MAX_CALIBRATE_MS	(10 * 1000U)
#define MAX_DEADLINE_MS		(24 * 3600ULL * 1000)
#define MAX_GRACE_MS		(3600U * 1000)
#define REBOOT_PATIENCE		(30 * HZ)

static DECLARE_RWSEM(lock);

static struct {
	struct file *owner;
	enum livedump_state state;
	enum livedump_mode mode;
	atomic_t failure;		/* enum livedump_failure */
	enum livedump_refusal refusal;
	bool orphan;
	bool keep;			/* LIVEDUMP_PREPARE_KEEP */
	u64 number;			/* of the sessions since the module was loaded */
	struct livedump_prepare prepare;	/* as it was answered */
	struct livedump_freeze freeze;
	u64 deadline_at, grace_until;	/* ktime_get_ns() */
	struct ld_stop_times times;
	u64 stop_copies;
	u64 class_pages[LIVEDUMP_CLASS_SLOTS];
	u64 to_dump;
	u64 uncovered;
	u64 thaw_ns;
	u64 reserve_pages, reserve_low;
	atomic_t next_callers;
} s;

static u64 sessions;			/* prepared since the module was loaded */

/* Called from the fault path: one store, no lock. */
void ld_session_reserve_exhausted(void)
{
	if (s.mode == LIVEDUMP_MODE_STRICT)
		atomic_cmpxchg(&s.failure, LIVEDUMP_FAILURE_NONE, LIVEDUMP_FAILURE_RESERVE);
}

/* Says why PREPARE fails; returns err. */
int ld_refuse(enum livedump_refusal why, int err)
{
	s.refusal = why;
	return err;
}

static void release_parts(void)
{
	ld_vmcore_release();
	ld_wp_release();
	ld_alias_release();
	ld_reserve_release();
	ld_notes_release();
	ld_users_release();
	ld_dma_release();
	ld_pages_release();
}

/* The memory is as it was, and nobody watches it any more.  Any state, any number of times. */
static void let_go(void)
{
	ld_wp_restore();
	ld_guard_end();
	ld_watch_thaw();
}

/* Restores the tables and gives everything back.  Any state, any number of times. */
static void end_session(void)
{
	u64 start = ktime_get_ns();

	let_go();
	if (s.state == LIVEDUMP_STATE_FROZEN) {
		s.thaw_ns = ktime_get_ns() - start;
		trace_thaw(s.thaw_ns, atomic64_read(&ld_counters.faults),
			   atomic64_read(&ld_counters.reported),
			   atomic64_read(&ld_counters.lost));
		pr_info("session %pUb: thawed, %llu of %llu pages reported, %lld lost\n",
			s.prepare.uuid, (u64)atomic64_read(&ld_counters.reported), s.to_dump,
			(s64)atomic64_read(&ld_counters.lost));
	}
	s.reserve_pages = ld_reserve_pages() ?: s.reserve_pages;
	if (ld_reserve_pages())
		s.reserve_low = ld_reserve_low();
	release_parts();
	ld_handed_disarm();
	/* With no owner there is nobody to read statistics, nor to close. */
	if (s.state != LIVEDUMP_STATE_IDLE)
		s.state = s.owner ? LIVEDUMP_STATE_THAWED : LIVEDUMP_STATE_IDLE;
	if (s.orphan) {
		s.orphan = false;
		/* ld_session_exit() waits for whoever is still in here. */
		module_put(THIS_MODULE);
	}
}

/*
 * The watch ends a frozen session whose time is over.  It is not armed for one session: a run
 * looks at whatever session there is by then and at the times of that one, so a run that
 * comes late, or was meant for a session that is gone, does no harm.
 *
 * Its queue has a rescuer and is bound to no CPU: to thaw must not depend on free
 * memory, nor on a CPU that may be stuck.
 */
static struct workqueue_struct *watch_queue;
static void watch(struct work_struct *work);
static DECLARE_DELAYED_WORK(watch_work, watch);

static void arm_watch(void)
{
	u64 now = ktime_get_ns();
	u64 at = s.deadline_at;

	if (s.orphan)
		at = min(at, s.grace_until);
	mod_delayed_work(watch_queue, &watch_work,
			 at > now ? nsecs_to_jiffies(at - now) + 1 : 0);
}

static void watch(struct work_struct *work)
{
	u64 now;

	down_write(&lock);
	now = ktime_get_ns();
	if (s.state == LIVEDUMP_STATE_FROZEN) {
		if (now >= s.deadline_at) {
			pr_warn("session %pUb: deadline of %llu ms passed\n", s.prepare.uuid,
				s.prepare.deadline_ms);
			atomic_set(&s.failure, LIVEDUMP_FAILURE_DEADLINE);
			end_session();
		} else if (s.orphan && now >= s.grace_until) {
			pr_warn("session %pUb: nobody took it over within %u ms\n",
				s.prepare.uuid, s.prepare.grace_ms);
			end_session();
		} else {
			arm_watch();
		}
	}
	up_write(&lock);
}

static DECLARE_COMPLETION(ended_for_reboot);

static void end_for_reboot(struct work_struct *work)
{
	down_write(&lock);
	if (s.state == LIVEDUMP_STATE_PREPARED || s.state == LIVEDUMP_STATE_FROZEN) {
		pr_warn("session %pUb: the machine goes down\n", s.prepare.uuid);
		atomic_set(&s.failure, LIVEDUMP_FAILURE_REBOOT);
		end_session();
	}
	up_write(&lock);
	complete_all(&ended_for_reboot);
}

static DECLARE_WORK(reboot_work, end_for_reboot);

/*
 * A reboot takes CPUs offline, and those must not meet protected pages (guard.c).  But a
 * CPU that is stuck keeps memory from being thawed, and such a machine above all must be
 * let go down.
 */
void ld_session_end_for_reboot(void)
{
	reinit_completion(&ended_for_reboot);
	queue_work(watch_queue, &reboot_work);
	if (!wait_for_completion_timeout(&ended_for_reboot, REBOOT_PATIENCE))
		pr_warn("memory is still frozen; the machine goes down all the same\n");
}

static int check_machine(void)
{
	int err;

	if (boot_cpu_has(X86_FEATURE_XENPV) || ld_pretend(LIVEDUMP_REFUSAL_XEN_PV)) {
		pr_err("Xen PV guests do not own their page tables\n");
		return ld_refuse(LIVEDUMP_REFUSAL_XEN_PV, -EOPNOTSUPP);
	}
	if (!tsc_khz || ld_pretend(LIVEDUMP_REFUSAL_TSC)) {
		pr_err("no time stamp counter to measure the stop with\n");
		return ld_refuse(LIVEDUMP_REFUSAL_TSC, -EOPNOTSUPP);
	}
	err = security_locked_down(LOCKDOWN_KCORE);
	if (err) {
		pr_err("kernel lockdown forbids reading kernel memory\n");
		return ld_refuse(LIVEDUMP_REFUSAL_LOCKDOWN, -EPERM);
	}
	return 0;
}

/* estimate: pages of the reserve, by a dry run; 0: there was none. */
static int prepare_parts(const struct livedump_prepare *arg, u64 estimate)
{
	int err = ld_guard_begin();

	err = err ?: ld_pages_prepare(arg->exclude, arg->flags);
	err = err ?: ld_alias_prepare();
	err = err ?: ld_reserve_prepare(ld_reserve_size(arg->reserve_bytes, estimate));
	err = err ?: ld_notes_prepare();
	err = err ?: ld_users_prepare();
	err = err ?: ld_dma_prepare();
	err = err ?: ld_truth_prepare();
	return err ?: ld_wp_prepare();
}

static bool is_zero(const u8 *p, size_t n)
{
	return !memchr_inv(p, 0, n);
}

static int plan(void)
{
	int err = ld_wp_plan();

	ld_dma_find();
	if (!err)
		err = ld_alias_find_stop_copies();
	return err;
}

static int judge_copies(void)
{
	int err = ld_alias_copy_error();

	err = err ?: ld_watch_copy_patched();
	if (err)
		return err;
	ld_shadow_mark();
	ld_truth_take();
	/* The next step protects. */
	ld_guard_freeze();
	ld_watch_freeze();
	return 0;
}

enum { STEP_CHECK, STEP_COPY, STEP_LEAVES, STEP_UPPER, NR_STEPS };

static const struct ld_stop_step stop_steps[NR_STEPS] = {
	/* By itself, for an attempt after copies were made would find them. */
	[STEP_CHECK]	= { ld_wp_check_plan, ld_wp_plan_is_stale },
	[STEP_COPY]	= { ld_alias_copy, judge_copies },
	[STEP_LEAVES]	= { ld_wp_protect_leaves },
	[STEP_UPPER]	= { ld_wp_protect_upper },
};

static const struct ld_stop_ops stop_ops = {
	.plan		= plan,
	.arrive		= ld_alias_arrive,
	.steps		= stop_steps,
	.nr_steps	= NR_STEPS,
};

/*
 * Freezes, watches the faults for a while, restores, and prepares anew with a reserve of the
 * size that seems to be needed.  If the machine can't be stopped now, the freeze will say so.
 */
static int dry_run(struct livedump_prepare *arg, unsigned long caller)
{
	u64 class_pages[LIVEDUMP_CLASS_SLOTS] = { 0 }, to_dump, uncovered, start, estimate;
	struct ld_stop_times times = { 0 };
	int err;

	err = ld_stop_run(&stop_ops, caller, &times);
	if (err)
		return err == -EAGAIN ? 0 : err;
	start = ktime_get_ns();
	ld_classify_all(class_pages, &to_dump, &uncovered);
	err = ld_calibrate_observe(start, arg->calibrate_ms, times.stop_ns);
	let_go();
	release_parts();
	if (err)
		return err;
	/* Not what this session's mode is about. */
	atomic_set(&s.failure, LIVEDUMP_FAILURE_NONE);
	estimate = ld_calibrate_estimate(arg->expected_ms);
	arg->estimate_pages = min_t(u64, estimate, U32_MAX);
	return prepare_parts(arg, estimate);
}

int ld_session_prepare(struct file *owner, struct livedump_prepare *arg, unsigned long caller)
{
	struct ld_reserve_layout layout;
	u64 start = ktime_get_ns();
	int err;

	arg->refusal = LIVEDUMP_REFUSAL_NONE;
	if (arg->abi_version != LIVEDUMP_ABI_VERSION || arg->exclude & ~LIVEDUMP_EXCLUDE_ALL ||
	    arg->mode > LIVEDUMP_MODE_BEST_EFFORT || arg->deadline_ms > MAX_DEADLINE_MS ||
	    arg->flags & ~(u64)LIVEDUMP_PREPARE_FLAGS || arg->grace_ms > MAX_GRACE_MS ||
	    arg->calibrate_ms > MAX_CALIBRATE_MS)
		return -EINVAL;
	/* One holds every page until the thaw, the other lets go of it before. */
	if (arg->flags & LIVEDUMP_PREPARE_KEEP && arg->flags & LIVEDUMP_PREPARE_ACK)
		return -EINVAL;
	/* What has no name can't be asked for. */
	if (arg->grace_ms && is_zero(arg->uuid, sizeof(arg->uuid)))
		return -EINVAL;

	if (down_write_killable(&lock))
		return -EINTR;
	/* Where there can be no session it does not matter whether there is one. */
	err = check_machine();
	if (err) {
		arg->refusal = s.refusal;
		goto out;
	}
	if (s.state != LIVEDUMP_STATE_IDLE) {
		arg->refusal = LIVEDUMP_REFUSAL_SESSION;
		err = -EBUSY;
		goto out;
	}
	memset(&s, 0, sizeof(s));
	s.number = ++sessions;
	s.keep = arg->flags & LIVEDUMP_PREPARE_KEEP;
	s.owner = owner;
	s.mode = arg->mode;
	if (!arg->deadline_ms)
		arg->deadline_ms = DEFAULT_DEADLINE_MS;
	s.prepare = *arg;
	arg->estimate_pages = 0;
	ld_calibrate_reset();
	err = prepare_parts(arg, 0);
	if (!err)
		ld_handed_arm();
	if (!err && arg->calibrate_ms)
		err = dry_run(arg, caller);
	if (err) {
		end_session();
		s.owner = NULL;
		s.state = LIVEDUMP_STATE_IDLE;
		if (err == -ENOMEM)
			s.refusal = LIVEDUMP_REFUSAL_MEMORY;
		arg->refusal = s.refusal;
		goto out;
	}
	ld_reserve_mark_writer();
	s.state = LIVEDUMP_STATE_PREPARED;
	arg->max_pfn = ld_max_pfn;
	arg->ram_pages = ld_ram_pages;
	arg->reserve_pages = ld_reserve_pages();
	arg->overhead_bytes = ld_pages_overhead() + ld_reserve_overhead();
	arg->prepare_ns = ktime_get_ns() - start;
	s.prepare = *arg;
	ld_reserve_get_layout(&layout);
	pr_info("session %pUb: prepared, %lu pages of RAM, reserve of %llu pages in %u blocks of 2 MiB, %u of 1 GiB\n",
		s.prepare.uuid, ld_ram_pages, ld_reserve_pages(), layout.leaves, layout.gigabytes);
out:
	up_write(&lock);
	return err;
}

int ld_session_freeze(struct file *owner, struct livedump_freeze *arg, unsigned long caller)
{
	u64 start;
	int err;

	if (down_write_killable(&lock))
		return -EINTR;
	err = -EINVAL;
	if (s.owner != owner || s.state != LIVEDUMP_STATE_PREPARED)
		goto out;

	err = ld_stop_run(&stop_ops, caller, &s.times);
	if (err == -EAGAIN)
		goto out;	/* nothing was changed: it may be tried again */
	if (err) {
		pr_err("session %pUb: freeze failed: %d\n", s.prepare.uuid, err);
		end_session();
		goto out;
	}
	/* The instant is the stop of the attempt that succeeded. */
	arg->realtime_ns = ktime_get_real_ns() - s.times.stop_ns;
	s.state = LIVEDUMP_STATE_FROZEN;
	s.stop_copies = atomic64_read(&ld_counters.copies) -
			atomic64_read(&ld_counters.fault_copies);
	s.deadline_at = ktime_get_ns() + s.prepare.deadline_ms * NSEC_PER_MSEC;
	arm_watch();

	start = ktime_get_ns();
	ld_classify_all(s.class_pages, &s.to_dump, &s.uncovered);
	ld_pages_classified();
	arg->classify_ns = ktime_get_ns() - start;

	arg->nr_cpus = ld_notes_cpus();
	arg->stop_ns = s.times.stop_ns;
	arg->notes_bytes = ld_notes_bytes();
	arg->pages_to_dump = s.to_dump;
	memcpy(arg->class_pages, s.class_pages, sizeof(s.class_pages));
	s.freeze = *arg;
	trace_freeze(s.times.stop_ns, ld_wp_changed(1) + ld_wp_changed(2) + ld_wp_changed(3),
		     s.stop_copies, s.to_dump);
	pr_info("session %pUb: frozen in %llu us, %llu entries changed, %llu pages copied in the stop, %llu to dump\n",
		s.prepare.uuid, s.times.stop_ns / 1000,
		ld_wp_changed(1) + ld_wp_changed(2) + ld_wp_changed(3), s.stop_copies, s.to_dump);
out:
	up_write(&lock);
	return err;
}

int ld_session_notes(struct file *owner, struct livedump_notes *arg)
{
	const struct new_utsname *uts = init_utsname();
	void *buf = NULL;
	ssize_t n = 0;
	size_t room;
	int err;

	if (down_read_killable(&lock))
		return -EINTR;
	err = -EINVAL;
	if (s.owner != owner || s.state != LIVEDUMP_STATE_FROZEN)
		goto unlock;
	room = ld_notes_bytes();
	err = -ENOSPC;
	if (arg->buf_bytes < room)
		goto unlock;
	err = -ENOMEM;
	buf = ld_zalloc(room);
	if (!buf)
		goto unlock;
	n = ld_notes_fill(buf, room, &arg->vmcoreinfo_offset, &arg->vmcoreinfo_bytes);
	err = n < 0 ? n : 0;
unlock:
	up_read(&lock);
	if (!err && copy_to_user(u64_to_user_ptr(arg->buf), buf, n))
		err = -EFAULT;
	vfree(buf);
	if (err)
		return err;
	arg->buf_bytes = n;
	strscpy(arg->utsname[0], uts->sysname, sizeof(arg->utsname[0]));
	strscpy(arg->utsname[1], uts->nodename, sizeof(arg->utsname[1]));
	strscpy(arg->utsname[2], uts->release, sizeof(arg->utsname[2]));
	strscpy(arg->utsname[3], uts->version, sizeof(arg->utsname[3]));
	strscpy(arg->utsname[4], uts->machine, sizeof(arg->utsname[4]));
	strscpy(arg->utsname[5], uts->domainname, sizeof(arg->utsname[5]));
	return 0;
}

/* The caller's buffers, pinned before any page is taken: after that nothing can fail. */
struct ld_next_buf {
	struct page **pages;
	unsigned int data, descs;	/* pinned */
};

static void unpin(struct ld_next_buf *b)
{
	if (b->pages)
		unpin_user_pages_dirty_lock(b->pages, b->data + b->descs, true);
	kvfree(b->pages);
}

static int pin_range(u64 addr, unsigned int n, struct page **pages, unsigned int *pinned)
{
	int got;

	while (*pinned < n) {
		got = pin_user_pages_fast(addr + (u64)*pinned * PAGE_SIZE, n - *pinned,
					  FOLL_WRITE, pages + *pinned);
		if (got <= 0)
			return -EFAULT;
		*pinned += got;
	}
	return 0;
}

static int pin(struct ld_next_buf *b, const struct livedump_next *arg)
{
	unsigned int n = arg->max_pages;
	u64 first = arg->pages & PAGE_MASK;
	u64 end = arg->pages + (u64)n * sizeof(struct livedump_page);
	unsigned int descs = (round_up(end, PAGE_SIZE) - first) >> PAGE_SHIFT;
	int err;

	b->pages = kvcalloc(n + descs, sizeof(*b->pages), GFP_KERNEL);
	if (!b->pages)
		return -ENOMEM;
	err = pin_range(arg->buf, n, b->pages, &b->data);
	return err ?: pin_range(first, descs, b->pages + n, &b->descs);
}

static struct livedump_page *desc_in(struct ld_next_buf *b, const struct livedump_next *arg,
				     unsigned int i)
{
	u64 off = offset_in_page(arg->pages) + (u64)i * sizeof(struct livedump_page);

	return page_address(b->pages[arg->max_pages + (off >> PAGE_SHIFT)]) + offset_in_page(off);
}

/* Fills the buffers as far as there are pages now.  Under the lock. */
static void next_pages(struct ld_next_buf *b, struct livedump_next *arg)
{
	struct ld_cursor cur = { 0 };

	while (arg->nr_pages < arg->max_pages && !atomic_read(&s.failure)) {
		struct livedump_page d = { 0 };

		if (!ld_page_next(&cur, arg->max_pages - arg->nr_pages,
				  page_address(b->pages[arg->nr_pages]), &d))
			break;
		*desc_in(b, arg, arg->nr_pages) = d;
		arg->nr_pages++;
	}
	ld_cursor_return(&cur);
}

/* 0: there is an answer; 1: not yet; or an error. */
static int try_next(struct file *owner, struct ld_next_buf *b, struct livedump_next *arg)
{
	int err = 0;

	if (down_read_killable(&lock))
		return -EINTR;
	if (s.owner != owner) {
		err = -EINVAL;
	} else if (atomic_read(&s.failure)) {
		err = -ENODATA;
	} else if (s.state != LIVEDUMP_STATE_FROZEN) {
		err = -EINVAL;
	} else if (b->pages) {
		ld_reserve_mark_writer();
		/* The watch's timer may be that of a CPU that has got stuck since. */
		if (ktime_get_ns() >= s.deadline_at)
			mod_delayed_work(watch_queue, &watch_work, 0);
		if (atomic_inc_return(&s.next_callers) > LD_MAX_NEXT_CALLERS)
			err = -EUSERS;
		else
			next_pages(b, arg);
		atomic_dec(&s.next_callers);
		if (!err && atomic_read(&s.failure))
			err = -ENODATA;
		/*
		 * Nothing to be had now?  Pages that are outstanding are with another
		 * caller or with a fault that is about to queue its copy.
		 */
		if (!err && !arg->nr_pages &&
		    (u64)atomic64_read(&ld_counters.reported) < s.to_dump)
			err = 1;
	}
	up_read(&lock);
	return err;
}

int ld_session_next(struct file *owner, struct livedump_next *arg)
{
	struct ld_next_buf b = { 0 };
	unsigned int waited = 0;
	int err;

	if (!arg->max_pages || arg->max_pages > LIVEDUMP_NEXT_MAX || !PAGE_ALIGNED(arg->buf) ||
	    !IS_ALIGNED(arg->pages, sizeof(struct livedump_page)))
		return -EINVAL;
	arg->nr_pages = 0;

	/* In the wrong state nobody's memory need be pinned. */
	err = try_next(owner, &b, arg);
	if (err)
		return err;
	err = pin(&b, arg);
	while (!err) {
		err = try_next(owner, &b, arg);
		if (err != 1)
			break;
		err = 0;
		if (fatal_signal_pending(current)) {
			err = -EINTR;
		} else if (waited++ > 30000) {
			pr_err("session %pUb: %llu pages to dump, %lld reported, no more to be found\n",
			       s.prepare.uuid, s.to_dump,
			       (s64)atomic64_read(&ld_counters.reported));
			err = -EIO;
		} else {
			usleep_range(500, 1000);
		}
	}
	unpin(&b);
	return err;
}

int ld_session_read_begin(u64 *session)
{
	down_read(&lock);
	if (s.state == LIVEDUMP_STATE_FROZEN && s.keep && !atomic_read(&s.failure) &&
	    (!*session || *session == s.number)) {
		*session = s.number;
		return 0;
	}
	up_read(&lock);
	return -ENODATA;
}

void ld_session_read_end(void)
{
	up_read(&lock);
}

/* Takes no lock and follows no pointer: sysfs shows what is there, whoever holds the lock. */
void ld_session_peek(struct livedump_stats *arg, u8 *uuid)
{
	memset(arg, 0, sizeof(*arg));
	if (uuid)
		memcpy(uuid, s.prepare.uuid, sizeof(s.prepare.uuid));
	arg->state = s.state;
	arg->failure = atomic_read(&s.failure);
	arg->stop_attempts = s.times.attempts;
	arg->stop_ns = s.times.stop_ns;
	arg->rendezvous_ns = s.times.rendezvous_ns;
	arg->copies_ns = s.times.step_ns[STEP_COPY];
	arg->entries_ns = s.times.step_ns[STEP_CHECK] + s.times.step_ns[STEP_LEAVES] +
			  s.times.step_ns[STEP_UPPER];
	arg->flush_ns = s.times.flush_ns;
	arg->entries_pud = ld_wp_changed(3);
	arg->entries_pmd = ld_wp_changed(2);
	arg->entries_pte = ld_wp_changed(1);
	arg->stop_copies = s.stop_copies;
	arg->faults = atomic64_read(&ld_counters.faults);
	arg->fault_copies = atomic64_read(&ld_counters.fault_copies);
	arg->fault_pushdowns = atomic64_read(&ld_counters.fault_pushdowns);
	arg->fault_splits = atomic64_read(&ld_counters.fault_splits);
	arg->fault_excluded = atomic64_read(&ld_counters.fault_excluded);
	arg->copies = atomic64_read(&ld_counters.copies);
	arg->reserve_pages = ld_reserve_pages() ?: s.reserve_pages;
	arg->reserve_low = ld_reserve_pages() ? ld_reserve_low() : s.reserve_low;
	arg->lost_pages = atomic64_read(&ld_counters.lost);
	arg->uncovered_pages = s.uncovered +
			       atomic64_read(&ld_counters.uncovered_late);
	arg->pages_to_dump = s.to_dump;
	arg->pages_reported = atomic64_read(&ld_counters.reported);
	memcpy(arg->class_pages, s.class_pages, sizeof(s.class_pages));
	arg->missing_cpus = s.times.missing_cpus;
	arg->tables_split = atomic64_read(&ld_counters.tables_split);
	arg->tables_joined = atomic64_read(&ld_counters.tables_joined);
	arg->thaw_ns = s.thaw_ns;
	arg->registers_ns = s.times.registers_ns;
	arg->pages_acked = atomic64_read(&ld_counters.acknowledged);
	arg->page_tables = atomic64_read(&ld_counters.page_tables);
	arg->unwatched = ld_watch_missing | ld_handed_missing();
	arg->dma_pages = atomic64_read(&ld_counters.page_pool) + ld_dma_found.buffers +
			 ld_dma_found.mapped + ld_dma_found.handed;
	arg->dma_devices = ld_dma_found.devices;
	arg->dma_devices_unknown = ld_dma_found.unknown;
}

int ld_session_stats(struct file *owner, struct livedump_stats *arg)
{
	u32 size = arg->size;
	int err = -EINVAL;

	if (down_read_killable(&lock))
		return -EINTR;
	if (s.owner == owner) {
		ld_session_peek(arg, NULL);
		arg->size = size;
		err = 0;
	}
	up_read(&lock);
	return err;
}

int ld_session_acknowledge(struct file *owner, struct livedump_ack *arg)
{
	struct livedump_page *pages;
	unsigned int i;
	int err = 0;

	if (!arg->nr_pages || arg->nr_pages > LIVEDUMP_NEXT_MAX)
		return -EINVAL;
	arg->nr_acked = 0;
	pages = vmemdup_user(u64_to_user_ptr(arg->pages), arg->nr_pages * sizeof(*pages));
	if (IS_ERR(pages))
		return PTR_ERR(pages);
	if (down_read_killable(&lock)) {
		kvfree(pages);
		return -EINTR;
	}
	if (s.owner != owner || s.state != LIVEDUMP_STATE_FROZEN ||
	    !(s.prepare.flags & LIVEDUMP_PREPARE_ACK))
		err = -EINVAL;
	for (i = 0; i < arg->nr_pages && !err; i++)
		arg->nr_acked += ld_page_acknowledge(pages[i].pfn);
	up_read(&lock);
	kvfree(pages);
	return err;
}

int ld_session_thaw(struct file *owner)
{
	int err = -EINVAL;

	if (down_write_killable(&lock))
		return -EINTR;
	if (s.owner == owner &&
	    (s.state == LIVEDUMP_STATE_PREPARED || s.state == LIVEDUMP_STATE_FROZEN)) {
		end_session();
		err = 0;
	}
	up_write(&lock);
	return err;
}

int ld_session_takeover(struct file *file, struct livedump_takeover *arg)
{
	u64 now;
	int err = 0;

	if (arg->flags)
		return -EINVAL;
	if (down_write_killable(&lock))
		return -EINTR;
	now = ktime_get_ns();
	if (s.owner == file)
		err = -EINVAL;
	else if (s.state == LIVEDUMP_STATE_IDLE || s.state == LIVEDUMP_STATE_THAWED)
		err = -ESRCH;
	else if (memcmp(s.prepare.uuid, arg->uuid, sizeof(arg->uuid)))
		err = -ENOENT;
	else if (!s.orphan)
		err = -EBUSY;
	if (err)
		goto out;

	s.owner = file;
	s.orphan = false;
	ld_reserve_mark_writer();
	arm_watch();
	ld_pages_hand_out_again();
	arg->deadline_ms = div_u64(s.deadline_at - min(now, s.deadline_at), NSEC_PER_MSEC);
	arg->pages_reported = atomic64_read(&ld_counters.reported);
	arg->prepare = s.prepare;
	arg->freeze = s.freeze;
	pr_info("session %pUb: taken over with %llu of %llu pages reported\n",
		s.prepare.uuid, arg->pages_reported, s.to_dump);
	/* The new owner's file holds one. */
	module_put(THIS_MODULE);
out:
	up_write(&lock);
	return err;
}

/* The last reference to the file is gone. */
void ld_session_release(struct file *owner)
{
	down_write(&lock);
	if (s.owner != owner)
		goto out;
	s.owner = NULL;
	if (s.state != LIVEDUMP_STATE_FROZEN) {
		end_session();
	} else if (!s.prepare.grace_ms) {
		pr_info("session %pUb: its owner is gone\n", s.prepare.uuid);
		end_session();
	} else {
		pr_warn("session %pUb: its owner is gone; it stays frozen for %u ms\n",
			s.prepare.uuid, s.prepare.grace_ms);
		__module_get(THIS_MODULE);
		s.orphan = true;
		s.grace_until = ktime_get_ns() + s.prepare.grace_ms * (u64)NSEC_PER_MSEC;
		arm_watch();
	}
	if (!s.orphan)
		s.state = LIVEDUMP_STATE_IDLE;
out:
	up_write(&lock);
}

int ld_session_init(void)
{
	watch_queue = alloc_workqueue("livedump", WQ_UNBOUND | WQ_MEM_RECLAIM, 1);
	return watch_queue ? 0 : -ENOMEM;
}

/*
 * The module goes.  It can't while a file is open or a session is an orphan, unless it
 * is forced; then restored tables are the least that is owed.
 */
void ld_session_exit(void)
{
	down_write(&lock);
	s.orphan = false;
	if (s.state != LIVEDUMP_STATE_IDLE)
		end_session();
	up_write(&lock);
	cancel_delayed_work_sync(&watch_work);
	destroy_workqueue(watch_queue);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The session: one freeze and what follows.
 *
 *	IDLE --PREPARE--> PREPARED --FREEZE--> FROZEN --THAW--> THAWED --close--> IDLE
 *
 * Every arrow back to IDLE restores the page tables first: closing the file, the
 * deadline, a failed step.  All steps but NEXT hold the lock for writing, NEXT
 * for reading; the fault path takes no lock at all and is told of the end by
 * ld_wp_restore(), which waits for it.
 */
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/security.h>
#include <linux/uaccess.h>
#include <linux/utsname.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <asm/cpufeature.h>
#include "compat.h"
#include "livedump.h"

#define DEFAULT_DEADLINE_MS	(3600ULL * 1000)
#define MAX_DEADLINE_MS		(24 * 3600ULL * 1000)
#define MAX_NEXT_CALLERS	32

static DECLARE_RWSEM(lock);

static struct {
	struct file *owner;
	enum livedump_state state;
	enum livedump_mode mode;
	atomic_t failure;		/* enum livedump_failure */
	u8 uuid[16];
	u64 deadline_ms;
	bool keep;			/* LIVEDUMP_PREPARE_KEEP */
	u64 number;			/* of the sessions since the module was loaded */
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

/* Restores the tables and gives everything back.  Any state, any number of times. */
static void end_session(void)
{
	u64 start = ktime_get_ns();

	ld_wp_restore();
	if (s.state == LIVEDUMP_STATE_FROZEN) {
		s.thaw_ns = ktime_get_ns() - start;
		pr_info("session %pUb: thawed, %llu of %llu pages reported, %lld lost\n",
			s.uuid, (u64)atomic64_read(&ld_counters.reported), s.to_dump,
			(s64)atomic64_read(&ld_counters.lost));
	}
	s.reserve_pages = ld_reserve_pages() ?: s.reserve_pages;
	if (ld_reserve_pages())
		s.reserve_low = ld_reserve_low();
	ld_vmcore_release();
	ld_wp_release();
	ld_alias_release();
	ld_reserve_release();
	ld_notes_release();
	ld_truth_release();
	ld_pages_release();
	if (s.state != LIVEDUMP_STATE_IDLE)
		s.state = LIVEDUMP_STATE_THAWED;
}

static void on_deadline(struct work_struct *work)
{
	down_write(&lock);
	if (s.state == LIVEDUMP_STATE_FROZEN) {
		pr_warn("session %pUb: deadline of %llu ms passed\n", s.uuid, s.deadline_ms);
		atomic_set(&s.failure, LIVEDUMP_FAILURE_DEADLINE);
		end_session();
	}
	up_write(&lock);
}

static DECLARE_DELAYED_WORK(deadline_work, on_deadline);

static int check_machine(void)
{
	int err;

	if (boot_cpu_has(X86_FEATURE_XENPV)) {
		pr_err("Xen PV guests do not own their page tables\n");
		return -EOPNOTSUPP;
	}
	err = security_locked_down(LOCKDOWN_KCORE);
	if (err)
		pr_err("kernel lockdown forbids reading kernel memory\n");
	return err;
}

static int prepare_parts(const struct livedump_prepare *arg)
{
	int err = check_machine();

	err = err ?: ld_pages_prepare(arg->exclude, arg->flags & LIVEDUMP_PREPARE_KEEP);
	err = err ?: ld_alias_prepare();
	err = err ?: ld_reserve_prepare(ld_reserve_size(arg->reserve_bytes, 0));
	err = err ?: ld_notes_prepare();
	err = err ?: ld_truth_prepare();
	return err ?: ld_wp_prepare();
}

int ld_session_prepare(struct file *owner, struct livedump_prepare *arg)
{
	struct ld_reserve_layout layout;
	u64 start = ktime_get_ns();
	int err;

	if (arg->abi_version != LIVEDUMP_ABI_VERSION || arg->exclude & ~LIVEDUMP_EXCLUDE_ALL ||
	    arg->mode > LIVEDUMP_MODE_BEST_EFFORT || arg->deadline_ms > MAX_DEADLINE_MS ||
	    arg->flags & ~(u64)LIVEDUMP_PREPARE_FLAGS)
		return -EINVAL;

	down_write(&lock);
	if (s.state != LIVEDUMP_STATE_IDLE) {
		err = -EBUSY;
		goto out;
	}
	memset(&s, 0, sizeof(s));
	s.number = ++sessions;
	s.keep = arg->flags & LIVEDUMP_PREPARE_KEEP;
	s.owner = owner;
	s.mode = arg->mode;
	s.deadline_ms = arg->deadline_ms ?: DEFAULT_DEADLINE_MS;
	memcpy(s.uuid, arg->uuid, sizeof(s.uuid));
	err = prepare_parts(arg);
	if (err) {
		end_session();
		s.owner = NULL;
		s.state = LIVEDUMP_STATE_IDLE;
		goto out;
	}
	ld_reserve_mark_writer();
	s.state = LIVEDUMP_STATE_PREPARED;
	arg->max_pfn = ld_max_pfn;
	arg->ram_pages = ld_ram_pages;
	arg->reserve_pages = ld_reserve_pages();
	arg->overhead_bytes = ld_pages_overhead() + ld_reserve_overhead();
	arg->prepare_ns = ktime_get_ns() - start;
	ld_reserve_get_layout(&layout);
	pr_info("session %pUb: prepared, %lu pages of RAM, reserve of %llu pages in %u blocks of 2 MiB, %u of 1 GiB\n",
		s.uuid, ld_ram_pages, ld_reserve_pages(), layout.leaves, layout.gigabytes);
out:
	up_write(&lock);
	return err;
}

static int plan(void)
{
	int err = ld_wp_plan();

	if (!err)
		err = ld_alias_find_stop_copies();
	return err;
}

static int judge_copies(void)
{
	int err = ld_alias_copy_error();

	if (!err && !ld_measuring())
		ld_truth_take();
	return err;
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

int ld_session_freeze(struct file *owner, struct livedump_freeze *arg, unsigned long caller)
{
	u64 start;
	int err;

	down_write(&lock);
	err = -EINVAL;
	if (s.owner != owner || s.state != LIVEDUMP_STATE_PREPARED)
		goto out;

	arg->realtime_ns = ktime_get_real_ns();
	err = ld_stop_run(&stop_ops, caller, &s.times);
	if (err == -EAGAIN)
		goto out;	/* nothing was changed: it may be tried again */
	if (err) {
		pr_err("session %pUb: freeze failed: %d\n", s.uuid, err);
		end_session();
		goto out;
	}
	s.state = LIVEDUMP_STATE_FROZEN;
	s.stop_copies = atomic64_read(&ld_counters.copies) -
			atomic64_read(&ld_counters.fault_copies);
	schedule_delayed_work(&deadline_work, msecs_to_jiffies(s.deadline_ms));

	start = ktime_get_ns();
	ld_classify_all(s.class_pages, &s.to_dump, &s.uncovered);
	ld_pages_classified();
	arg->classify_ns = ktime_get_ns() - start;

	arg->nr_cpus = ld_notes_cpus();
	arg->stop_ns = s.times.stop_ns;
	arg->notes_bytes = ld_notes_bytes();
	arg->pages_to_dump = s.to_dump;
	memcpy(arg->class_pages, s.class_pages, sizeof(s.class_pages));
	pr_info("session %pUb: frozen in %llu us, %llu entries changed, %llu pages copied in the stop, %llu to dump\n",
		s.uuid, s.times.stop_ns / 1000,
		ld_wp_changed(1) + ld_wp_changed(2) + ld_wp_changed(3), s.stop_copies, s.to_dump);
out:
	up_write(&lock);
	return err;
}

int ld_session_notes(struct file *owner, struct livedump_notes *arg)
{
	const struct new_utsname *uts = init_utsname();
	void *buf = NULL;
	size_t room;
	ssize_t n;
	int err;

	down_read(&lock);
	err = -EINVAL;
	if (s.owner != owner || s.state != LIVEDUMP_STATE_FROZEN)
		goto out;
	room = ld_notes_bytes();
	err = -ENOSPC;
	if (arg->buf_bytes < room)
		goto out;
	err = -ENOMEM;
	buf = vzalloc(room);
	if (!buf)
		goto out;
	n = ld_notes_fill(buf, room, &arg->vmcoreinfo_offset, &arg->vmcoreinfo_bytes);
	err = n < 0 ? n : 0;
	if (!err && copy_to_user(u64_to_user_ptr(arg->buf), buf, n))
		err = -EFAULT;
	arg->buf_bytes = max_t(ssize_t, n, 0);
	strscpy(arg->utsname[0], uts->sysname, sizeof(arg->utsname[0]));
	strscpy(arg->utsname[1], uts->nodename, sizeof(arg->utsname[1]));
	strscpy(arg->utsname[2], uts->release, sizeof(arg->utsname[2]));
	strscpy(arg->utsname[3], uts->version, sizeof(arg->utsname[3]));
	strscpy(arg->utsname[4], uts->machine, sizeof(arg->utsname[4]));
	strscpy(arg->utsname[5], uts->domainname, sizeof(arg->utsname[5]));
out:
	up_read(&lock);
	vfree(buf);
	return err;
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

static int next_pages(struct ld_next_buf *b, struct livedump_next *arg)
{
	struct ld_cursor cur = { 0 };
	unsigned long waited = 0;
	int got = 0;

	while (arg->nr_pages < arg->max_pages) {
		struct livedump_page d = { 0 };

		if (atomic_read(&s.failure))
			break;
		got = ld_page_next(&cur, arg->max_pages - arg->nr_pages,
				   page_address(b->pages[arg->nr_pages]), &d);
		if (!got) {
			/*
			 * Nothing to be had now.  If pages are outstanding they are with
			 * another caller or a fault that is about to queue its copy.
			 */
			if (arg->nr_pages ||
			    (u64)atomic64_read(&ld_counters.reported) >= s.to_dump)
				break;
			if (fatal_signal_pending(current))
				return -EINTR;
			if (waited++ > 30000) {
				pr_err("session %pUb: %llu pages to dump, %llu reported, no more to be found\n",
				       s.uuid, s.to_dump,
				       (u64)atomic64_read(&ld_counters.reported));
				return -EIO;
			}
			usleep_range(500, 1000);
			continue;
		}
		*desc_in(b, arg, arg->nr_pages) = d;
		arg->nr_pages++;
	}
	ld_cursor_return(&cur);
	return atomic_read(&s.failure) ? -ENODATA : 0;
}

int ld_session_next(struct file *owner, struct livedump_next *arg)
{
	struct ld_next_buf b = { 0 };
	int err;

	if (!arg->max_pages || arg->max_pages > LIVEDUMP_NEXT_MAX || !PAGE_ALIGNED(arg->buf) ||
	    !IS_ALIGNED(arg->pages, sizeof(struct livedump_page)))
		return -EINVAL;
	arg->nr_pages = 0;

	down_read(&lock);
	err = -EINVAL;
	if (s.owner != owner)
		goto out;
	err = -ENODATA;
	if (atomic_read(&s.failure))
		goto out;
	err = -EINVAL;
	if (s.state != LIVEDUMP_STATE_FROZEN)
		goto out;
	ld_reserve_mark_writer();
	if (atomic_inc_return(&s.next_callers) > MAX_NEXT_CALLERS) {
		err = -EUSERS;
	} else {
		err = pin(&b, arg);
		if (!err)
			err = next_pages(&b, arg);
		unpin(&b);
	}
	atomic_dec(&s.next_callers);
out:
	up_read(&lock);
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

int ld_session_stats(struct file *owner, struct livedump_stats *arg)
{
	u32 size = arg->size;

	down_read(&lock);
	if (s.owner != owner) {
		up_read(&lock);
		return -EINVAL;
	}
	memset(arg, 0, sizeof(*arg));
	arg->size = size;
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
	up_read(&lock);
	return 0;
}

int ld_session_thaw(struct file *owner)
{
	int err = -EINVAL;

	down_write(&lock);
	if (s.owner == owner &&
	    (s.state == LIVEDUMP_STATE_PREPARED || s.state == LIVEDUMP_STATE_FROZEN)) {
		end_session();
		err = 0;
	}
	up_write(&lock);
	/* Only the owner's; and no other session can begin before this file is closed. */
	if (!err)
		cancel_delayed_work_sync(&deadline_work);
	return err;
}

/* The last reference to the file is gone. */
void ld_session_release(struct file *owner)
{
	/*
	 * A deadline that outlives its session would thaw the next one.  Nobody can set
	 * it again: only the owner can, and the file has no user any more.
	 */
	if (READ_ONCE(s.owner) == owner)
		cancel_delayed_work_sync(&deadline_work);
	down_write(&lock);
	if (s.owner == owner) {
		if (s.state == LIVEDUMP_STATE_FROZEN)
			pr_info("session %pUb: its owner is gone\n", s.uuid);
		end_session();
		s.owner = NULL;
		s.state = LIVEDUMP_STATE_IDLE;
	}
	up_write(&lock);
}

void ld_session_exit(void)
{
	cancel_delayed_work_sync(&deadline_work);
}

// SPDX-License-Identifier: Apache-2.0
/* Every promise of uapi/livedump.h: which call gives which answer in which state. */
#include <dirent.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <asm/ldt.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>
#include "abi.h"

#define KERNEL_POINTER	0xffff888000001000ULL
#define NOT_CANONICAL	0x0123456789ab0000ULL

/* A child that does not outlive this process, however that ends. */
static pid_t bound_fork(void)
{
	pid_t pid = fork();

	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* All ioctls with an argument. */
static const struct {
	const char *name;
	unsigned long request;
} steps[] = {
	{ "PREPARE", LIVEDUMP_IOC_PREPARE }, { "FREEZE", LIVEDUMP_IOC_FREEZE },
	{ "NOTES", LIVEDUMP_IOC_NOTES }, { "NEXT", LIVEDUMP_IOC_NEXT },
	{ "STATS", LIVEDUMP_IOC_STATS }, { "TAKEOVER", LIVEDUMP_IOC_TAKEOVER },
	{ "ACK", LIVEDUMP_IOC_ACK },
};
#define NR_STEPS (sizeof(steps) / sizeof(steps[0]))

/* Two pages, the second of which cannot be touched. */
static unsigned char *page_before_hole(void)
{
	unsigned char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	mprotect(p + 4096, 4096, PROT_NONE);
	memset(p, 0, 4096);
	return p;
}

static void *pages_of(size_t n, int protection)
{
	void *p = mmap(NULL, n * 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	return p;
}

/* Who may open the device. */
static void who_may_open(void)
{
	int status, fd;
	pid_t pid;

	/* Whoever holds the file may use it, however it was opened. */
	fd = open(DEVICE, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("open read-only: %s", strerror(errno));
	EXPECT(call(fd, LIVEDUMP_IOC_THAW, NULL), EINVAL);
	close(fd);

	/* Permission bits do not matter: CAP_SYS_ADMIN of the first user namespace does. */
	EXPECT(chmod(DEVICE, 0666), 0);
	pid = bound_fork();
	if (!pid) {
		if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
			_exit(100);
		_exit(open(DEVICE, O_RDWR) < 0 ? errno : 0);
	}
	waitpid(pid, &status, 0);
	EXPECT(WEXITSTATUS(status), EPERM);
	pid = bound_fork();
	if (!pid) {
		if (unshare(CLONE_NEWUSER))
			_exit(errno == ENOSYS || errno == EINVAL ? EPERM : 100);
		_exit(open(DEVICE, O_RDWR) < 0 ? errno : 0);
	}
	waitpid(pid, &status, 0);
	EXPECT(WEXITSTATUS(status), EPERM);
	EXPECT(chmod(DEVICE, 0600), 0);
	pid = bound_fork();
	if (!pid) {
		if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
			_exit(100);
		_exit(open(DEVICE, O_RDONLY) < 0 ? errno : 0);
	}
	waitpid(pid, &status, 0);
	EXPECT(WEXITSTATUS(status), EACCES);
}

/* Arguments that are wrong in themselves give the same answer in every state. */
static void bad_arguments(int fd)
{
	unsigned char *hole = page_before_hole();
	void *read_only = pages_of(1, PROT_READ), *none = pages_of(1, PROT_NONE);
	unsigned char arg[4096] __attribute__((aligned(8)));
	size_t i;

	for (i = 0; i < NR_STEPS; i++) {
		unsigned long request = steps[i].request;
		uint32_t size = _IOC_SIZE(request);
		const uint32_t sizes[] = { 0, 4, size - 1, size + 1, size * 2, 0x7fffffff, 0xffffffff };
		size_t j;

		for (j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++) {
			memset(arg, 0, sizeof(arg));
			memcpy(arg, &sizes[j], 4);
			EXPECT(call(fd, request, arg), EINVAL);
		}
		EXPECT(call(fd, request, NULL), EFAULT);
		EXPECT(call(fd, request, (void *)8), EFAULT);
		EXPECT(call(fd, request, (void *)KERNEL_POINTER), EFAULT);
		EXPECT(call(fd, request, (void *)NOT_CANONICAL), EFAULT);
		EXPECT(call(fd, request, (void *)-8L), EFAULT);
		EXPECT(call(fd, request, none), EFAULT);
		EXPECT(call(fd, request, hole + 4096), EFAULT);
		memcpy(hole + 4096 - 8, &size, 4);
		EXPECT(call(fd, request, hole + 4096 - 8), EFAULT);
		/* An answer that can't be given is told before anything is done. */
		EXPECT(mprotect(read_only, 4096, PROT_READ | PROT_WRITE), 0);
		memset(read_only, 0, size);
		memcpy(read_only, &size, 4);
		EXPECT(mprotect(read_only, 4096, PROT_READ), 0);
		EXPECT(call(fd, request, read_only), EFAULT);
		/* The size is part of the number. */
		memset(arg, 0, sizeof(arg));
		memcpy(arg, &size, 4);
		EXPECT(call(fd, _IOWR(LIVEDUMP_IOC_MAGIC, _IOC_NR(request), uint64_t), arg), ENOTTY);
		EXPECT(call(fd, request ^ (1UL << 30), arg), ENOTTY);
	}
	EXPECT(call(fd, _IO(LIVEDUMP_IOC_MAGIC, 0), NULL), ENOTTY);
	EXPECT(call(fd, _IO(LIVEDUMP_IOC_MAGIC, 200), NULL), ENOTTY);
	EXPECT(call(fd, _IO(0, 6), NULL), ENOTTY);

#define RESERVED(type, request, field)							\
	for (i = 0; i < sizeof(((struct type *)0)->field); i++) {			\
		struct type a = { .size = sizeof(a) };					\
		((unsigned char *)&a.field)[i] = 0x80;					\
		EXPECT(call(fd, request, &a), EINVAL);					\
	}
	RESERVED(livedump_prepare, LIVEDUMP_IOC_PREPARE, reserved0);
	RESERVED(livedump_freeze, LIVEDUMP_IOC_FREEZE, reserved);
	RESERVED(livedump_notes, LIVEDUMP_IOC_NOTES, reserved);
	RESERVED(livedump_notes, LIVEDUMP_IOC_NOTES, reserved0);
	RESERVED(livedump_next, LIVEDUMP_IOC_NEXT, reserved);
	RESERVED(livedump_next, LIVEDUMP_IOC_NEXT, reserved0);
	RESERVED(livedump_stats, LIVEDUMP_IOC_STATS, reserved);
	RESERVED(livedump_takeover, LIVEDUMP_IOC_TAKEOVER, reserved);
	RESERVED(livedump_takeover, LIVEDUMP_IOC_TAKEOVER, flags);
	RESERVED(livedump_ack, LIVEDUMP_IOC_ACK, reserved);
	munmap(hole, 8192);
	munmap(read_only, 4096);
	munmap(none, 4096);
}

static void bad_prepare(int fd)
{
	struct livedump_prepare p;
	int bit;

#define REFUSED(change)							\
	do {								\
		fill_prepare(&p, "bad");				\
		change;							\
		EXPECT(call(fd, LIVEDUMP_IOC_PREPARE, &p), EINVAL);	\
		EXPECT(p.refusal, LIVEDUMP_REFUSAL_NONE);		\
	} while (0)
	REFUSED(p.abi_version = 0);
	REFUSED(p.abi_version = LIVEDUMP_ABI_VERSION + 1);
	for (bit = 5; bit < 32; bit++)
		REFUSED(p.exclude |= 1U << bit);
	REFUSED(p.mode = 2);
	REFUSED(p.mode = 0x80000000);
	REFUSED(p.deadline_ms = 24 * 3600 * 1000ULL + 1);
	REFUSED(p.deadline_ms = ~0ULL);
	REFUSED(p.grace_ms = 3600 * 1000 + 1);
	REFUSED(p.grace_ms = ~0U);
	REFUSED(p.grace_ms = 1; memset(p.uuid, 0, sizeof(p.uuid)));
	REFUSED(p.flags = LIVEDUMP_PREPARE_KEEP | LIVEDUMP_PREPARE_ACK);
	for (bit = 2; bit < 64; bit++)
		REFUSED(p.flags = 1ULL << bit);
}

/* What every state but the right one answers, to the owner and to others. */
static int notes_into(int fd, void *buf, uint64_t bytes)
{
	struct livedump_notes n = { .size = sizeof(n), .buf = (uintptr_t)buf, .buf_bytes = bytes };

	return call(fd, LIVEDUMP_IOC_NOTES, &n);
}

static int next_into(int fd, uint64_t buf, uint64_t pages, uint32_t max_pages)
{
	struct livedump_next n = { .size = sizeof(n), .max_pages = max_pages, .buf = buf, .pages = pages };

	return call(fd, LIVEDUMP_IOC_NEXT, &n);
}

static int freeze_call(int fd)
{
	struct livedump_freeze f = { .size = sizeof(f) };

	return call(fd, LIVEDUMP_IOC_FREEZE, &f);
}

static int takeover(int fd, const char *name, struct livedump_takeover *t)
{
	struct livedump_takeover own;

	t = t ? t : &own;
	memset(t, 0, sizeof(*t));
	t->size = sizeof(*t);
	memcpy(t->uuid, name, strnlen(name, sizeof(t->uuid)));
	return call(fd, LIVEDUMP_IOC_TAKEOVER, t);
}

static int acknowledge(int fd, const struct livedump_page *pages, uint32_t n, uint32_t *acked)
{
	struct livedump_ack a = { .size = sizeof(a), .nr_pages = n, .pages = (uintptr_t)pages };
	int err = call(fd, LIVEDUMP_IOC_ACK, &a);

	if (acked)
		*acked = a.nr_acked;
	return err;
}

static void nobodys(int fd)
{
	const struct livedump_page first = { 0 };
	static unsigned char buf[8192] __attribute__((aligned(4096)));
	struct livedump_stats s;

	EXPECT(freeze_call(fd), EINVAL);
	EXPECT(notes_into(fd, buf, sizeof(buf)), EINVAL);
	EXPECT(next_into(fd, (uintptr_t)buf, (uintptr_t)buf + 4096, 1), EINVAL);
	EXPECT(stats(fd, &s), EINVAL);
	EXPECT(acknowledge(fd, &first, 1, NULL), EINVAL);
	EXPECT(call(fd, LIVEDUMP_IOC_THAW, NULL), EINVAL);
}

static int prepare_busy(int fd)
{
	struct livedump_prepare p;
	int err;

	fill_prepare(&p, "second");
	err = call(fd, LIVEDUMP_IOC_PREPARE, &p);
	if (err == EBUSY)
		EXPECT(p.refusal, LIVEDUMP_REFUSAL_SESSION);
	return err;
}

static int state_of(int fd)
{
	struct livedump_stats s;

	EXPECT(stats(fd, &s), 0);
	return s.state;
}

static void states(void)
{
	static unsigned char buf[8192] __attribute__((aligned(4096)));
	int fd = open_device(), other = open_device();
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct livedump_stats s;
	struct reader r;

	nobodys(fd);
	EXPECT(takeover(fd, "states", NULL), ESRCH);
	bad_arguments(fd);
	bad_prepare(fd);

	fill_prepare(&p, "states");
	prepare(fd, &p);
	EXPECT(state_of(fd), LIVEDUMP_STATE_PREPARED);
	bad_arguments(fd);
	nobodys(other);
	EXPECT(prepare_busy(other), EBUSY);
	EXPECT(prepare_busy(fd), EBUSY);
	EXPECT(notes_into(fd, buf, sizeof(buf)), EINVAL);
	EXPECT(next_into(fd, (uintptr_t)buf, (uintptr_t)buf + 4096, 1), EINVAL);
	EXPECT(takeover(other, "states", NULL), EBUSY);
	EXPECT(takeover(other, "statez", NULL), ENOENT);
	EXPECT(takeover(fd, "states", NULL), EINVAL);

	freeze(fd, &f);
	EXPECT(state_of(fd), LIVEDUMP_STATE_FROZEN);
	bad_arguments(fd);
	bad_arguments(other);
	nobodys(other);
	EXPECT(prepare_busy(other), EBUSY);
	EXPECT(prepare_busy(fd), EBUSY);
	EXPECT(freeze_call(fd), EINVAL);
	EXPECT(takeover(other, "states", NULL), EBUSY);
	EXPECT(takeover(other, "statez", NULL), ENOENT);
	EXPECT(takeover(fd, "states", NULL), EINVAL);
	reader_init(&r, 64, p.max_pfn);
	reader_next(&r, fd);
	thaw(fd);

	EXPECT(stats(fd, &s), 0);
	EXPECT(s.state, LIVEDUMP_STATE_THAWED);
	EXPECT(s.failure, LIVEDUMP_FAILURE_NONE);
	EXPECT(s.pages_reported, r.reported);
	EXPECT(s.pages_to_dump, f.pages_to_dump);
	EXPECT(s.reserve_pages, p.reserve_pages);
	bad_arguments(fd);
	EXPECT(call(fd, LIVEDUMP_IOC_THAW, NULL), EINVAL);
	EXPECT(freeze_call(fd), EINVAL);
	EXPECT(notes_into(fd, buf, sizeof(buf)), EINVAL);
	EXPECT(next_into(fd, (uintptr_t)buf, (uintptr_t)buf + 4096, 1), EINVAL);
	EXPECT(prepare_busy(other), EBUSY);
	EXPECT(prepare_busy(fd), EBUSY);
	EXPECT(takeover(other, "states", NULL), ESRCH);
	EXPECT(stats(fd, &s), 0);
	reader_free(&r);
	close(fd);

	/* The file was the session: now there is none. */
	nobodys(other);
	fill_prepare(&p, "next");
	prepare(other, &p);
	close(other);
}

/* The file goes with its last reference only, and by whomever. */
static void shared_files(void)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	int fd = open_device(), copy = dup(fd), other, status;
	pid_t pid;

	fill_prepare(&p, "shared");
	prepare(fd, &p);
	freeze(fd, &f);
	close(fd);
	EXPECT(state_of(copy), LIVEDUMP_STATE_FROZEN);
	pid = bound_fork();
	if (!pid) {
		struct livedump_stats s;

		_exit(stats(copy, &s) || s.state != LIVEDUMP_STATE_FROZEN);
	}
	waitpid(pid, &status, 0);
	EXPECT(status, 0);
	EXPECT(state_of(copy), LIVEDUMP_STATE_FROZEN);
	pid = bound_fork();
	if (!pid) {
		pause();
		_exit(0);
	}
	close(copy);
	other = open_device();
	EXPECT(prepare_busy(other), EBUSY);	/* the child has it */
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	WAIT_FOR(!prepare_busy(other));
	close(other);
}

/* Every buffer that cannot be, and then every page once all the same. */
static void next_buffers(void)
{
	const size_t n = 16;
	unsigned char *good = pages_of(n, PROT_READ | PROT_WRITE);
	unsigned char *read_only = pages_of(n, PROT_READ), *none = pages_of(n, PROT_NONE);
	unsigned char *half = pages_of(n, PROT_READ | PROT_WRITE), *hole = page_before_hole();
	uintptr_t g = (uintptr_t)good, d = (uintptr_t)calloc(1024, sizeof(struct livedump_page));
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct livedump_stats s;
	struct reader r;
	int fd = open_device(), file;

	munmap(half + n / 2 * 4096, n / 2 * 4096);
	fill_prepare(&p, "buffers");
	prepare(fd, &p);
	freeze(fd, &f);

	EXPECT(next_into(fd, g, d, 0), EINVAL);
	EXPECT(next_into(fd, g, d, LIVEDUMP_NEXT_MAX + 1), EINVAL);
	EXPECT(next_into(fd, g, d, 0xffffffff), EINVAL);
	EXPECT(next_into(fd, g + 1, d, n), EINVAL);
	EXPECT(next_into(fd, g + 2048, d, n), EINVAL);
	EXPECT(next_into(fd, g, d + 1, n), EINVAL);
	EXPECT(next_into(fd, g, d + 8, n), EINVAL);
	EXPECT(next_into(fd, 0, d, n), EFAULT);
	EXPECT(next_into(fd, g, 0, n), EFAULT);
	EXPECT(next_into(fd, KERNEL_POINTER, d, n), EFAULT);
	EXPECT(next_into(fd, g, KERNEL_POINTER, n), EFAULT);
	EXPECT(next_into(fd, NOT_CANONICAL, d, n), EFAULT);
	EXPECT(next_into(fd, g, NOT_CANONICAL, n), EFAULT);
	EXPECT(next_into(fd, -4096UL, d, n), EFAULT);
	EXPECT(next_into(fd, g, -16UL, n), EFAULT);
	EXPECT(next_into(fd, 0x7ffffffff000UL, d, n), EFAULT);
	EXPECT(next_into(fd, (uintptr_t)read_only, d, n), EFAULT);
	EXPECT(next_into(fd, g, (uintptr_t)read_only, n), EFAULT);
	EXPECT(next_into(fd, (uintptr_t)none, d, n), EFAULT);
	EXPECT(next_into(fd, g, (uintptr_t)none, n), EFAULT);
	EXPECT(next_into(fd, (uintptr_t)half, d, n), EFAULT);
	EXPECT(next_into(fd, g, (uintptr_t)hole + 4096 - 16, n), EFAULT);
	/* Pages of the device's own kind of memory: none there. */
	file = open("/dev/zero", O_RDWR | O_CLOEXEC);
	if (file >= 0) {
		void *shared = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

		if (shared == MAP_FAILED)
			fail("mmap of /dev/zero: %s", strerror(errno));
		reader_init(&r, n, p.max_pfn);
		munmap(r.data, n * 4096);
		r.data = shared;
		reader_next(&r, fd);
		close(file);
	} else {
		reader_init(&r, n, p.max_pfn);
	}
	EXPECT(stats(fd, &s), 0);
	EXPECT(s.pages_reported, r.reported);	/* none of the errors took one */
	reader_rest(&r, fd, f.pages_to_dump);
	EXPECT(reader_next(&r, fd), 0);
	thaw(fd);
	EXPECT(stats(fd, &s), 0);
	EXPECT(s.pages_reported, f.pages_to_dump);
	EXPECT(s.lost_pages, r.lost);
	reader_free(&r);
	close(fd);
	munmap(good, n * 4096);
	munmap(read_only, n * 4096);
	munmap(none, n * 4096);
	munmap(half, n / 2 * 4096);
	munmap(hole, 8192);
	free((void *)d);
}

static void notes(void)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	unsigned char *buf, *read_only = pages_of(4, PROT_READ);
	struct livedump_notes n = { .size = sizeof(n) };
	int fd = open_device();

	fill_prepare(&p, "notes");
	prepare(fd, &p);
	freeze(fd, &f);
	EXPECT(f.nr_cpus, sysconf(_SC_NPROCESSORS_ONLN));
	buf = malloc(f.notes_bytes);
	EXPECT(notes_into(fd, buf, 0), ENOSPC);
	EXPECT(notes_into(fd, buf, f.notes_bytes - 1), ENOSPC);
	EXPECT(notes_into(fd, NULL, f.notes_bytes), EFAULT);
	EXPECT(notes_into(fd, (void *)KERNEL_POINTER, ~0ULL), EFAULT);
	EXPECT(notes_into(fd, (void *)NOT_CANONICAL, f.notes_bytes), EFAULT);
	EXPECT(notes_into(fd, read_only, 4 * 4096), EFAULT);
	n.buf = (uintptr_t)buf;
	n.buf_bytes = f.notes_bytes;
	EXPECT(call(fd, LIVEDUMP_IOC_NOTES, &n), 0);
	EXPECT(n.buf_bytes, f.notes_bytes);
	if (n.vmcoreinfo_offset + n.vmcoreinfo_bytes > n.buf_bytes ||
	    memcmp(buf + n.vmcoreinfo_offset, "OSRELEASE=", 10))
		fail("no VMCOREINFO in the notes");
	free(buf);
	munmap(read_only, 4 * 4096);
	close(fd);	/* without THAW */
}

/* All pages by many threads: each page once. */
struct share {
	int fd;
	struct reader r;
};

static void *share_read(void *arg)
{
	struct share *s = arg;

	while (reader_next(&s->r, s->fd))
		;
	return NULL;
}

static void threads_read(void)
{
	struct share s[4];
	pthread_t t[4];
	struct livedump_prepare p;
	struct livedump_freeze f;
	uint64_t sum = 0, pfn;
	int fd = open_device(), i;

	fill_prepare(&p, "threads");
	prepare(fd, &p);
	freeze(fd, &f);
	for (i = 0; i < 4; i++) {
		s[i].fd = fd;
		reader_init(&s[i].r, 1 + i * 300, p.max_pfn);
		pthread_create(&t[i], NULL, share_read, &s[i]);
	}
	for (i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	for (i = 0; i < 4; i++)
		sum += s[i].r.reported;
	EXPECT(sum, f.pages_to_dump);
	for (pfn = 0; pfn < p.max_pfn; pfn++)
		if (s[0].r.seen[pfn] + s[1].r.seen[pfn] + s[2].r.seen[pfn] + s[3].r.seen[pfn] > 1)
			fail("page %llx went to two threads", (unsigned long long)pfn);
	for (i = 0; i < 4; i++)
		reader_free(&s[i].r);
	thaw(fd);
	close(fd);
}

/* A child that owns a frozen session and waits to be killed. */
struct owner {
	pid_t pid;
	uint64_t max_pfn, to_dump, reported;
	uint32_t nr_cpus;
};

static void owner_start(struct owner *o, const char *name, uint32_t grace_ms, uint64_t deadline_ms,
			unsigned int batches, uint8_t *seen)
{
	int out[2];
	char c;

	if (pipe(out))
		fail("pipe: %s", strerror(errno));
	o = memset(o, 0, sizeof(*o));
	o->pid = bound_fork();
	if (!o->pid) {
		struct livedump_prepare p;
		struct livedump_freeze f;
		struct owner me = { 0 };
		struct reader r;
		int fd = open_device();

		fill_prepare(&p, name);
		p.grace_ms = grace_ms;
		p.deadline_ms = deadline_ms;
		prepare(fd, &p);
		freeze(fd, &f);
		reader_init(&r, 100, p.max_pfn);
		while (batches--)
			reader_next(&r, fd);
		me.max_pfn = p.max_pfn;
		me.to_dump = f.pages_to_dump;
		me.reported = r.reported;
		me.nr_cpus = f.nr_cpus;
		if (write(out[1], &me, sizeof(me)) != sizeof(me) ||
		    write(out[1], r.seen, p.max_pfn) != (ssize_t)p.max_pfn || write(out[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(out[1]);
	{
		pid_t pid = o->pid;
		uint64_t got = 0;

		if (read(out[0], o, sizeof(*o)) != sizeof(*o))
			fail("the child that was to freeze did not");
		o->pid = pid;
		while (got < o->max_pfn) {
			unsigned char chunk[4096];
			uint64_t left = o->max_pfn - got;
			ssize_t n = read(out[0], chunk, left < sizeof(chunk) ? left : sizeof(chunk));

			if (n <= 0)
				fail("the child said too little");
			if (seen)
				memcpy(seen + got, chunk, n);
			got += n;
		}
		if (read(out[0], &c, 1) != 1)
			fail("the child said too little");
	}
	close(out[0]);
}

static void owner_kill(struct owner *o)
{
	int status;

	kill(o->pid, SIGKILL);
	waitpid(o->pid, &status, 0);
	EXPECT(WTERMSIG(status), SIGKILL);
}

static int unload(void)
{
	return syscall(SYS_delete_module, "livedump", O_NONBLOCK) ? errno : 0;
}

static void no_grace(void)
{
	struct owner o;
	int fd = open_device();

	owner_start(&o, "no grace", 0, 0, 1, NULL);
	EXPECT(takeover(fd, "no grace", NULL), EBUSY);
	owner_kill(&o);
	EXPECT(takeover(fd, "no grace", NULL), ESRCH);
	EXPECT(prepare_busy(fd), 0);
	close(fd);
}

static void take_over(void)
{
	static unsigned char buf[16384];
	struct livedump_takeover t;
	struct livedump_prepare p;
	struct livedump_stats s;
	struct owner o;
	struct reader r;
	int fd = open_device(), other = open_device(), err;
	uint8_t *seen = calloc(1, 1UL << 24);

	owner_start(&o, "take over", 60000, 0, 3, seen);
	EXPECT(unload(), EAGAIN);
	owner_kill(&o);
	/* An orphan: nobody's, but there, and the module stays. */
	nobodys(fd);
	EXPECT(prepare_busy(fd), EBUSY);
	EXPECT(takeover(fd, "take ove", NULL), ENOENT);
	EXPECT(takeover(fd, "", NULL), ENOENT);
	close(fd);
	close(other);
	EXPECT(unload(), EAGAIN);
	fd = open_device();
	other = open_device();
	EXPECT(takeover(fd, "take over", &t), 0);
	EXPECT(takeover(fd, "take over", NULL), EINVAL);
	EXPECT(takeover(other, "take over", NULL), EBUSY);
	nobodys(other);
	EXPECT(t.prepare.max_pfn, o.max_pfn);
	EXPECT(t.prepare.grace_ms, 60000);
	EXPECT(t.prepare.exclude, LIVEDUMP_EXCLUDE_ALL);
	EXPECT(t.freeze.pages_to_dump, o.to_dump);
	EXPECT(t.freeze.nr_cpus, o.nr_cpus);
	EXPECT(t.pages_reported, o.reported);
	if (!t.deadline_ms || t.deadline_ms > 3600 * 1000)
		fail("a deadline of %llu ms", t.deadline_ms);
	EXPECT(notes_into(fd, buf, sizeof(buf)), 0);
	EXPECT(stats(fd, &s), 0);
	EXPECT(s.state, LIVEDUMP_STATE_FROZEN);
	EXPECT(s.pages_reported, o.reported);

	/* And on, in the third generation too. */
	reader_init(&r, 256, o.max_pfn);
	memcpy(r.seen, seen, o.max_pfn);
	r.reported = o.reported;
	reader_next(&r, fd);
	close(fd);
	EXPECT(takeover(other, "take over", &t), 0);
	EXPECT(t.pages_reported, r.reported);
	reader_rest(&r, other, o.to_dump);
	thaw(other);
	EXPECT(unload(), EAGAIN);	/* open */
	close(other);
	reader_free(&r);

	/* A new session is not the old one. */
	fd = open_device();
	other = open_device();
	fill_prepare(&p, "another");
	prepare(fd, &p);
	EXPECT(takeover(other, "take over", NULL), ENOENT);
	close(fd);
	EXPECT(takeover(other, "take over", NULL), ESRCH);

	/* Nobody comes. */
	owner_start(&o, "forgotten", 300, 0, 1, NULL);
	owner_kill(&o);
	WAIT_FOR((err = takeover(other, "other name", NULL)) == ESRCH || (err != ENOENT));
	EXPECT(err, ESRCH);
	EXPECT(prepare_busy(other), 0);
	close(other);
	free(seen);
}

/* Gives the kernel something to write: files, processes, pipes. */
static void churn(void)
{
	int i, fd, ends[2];
	char path[64];

	for (i = 0; i < 300; i++) {
		snprintf(path, sizeof(path), "/tmp/abi-churn-%d", i % 64);
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd >= 0 && write(fd, path, sizeof(path)) < 0)
			fail("write %s: %s", path, strerror(errno));
		close(fd);
		if (i % 3 == 2)
			unlink(path);
		if (!pipe(ends)) {
			close(ends[0]);
			close(ends[1]);
		}
		if (!(i % 20)) {
			pid_t pid = bound_fork();

			if (!pid)
				_exit(0);
			waitpid(pid, NULL, 0);
		}
	}
	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/tmp/abi-churn-%d", i);
		unlink(path);
	}
}

/*
 * What the child hands over before it is killed: it has read every page, acknowledged those of
 * every third batch, and had the kernel write many of the others after that.
 */
struct legacy {
	uint64_t max_pfn, to_dump, acked;
	uint8_t seen[1 << 21];		/* acknowledged page frames: 8 GiB */
	uint64_t hash[1 << 21];		/* of what came first; 0: nothing to compare */
	unsigned char first[1 << 21][LIVEDUMP_PAGE_SIZE];	/* what it was; takes no memory where nothing is put */
};

#define ACCESSED_DIRTY	0x60	/* in an entry of a page table */

/* 0 for a page whose content is not promised. */
static uint64_t hash_of(const struct reader *r, unsigned int i)
{
	const uint64_t *w = (const uint64_t *)(r->data + i * (size_t)LIVEDUMP_PAGE_SIZE);
	uint64_t h = 1, free = r->pages[i].flags & LIVEDUMP_PAGE_TABLE ? ACCESSED_DIRTY : 0;
	int k;

	if (r->pages[i].flags & (LIVEDUMP_PAGE_LOST | LIVEDUMP_PAGE_UNCOVERED))
		return 0;
	for (k = 0; k < LIVEDUMP_PAGE_SIZE / 8; k++)
		h = (h ^ (w[k] & ~free)) * 0x100000001b3ULL + (h >> 47);
	return h ? h : 1;
}

static void leave_behind(struct legacy *l, uint32_t mode)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct reader r;
	unsigned int n, batch = 0, i;
	uint32_t acked;
	int fd = open_device();

	fill_prepare(&p, "legacy");
	p.grace_ms = 60000;
	p.flags = LIVEDUMP_PREPARE_ACK;
	p.mode = mode;
	prepare(fd, &p);
	if (p.max_pfn > sizeof(l->seen))
		fail("a machine of %llu pages is too large for this test", p.max_pfn);
	EXPECT(acknowledge(fd, (struct livedump_page[]){ { .pfn = 1 } }, 1, NULL), EINVAL);
	freeze(fd, &f);
	reader_init(&r, 100, p.max_pfn);
	while ((n = reader_next(&r, fd))) {
		for (i = 0; i < n; i++) {
			uint64_t pfn = r.pages[i].pfn;

			l->hash[pfn] = hash_of(&r, i);
			if (r.pages[i].flags & LIVEDUMP_PAGE_TABLE)
				memcpy(l->first[pfn], r.data + i * (size_t)LIVEDUMP_PAGE_SIZE, LIVEDUMP_PAGE_SIZE);
		}
		if (batch++ % 3)
			continue;
		EXPECT(acknowledge(fd, r.pages, n, &acked), 0);
		EXPECT(acked, n);
		EXPECT(acknowledge(fd, r.pages, n, &acked), 0);
		EXPECT(acked, 0);	/* once is enough */
		for (i = 0; i < n; i++)
			l->seen[r.pages[i].pfn] = 1;
		l->acked += n;
	}
	EXPECT(r.reported, f.pages_to_dump);
	EXPECT(acknowledge(fd, r.pages, 0, NULL), EINVAL);
	EXPECT(acknowledge(fd, r.pages, LIVEDUMP_NEXT_MAX + 1, NULL), EINVAL);
	EXPECT(acknowledge(fd, NULL, 1, NULL), EFAULT);
	EXPECT(acknowledge(fd, (void *)KERNEL_POINTER, 1, NULL), EFAULT);
	r.pages[0].pfn = ~0ULL;
	r.pages[1].pfn = p.max_pfn;
	EXPECT(acknowledge(fd, r.pages, 2, &acked), 0);
	EXPECT(acked, 0);
	l->max_pfn = p.max_pfn;
	l->to_dump = f.pages_to_dump;
	churn();
}

/* The words of a page table that differ: which bits, tells who wrote them. */
static void say_difference(const struct legacy *l, const struct reader *r, unsigned int i)
{
	const uint64_t *first = (const uint64_t *)l->first[r->pages[i].pfn];
	const uint64_t *again = (const uint64_t *)(r->data + i * (size_t)LIVEDUMP_PAGE_SIZE);
	int k, said = 0;

	if (!(r->pages[i].flags & LIVEDUMP_PAGE_TABLE))
		return;
	for (k = 0; k < LIVEDUMP_PAGE_SIZE / 8 && said < 8; k++)
		if ((first[k] ^ again[k]) & ~(uint64_t)ACCESSED_DIRTY) {
			say("case: entry %d was %016llx, came as %016llx", k,
			    (unsigned long long)first[k], (unsigned long long)again[k]);
			said++;
		}
}

static void acknowledged_once(uint32_t mode)
{
	struct legacy *l = mmap(NULL, sizeof(*l), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int fd = open_device(), ready[2], status, err;
	struct livedump_takeover t;
	struct livedump_stats s;
	struct reader r;
	uint64_t compared = 0;
	unsigned int n, i;
	pid_t pid;
	char c;

	if (l == MAP_FAILED || pipe(ready))
		fail("no memory or pipe: %s", strerror(errno));
	pid = bound_fork();
	if (!pid) {
		leave_behind(l, mode);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		fail("the child did not get so far");
	close(ready[0]);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);

	while ((err = takeover(fd, "legacy", &t)) == EBUSY)
		pause_shortly();
	EXPECT(err, 0);
	EXPECT(t.prepare.flags, LIVEDUMP_PREPARE_ACK);
	EXPECT(t.pages_reported, l->acked);
	EXPECT(t.freeze.pages_to_dump, l->to_dump);
	/* All that was not acknowledged, once, and nothing else. */
	reader_init(&r, 64, l->max_pfn);
	memcpy(r.seen, l->seen, l->max_pfn);
	r.reported = l->acked;
	while ((n = reader_next(&r, fd)))
		for (i = 0; i < n; i++) {
			uint64_t first = l->hash[r.pages[i].pfn], again = hash_of(&r, i);

			if (first && again && first != again) {
				say_difference(l, &r, i);
				fail("page %llx came again with another content (flags %x)",
				     r.pages[i].pfn, r.pages[i].flags);
			}
			compared += first && again;
		}
	EXPECT(r.reported, l->to_dump);
	EXPECT(stats(fd, &s), 0);
	EXPECT(s.pages_reported, l->to_dump);
	EXPECT(s.pages_acked, l->acked);
	EXPECT(s.lost_pages, 0);
	if (!r.copies || !compared)
		fail("no page was written after it had been handed out: this shows nothing");
	say("case: %llu of %llu pages were acknowledged; of the others %llu were the same again, %llu of all had been written",
	    (unsigned long long)l->acked, (unsigned long long)l->to_dump,
	    (unsigned long long)compared, (unsigned long long)r.copies);
	thaw(fd);
	close(fd);
	reader_free(&r);
	munmap(l, sizeof(*l));
}

static void acknowledged(void)
{
	acknowledged_once(LIVEDUMP_MODE_BEST_EFFORT);
	acknowledged_once(LIVEDUMP_MODE_STRICT);
}

static void deadlines(void)
{
	static unsigned char buf[8192] __attribute__((aligned(4096)));
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct livedump_stats s;
	struct owner o;
	uint64_t until;
	int fd = open_device();

	fill_prepare(&p, "deadline");
	p.deadline_ms = 1;
	prepare(fd, &p);
	freeze(fd, &f);
	WAIT_FOR(state_of(fd) == LIVEDUMP_STATE_THAWED);
	EXPECT(stats(fd, &s), 0);
	EXPECT(s.failure, LIVEDUMP_FAILURE_DEADLINE);
	EXPECT(next_into(fd, (uintptr_t)buf, (uintptr_t)buf + 4096, 1), ENODATA);
	EXPECT(call(fd, LIVEDUMP_IOC_THAW, NULL), EINVAL);
	close(fd);

	/* The deadline of a session that is over is nobody else's. */
	fd = open_device();
	fill_prepare(&p, "short");
	p.deadline_ms = 400;
	prepare(fd, &p);
	freeze(fd, &f);
	until = now_ms() + 1000;
	close(fd);
	fd = open_device();
	fill_prepare(&p, "long");
	prepare(fd, &p);
	freeze(fd, &f);
	do {
		EXPECT(state_of(fd), LIVEDUMP_STATE_FROZEN);
		pause_shortly();
	} while (now_ms() < until);
	thaw(fd);
	close(fd);

	/* An orphan has the deadline of its session, not a new one. */
	owner_start(&o, "orphan", 3600 * 1000, 2000 * slowness(), 1, NULL);
	owner_kill(&o);
	fd = open_device();
	WAIT_FOR(takeover(fd, "other name", NULL) == ESRCH);
	EXPECT(prepare_busy(fd), 0);
	close(fd);
}

/* The 32-bit entry: the same structures, the same answers. */
static void compat(void)
{
	unsigned char *low = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct livedump_prepare *p = (void *)low;
	struct livedump_freeze *f = (void *)low;
	struct livedump_next *n = (void *)low;
	struct livedump_stats *s = (void *)low;
	uint32_t addr = (uintptr_t)low;
	int fd = open_device();

	if (low == MAP_FAILED)
		fail("mmap below 4 GiB: %s", strerror(errno));
	EXPECT(call32(fd, LIVEDUMP_IOC_THAW, 0), EINVAL);
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_PREPARE, 0), EFAULT);
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_PREPARE, 0xfffff000), EFAULT);
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_PREPARE, addr), EINVAL);
	fill_prepare(p, "32 bits");
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_PREPARE, addr), 0);
	memset(low, 0, 4096);
	f->size = sizeof(*f);
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_FREEZE, addr), 0);
	memset(low, 0, 4096);
	n->size = sizeof(*n);
	n->max_pages = 1;
	n->buf = addr + 4096;
	n->pages = addr + 2 * 4096;
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_NEXT, addr), 0);
	EXPECT(n->nr_pages, 1);
	memset(low, 0, 4096);
	s->size = sizeof(*s);
	EXPECT(call32(fd, (uint32_t)LIVEDUMP_IOC_STATS, addr), 0);
	EXPECT(s->pages_reported, 1);
	EXPECT(call32(fd, LIVEDUMP_IOC_THAW, 0), 0);
	close(fd);
	munmap(low, 4 * 4096);
}

#define CPU1	"/sys/devices/system/cpu/cpu1/online"

static int cpu1(const char *on)
{
	int err;

	write_file(CPU1, on, &err);
	return err;
}

/* What is refused while memory is frozen, and works before and after. */
static void cpu_hotplug(void)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct reader r;
	int fd;

	if (access(CPU1, W_OK)) {
		say("case: no second CPU: CPU hotplug not tried");
		return;
	}
	fd = open_device();
	fill_prepare(&p, "CPUs");
	prepare(fd, &p);
	/* Prepared is not frozen. */
	EXPECT(cpu1("0"), 0);
	EXPECT(cpu1("1"), 0);
	freeze(fd, &f);
	EXPECT(cpu1("0"), EBUSY);
	EXPECT(read_number(CPU1), 1);
	reader_init(&r, 512, p.max_pfn);
	reader_rest(&r, fd, f.pages_to_dump);
	reader_free(&r);
	thaw(fd);
	EXPECT(cpu1("0"), 0);
	close(fd);

	fd = open_device();
	fill_prepare(&p, "one CPU");
	prepare(fd, &p);
	freeze(fd, &f);
	EXPECT(f.nr_cpus, sysconf(_SC_NPROCESSORS_ONLN));
	EXPECT(cpu1("1"), EBUSY);
	EXPECT(read_number(CPU1), 0);
	reader_init(&r, 512, p.max_pfn);
	reader_rest(&r, fd, f.pages_to_dump);
	reader_free(&r);
	close(fd);
	EXPECT(cpu1("1"), 0);
}

static int memory_block(const char *block, const char *state)
{
	char path[300];
	int err;

	snprintf(path, sizeof(path), "/sys/devices/system/memory/%s/state", block);
	write_file(path, state, &err);
	return err;
}

/* Free pages of the zones that the kernel can allocate from. */
static unsigned long kernel_free(void)
{
	FILE *f = fopen("/proc/zoneinfo", "r");
	unsigned long sum = 0, n;
	char line[256], zone[32] = "";

	while (f && fgets(line, sizeof(line), f)) {
		int node;

		if (sscanf(line, "Node %d, zone %31s", &node, zone) == 2)
			continue;
		if (sscanf(line, " pages free %lu", &n) == 1 && strcmp(zone, "Movable") &&
		    strcmp(zone, "Device"))
			sum += n;
	}
	if (f)
		fclose(f);
	if (!sum)
		fail("/proc/zoneinfo does not say what is free");
	return sum;
}

/*
 * However large a reserve is asked for, the kernel keeps half of what it can have: memory of the
 * movable zone, with which the guest is booted, does not count.
 */
static void movable_memory(void)
{
	const unsigned long slack = (32 << 20) / 4096;	/* the module's tables */
	unsigned long before = kernel_free(), after;
	struct livedump_prepare p;
	int fd = open_device(), err;

	fill_prepare(&p, "movable");
	p.reserve_bytes = 1ULL << 40;
	err = call(fd, LIVEDUMP_IOC_PREPARE, &p);
	after = kernel_free();
	close(fd);
	if (err)
		fail("PREPARE: %s", strerror(err));
	if (after + slack < before / 2)
		fail("%lu pages were free for the kernel, and %lu are while a session is prepared", before, after);
	say("case: of %lu pages that were free for the kernel %lu still are", before, after);
}

#define SOFTBITS	"/opt/livedump_softbits.ko"
#define SOFTBITS_ENTRY	"/sys/module/livedump_softbits/parameters/entry"

static void entry_flags(char *flags, size_t size)
{
	FILE *f = fopen(SOFTBITS_ENTRY, "r");

	if (!f || !fgets(flags, size, f))
		fail(SOFTBITS_ENTRY ": %s", strerror(errno));
	fclose(f);
}

/*
 * Entries with each of the software bits.  The kernel sets SOFTW3 for the first page of RAM, since 6.15, and
 * SOFTW1 for what a graphics driver maps: such a machine can be dumped, and keeps
 * them.  The other two are the module's own: found in use, they are a refusal.
 */
static void software_bits(void)
{
	unsigned int number;

	for (number = 1; number <= 4; number++) {
		bool refused = number == 2 || number == 4;
		int module = open(SOFTBITS, O_RDONLY | O_CLOEXEC), fd = open_device();
		char word[16], before[32], after[32];
		struct livedump_prepare p;
		struct livedump_freeze f;

		snprintf(word, sizeof(word), "number=%u", number);
		if (module < 0 || syscall(SYS_finit_module, module, word, 0))
			fail(SOFTBITS " %s: %s", word, strerror(errno));
		close(module);
		entry_flags(before, sizeof(before));
		fill_prepare(&p, "bits");
		if (refused) {
			EXPECT(call(fd, LIVEDUMP_IOC_PREPARE, &p), EOPNOTSUPP);
			EXPECT(p.refusal, LIVEDUMP_REFUSAL_ENTRY_BITS);
		} else {
			prepare(fd, &p);
			freeze(fd, &f);
			entry_flags(after, sizeof(after));
			if (!strcmp(before, after))
				fail("the entry with SOFTW%u was not protected: %s", number, after);
			thaw(fd);
		}
		close(fd);
		entry_flags(after, sizeof(after));
		if (strcmp(before, after))
			fail("flags of the entry with SOFTW%u were %s, and are %s", number, before, after);
		if (syscall(SYS_delete_module, "livedump_softbits", O_NONBLOCK))
			fail("unload " SOFTBITS ": %s", strerror(errno));
	}
}

#define LDT_SELECTOR	7	/* entry 0 of the process's own table, for user mode */
#define SS_SHIFT	48	/* in REG_CSGSFS */

static volatile sig_atomic_t returns;

static void return_to_16_bit_stack(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	(void)sig;
	(void)info;
	uc->uc_mcontext.gregs[REG_CSGSFS] &= ~(0xffffLL << SS_SHIFT);
	uc->uc_mcontext.gregs[REG_CSGSFS] |= (long long)LDT_SELECTOR << SS_SHIFT;
	returns++;
}

/* Has the kernel return to this process with a 16-bit stack segment, on each CPU; false if it does not know these. */
static bool use_16_bit_stack(void)
{
	const struct user_desc stack = { .limit = 0xffff, .useable = 1 };
	struct sigaction action = { .sa_sigaction = return_to_16_bit_stack, .sa_flags = SA_SIGINFO };
	long cpu, cpus = sysconf(_SC_NPROCESSORS_CONF);

	/* The kernel returns an int, a negative one as it is. */
	switch ((int)syscall(SYS_modify_ldt, 0x11, &stack, sizeof(stack))) {
	case 0:
		break;
	case -EINVAL:
		return false;
	default:
		fail("modify_ldt");
	}
	sigaction(SIGUSR1, &action, NULL);
	for (cpu = 0; cpu < cpus; cpu++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		EXPECT(sched_setaffinity(0, sizeof(set), &set), 0);
		returns = 0;
		raise(SIGUSR1);
		EXPECT(returns, 1);
	}
	return true;
}

/*
 * To return to a 16-bit stack segment the kernel writes a page of its own (espfix) when it is nearly
 * out, on a stack of a page and with no state to take a fault in: the module must
 * have left that page writable.  Whoever may use modify_ldt() can have that done.  This sees that
 * the return works while memory is frozen; with a fault it did so too, for want of anything else on the stack.
 */
static void returns_to_16_bit_stacks(void)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct livedump_stats before, after;
	int fd = open_device();

	if (!use_16_bit_stack()) {
		say("case: this kernel has no 16-bit segments: not tried");
		close(fd);
		return;
	}
	fill_prepare(&p, "16-bit");
	prepare(fd, &p);
	freeze(fd, &f);
	EXPECT(stats(fd, &before), 0);
	use_16_bit_stack();
	EXPECT(stats(fd, &after), 0);
	thaw(fd);
	close(fd);
	say("case: %llu faults meanwhile", (unsigned long long)(after.faults - before.faults));
}

#define BLOCK_NAME	64

/* Takes a block offline that the kernel can do without. */
static bool take_block_offline(char block[BLOCK_NAME])
{
	DIR *dir = opendir("/sys/devices/system/memory");
	struct dirent *e;

	*block = '\0';
	while (dir && !*block && (e = readdir(dir)))
		if (!strncmp(e->d_name, "memory", 6) && strlen(e->d_name) < BLOCK_NAME &&
		    !memory_block(e->d_name, "offline"))
			strcpy(block, e->d_name);
	if (dir)
		closedir(dir);
	return *block;
}

static void memory_hotplug(void)
{
	char block[BLOCK_NAME];
	struct livedump_prepare p;
	struct livedump_freeze f;
	int fd;

	if (!take_block_offline(block)) {
		say("case: no block of memory can go offline: memory hotplug not tried");
		return;
	}
	fd = open_device();
	fill_prepare(&p, "memory");
	prepare(fd, &p);
	EXPECT(!memory_block(block, "online"), 0);
	freeze(fd, &f);
	EXPECT(!memory_block(block, "online"), 0);
	close(fd);
	EXPECT(memory_block(block, "online"), 0);
	EXPECT(memory_block(block, "offline"), 0);
	EXPECT(memory_block(block, "online"), 0);
	fd = open_device();
	fill_prepare(&p, "memory");
	prepare(fd, &p);
	freeze(fd, &f);
	EXPECT(!memory_block(block, "offline"), 0);
	close(fd);
	EXPECT(memory_block(block, "offline"), 0);
	EXPECT(memory_block(block, "online"), 0);
	say("case: %s was refused to go on- and offline", block);
}

/* Dumps the kernel; how many page frames of these came. */
static unsigned long reported_of(unsigned long first, unsigned long pages, struct livedump_freeze *f)
{
	unsigned long pfn, came = 0;
	struct livedump_prepare p;
	uint64_t sum = 0;
	struct reader r;
	int fd = open_device(), i;

	fill_prepare(&p, "offline");
	prepare(fd, &p);
	freeze(fd, f);
	for (i = 0; i < LIVEDUMP_CLASS_SLOTS; i++)
		sum += f->class_pages[i];
	EXPECT(sum, p.ram_pages);
	reader_init(&r, 256, p.max_pfn);
	reader_rest(&r, fd, f->pages_to_dump);
	for (pfn = first; pfn < first + pages && pfn < p.max_pfn; pfn++)
		came += r.seen[pfn];
	reader_free(&r);
	thaw(fd);
	close(fd);
	return came;
}

/*
 * A block that is offline is in /proc/iomem as any other, but nobody's: its struct pages are what
 * their last owner left, which looks like the kernel's.
 */
static void offline_memory(void)
{
	struct livedump_freeze with, without;
	unsigned long pages = read_hex("/sys/devices/system/memory/block_size_bytes") / 4096, first;
	char block[BLOCK_NAME], path[300];

	if (!take_block_offline(block)) {
		say("case: no block of memory can go offline: not tried");
		return;
	}
	snprintf(path, sizeof(path), "/sys/devices/system/memory/%s/phys_index", block);
	first = read_hex(path) * pages;
	EXPECT(reported_of(first, pages, &without), 0);
	EXPECT(memory_block(block, "online"), 0);
	reported_of(first, pages, &with);
	EXPECT(without.class_pages[LIVEDUMP_CLASS_OFFLINE] - with.class_pages[LIVEDUMP_CLASS_OFFLINE],
	       pages);
	say("case: none of %s's %lu pages was dumped, nor counted as anything else than offline",
	    block, pages);
}

static void suspend(void)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	int fd = open_device(), err;

	fill_prepare(&p, "suspend");
	prepare(fd, &p);
	write_file("/sys/power/state", "freeze", &err);
	EXPECT(!err, 0);
	freeze(fd, &f);
	write_file("/sys/power/state", "freeze", &err);
	EXPECT(!err, 0);
	if (!access("/sys/power/disk", W_OK)) {
		write_file("/sys/power/state", "disk", &err);
		EXPECT(!err, 0);
	}
	EXPECT(state_of(fd), LIVEDUMP_STATE_FROZEN);
	close(fd);
	/* Refusing has left nothing behind. */
	fd = open_device();
	fill_prepare(&p, "suspend");
	prepare(fd, &p);
	close(fd);
}

/* Memory that another thread takes away while NEXT writes to it. */
static volatile bool stop_unmapping;
static unsigned char *contested;

static void *unmapper(void *arg)
{
	(void)arg;
	while (!stop_unmapping) {
		munmap(contested, 256 * 4096);
		mmap(contested, 256 * 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	}
	return NULL;
}

static void unmapped_meanwhile(void)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct livedump_page *d = calloc(256, sizeof(*d));
	struct livedump_stats s;
	uint64_t sum = 0;
	pthread_t t;
	int fd = open_device(), faults = 0, err;

	fill_prepare(&p, "munmap");
	prepare(fd, &p);
	freeze(fd, &f);
	contested = pages_of(256, PROT_READ | PROT_WRITE);
	stop_unmapping = false;
	pthread_create(&t, NULL, unmapper, NULL);
	for (;;) {
		struct livedump_next n = {
			.size = sizeof(n), .max_pages = 256, .buf = (uintptr_t)contested, .pages = (uintptr_t)d,
		};

		err = call(fd, LIVEDUMP_IOC_NEXT, &n);
		if (err && err != EFAULT)
			fail("NEXT: %s", strerror(err));
		if (!err && !n.nr_pages)
			break;
		faults += !!err;
		sum += err ? 0 : n.nr_pages;
	}
	stop_unmapping = true;
	pthread_join(t, NULL);
	EXPECT(sum, f.pages_to_dump);
	EXPECT(stats(fd, &s), 0);
	EXPECT(s.pages_reported, sum);
	say("case: %d of the calls met no memory", faults);
	close(fd);
	munmap(contested, 256 * 4096);
	free(d);
}

int run_cases(const char *only)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} cases[] = {
		{ "who may open", who_may_open }, { "states and arguments", states },
		{ "shared files", shared_files }, { "buffers of NEXT", next_buffers }, { "notes", notes },
		{ "many threads", threads_read }, { "munmap during NEXT", unmapped_meanwhile },
		{ "no grace", no_grace }, { "takeover", take_over }, { "acknowledged", acknowledged },
		{ "deadlines", deadlines },
		{ "32-bit calls", compat }, { "CPU hotplug", cpu_hotplug },
		{ "movable memory", movable_memory },
		{ "software bits", software_bits },
		{ "16-bit stacks", returns_to_16_bit_stacks }, { "memory hotplug", memory_hotplug },
		{ "offline memory", offline_memory }, { "suspend", suspend },
	};
	int failed = 0, ran = 0;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t start = now_ms();
		int status;
		pid_t pid;
		bool named = only && !strcmp(*only == '-' ? only + 1 : only, cases[i].name);

		if (only && named == (*only == '-'))
			continue;
		ran++;
		/* Each in a process of its own: whatever fails, the next begins with no session. */
		fflush(stdout);
		pid = bound_fork();
		if (!pid) {
			cases[i].run();
			exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			fail("fork: %s", strerror(errno));
		failed += !!status;
		say("case: %s: %s (%llu ms)", cases[i].name, status ? "FAILED" : "ok",
		    (unsigned long long)(now_ms() - start));
	}
	if (failed || !ran)
		fail("%d of %d cases", failed, ran);
	say("abi: %d cases passed", ran);
	return 0;
}

/* Freezes and waits, for whoever wants to see what becomes of it. */
int run_hold(uint64_t grace_ms)
{
	struct livedump_prepare p;
	struct livedump_freeze f;
	int fd = open_device();

	fill_prepare(&p, "hold");
	p.grace_ms = grace_ms;
	prepare(fd, &p);
	freeze(fd, &f);
	say("abi: frozen");
	for (;;)
		pause();
}

int run_crash_kernel(const char *image, const char *initramfs, const char *words)
{
	int kernel = open(image, O_RDONLY | O_CLOEXEC), initrd = open(initramfs, O_RDONLY | O_CLOEXEC);

	if (kernel < 0 || initrd < 0)
		fail("%s or %s: %s", image, initramfs, strerror(errno));
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(words) + 1, words, KEXEC_FILE_ON_CRASH))
		fail("kexec_file_load: %s", strerror(errno));
	say("abi: crash kernel loaded");
	return 0;
}

#define PRETEND		"/sys/module/livedump/parameters/pretend"
#define PRETEND_SPLITS	"/sys/module/livedump/parameters/pretend_splits"

int run_pretend(void)
{
	static const uint32_t refusals[] = {
		LIVEDUMP_REFUSAL_XEN_PV, LIVEDUMP_REFUSAL_TRACEPOINT, LIVEDUMP_REFUSAL_ENTRY_BITS,
		LIVEDUMP_REFUSAL_STACKS, LIVEDUMP_REFUSAL_LAYOUT, LIVEDUMP_REFUSAL_VMCOREINFO,
		LIVEDUMP_REFUSAL_TSC,
	};
	struct livedump_prepare p;
	struct livedump_freeze f;
	struct livedump_stats s;
	struct reader r;
	int fd = open_device(), err;
	char text[12];
	size_t i;

	for (i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		snprintf(text, sizeof(text), "%u", refusals[i]);
		write_file(PRETEND, text, &err);
		EXPECT(err, 0);
		fill_prepare(&p, "pretend");
		EXPECT(call(fd, LIVEDUMP_IOC_PREPARE, &p), EOPNOTSUPP);
		EXPECT(p.refusal, refusals[i]);
		nobodys(fd);
	}
	write_file(PRETEND, "0", &err);
	EXPECT(err, 0);

	/* Plans that are out of date when they are complete: the stop notices, and all is planned anew. */
	fill_prepare(&p, "pretend");
	prepare(fd, &p);
	write_file(PRETEND_SPLITS, "2", &err);
	EXPECT(err, 0);
	freeze(fd, &f);
	EXPECT(read_number(PRETEND_SPLITS), 0);
	EXPECT(stats(fd, &s), 0);
	if (s.stop_attempts < 3)
		fail("a plan that was out of date was gone by: %u attempts", s.stop_attempts);
	reader_init(&r, 256, p.max_pfn);
	reader_rest(&r, fd, f.pages_to_dump);
	reader_free(&r);
	thaw(fd);
	close(fd);
	say("abi: %zu refusals, and two plans that were out of date", i);
	return 0;
}

#define LOCKDOWN "/sys/kernel/security/lockdown"

/* A level once taken can't be left again. */
int run_lockdown(const char *level)
{
	bool refused = !strcmp(level, "confidentiality");	/* integrity lets memory be read */
	struct livedump_prepare p;
	int fd = open_device(), err;

	if (access(LOCKDOWN, W_OK) && mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL))
		fail("mount securityfs: %s", strerror(errno));
	write_file(LOCKDOWN, level, &err);
	EXPECT(err, 0);
	fill_prepare(&p, "lockdown");
	EXPECT(call(fd, LIVEDUMP_IOC_PREPARE, &p), refused ? EPERM : 0);
	EXPECT(p.refusal, refused ? LIVEDUMP_REFUSAL_LOCKDOWN : LIVEDUMP_REFUSAL_NONE);
	close(fd);
	say("abi: %s under lockdown for %s", refused ? "refused" : "not refused", level);
	return 0;
}

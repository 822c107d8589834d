// SPDX-License-Identifier: Apache-2.0
/*
 * Anything, in any order, from everywhere at once.
 *
 * A round is a process with some threads that share files, memory and a bad temper.  One
 * of them mostly does what a good caller does, so that there is a session to be
 * abused; the others do what comes to mind.  At the end of the round the process exits or is
 * killed, and its parent finds out what is left: nothing, or an orphan that it takes over.
 *
 * Wrong answers are: an error that no step has, a page that cannot be, memory behind the
 * answer written, a session that does not end.  What the kernel says on its
 * console, and whether its page tables and memory are as before, is the caller's to check.
 *
 * Everything is drawn from SEED, but what the threads do to each other is not repeatable.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "abi.h"

#define THREADS_MAX	6
#define FILES		4
#define ARENA_PAGES	64
/* Far from all else by some bits, so that a spoiled pointer to it does not hit this program. */
#define ARENA_AT	0x5a5c0000UL

/* Shared by all processes of a round, and seen by the parent. */
struct tally {
	uint64_t calls, ok, pages, taken_over, killed;
	uint64_t errors[136];
};

static struct tally *tally;
static unsigned char *arena;		/* below 4 GiB, contested by all threads */
static int files[FILES];
static char name[16];			/* of this round's sessions */
static volatile bool round_over;

struct dice {
	uint64_t state;
};

static uint64_t roll(struct dice *d)
{
	uint64_t z = (d->state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static uint64_t below(struct dice *d, uint64_t n)
{
	return roll(d) % n;
}

static bool one_in(struct dice *d, uint64_t n)
{
	return !below(d, n);
}

/* Errors that a step may answer; any other is a defect. */
static void count(unsigned long request, int err)
{
	static const int allowed[] = {
		0, EINVAL, EFAULT, ENOTTY, EBUSY, EBADF, ENOMEM, EAGAIN, ENOSPC, ENODATA, EINTR, EUSERS,
		ESRCH, ENOENT,
	};
	size_t i;

	__atomic_add_fetch(&tally->calls, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&tally->ok, !err, __ATOMIC_RELAXED);
	if (err > 0 && err < 136)
		__atomic_add_fetch(&tally->errors[err], 1, __ATOMIC_RELAXED);
	for (i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
		if (allowed[i] == err)
			return;
	fail("ioctl %lx: error %d (%s), which no step has", request, err, strerror(err));
}

static int some_file(struct dice *d)
{
	switch (below(d, 40)) {
	case 0:
		return -1;
	case 1:
		return (int)below(d, 30);
	default:
		return files[below(d, FILES)];
	}
}

static uint64_t some_pointer(struct dice *d)
{
	switch (below(d, 12)) {
	case 0:
		return 0;
	case 1:
		return 0xffff888000000000ULL + (below(d, 1 << 18) << 12);
	case 2:
		return 0xffffffff81000000ULL + below(d, 1 << 24);
	case 3:
		return roll(d);
	case 4:
		return -below(d, 3 * 4096);
	case 5:
		return 0x7ffffffff000ULL - below(d, 2 * 4096);
	case 6:
		return (uintptr_t)arena + below(d, ARENA_PAGES * 4096);
	case 7:
		return (uintptr_t)&fail;	/* text: read-only */
	default:
		return (uintptr_t)arena + below(d, ARENA_PAGES) * 4096;
	}
}

static uint64_t some_number(struct dice *d)
{
	switch (below(d, 8)) {
	case 0:
		return roll(d);
	case 1:
		return 1ULL << below(d, 64);
	case 2:
		return -(1ULL << below(d, 64));
	case 3:
		return (uint32_t)roll(d);
	case 4:
		return some_pointer(d);
	default:
		return below(d, 2000);
	}
}

static const unsigned long requests[] = {
	LIVEDUMP_IOC_PREPARE, LIVEDUMP_IOC_FREEZE, LIVEDUMP_IOC_NOTES, LIVEDUMP_IOC_NEXT,
	LIVEDUMP_IOC_STATS, LIVEDUMP_IOC_TAKEOVER, LIVEDUMP_IOC_THAW, LIVEDUMP_IOC_ACK,
};
#define NR_REQUESTS (sizeof(requests) / sizeof(requests[0]))

union argument {
	uint32_t size;
	struct livedump_prepare prepare;
	struct livedump_freeze freeze;
	struct livedump_notes notes;
	struct livedump_next next;
	struct livedump_stats stats;
	struct livedump_takeover takeover;
	struct livedump_ack ack;
	uint64_t words[256];
};

/* An argument that could be meant. */
static void sensible(struct dice *d, unsigned long request, union argument *a)
{
	memset(a, 0, sizeof(*a));
	a->size = _IOC_SIZE(request);
	switch (request) {
	case LIVEDUMP_IOC_PREPARE:
		fill_prepare(&a->prepare, name);
		a->prepare.mode = one_in(d, 4) ? LIVEDUMP_MODE_STRICT : LIVEDUMP_MODE_BEST_EFFORT;
		if (one_in(d, 4))
			a->prepare.reserve_bytes = (8 + below(d, 64)) << 20;
		if (one_in(d, 3))
			a->prepare.deadline_ms = 1 + below(d, 2000 * slowness());
		if (one_in(d, 2))
			a->prepare.grace_ms = 1 + below(d, 3000 * slowness());
		if (one_in(d, 4))
			a->prepare.flags = below(d, LIVEDUMP_PREPARE_FLAGS + 1);
		break;
	case LIVEDUMP_IOC_NOTES:
		a->notes.buf = (uintptr_t)arena + below(d, ARENA_PAGES / 2) * 4096;
		a->notes.buf_bytes = ARENA_PAGES / 2 * 4096;
		break;
	case LIVEDUMP_IOC_NEXT:
		a->next.max_pages = 1 + below(d, ARENA_PAGES - 4);
		a->next.buf = (uintptr_t)arena + below(d, 4) * 4096;
		a->next.pages = (uintptr_t)arena + below(d, ARENA_PAGES - 4) * 4096;
		break;
	case LIVEDUMP_IOC_ACK:
		/* Whatever lies there: often descriptions of pages. */
		a->ack.nr_pages = 1 + below(d, 200);
		a->ack.pages = (uintptr_t)arena + below(d, ARENA_PAGES - 4) * 4096;
		break;
	case LIVEDUMP_IOC_TAKEOVER:
		memcpy(a->takeover.uuid, name, sizeof(name));
		break;
	}
}

static void spoil(struct dice *d, union argument *a, unsigned int size)
{
	unsigned int times = 1 + below(d, 3);

	while (times--) {
		if (one_in(d, 2))
			a->words[below(d, size / 8)] = some_number(d);
		else
			((uint8_t *)a)[below(d, size)] ^= 1 << below(d, 8);
	}
}

/* One call of the device, more or less meant. */
static void some_call(struct dice *d)
{
	unsigned long request = requests[below(d, NR_REQUESTS)];
	unsigned int size = _IOC_SIZE(request);
	union argument a, *arg = &a;
	int fd = some_file(d);

	/* THAW and PREPARE would end or block everything too often. */
	if ((request == LIVEDUMP_IOC_THAW || request == LIVEDUMP_IOC_PREPARE) && !one_in(d, 6))
		request = LIVEDUMP_IOC_NEXT, size = _IOC_SIZE(request);
	sensible(d, request, &a);
	if (size && one_in(d, 2))
		spoil(d, &a, size);
	if (one_in(d, 8))
		request = one_in(d, 2) ? request ^ (1UL << below(d, 32)) :
					 (unsigned long)_IOC(below(d, 4), LIVEDUMP_IOC_MAGIC,
							     below(d, 10), below(d, 700));
	if (one_in(d, 4)) {
		/* In memory that others write, unmap and protect meanwhile. */
		arg = (void *)(arena + below(d, ARENA_PAGES - 1) * 4096 + below(d, 512) * 8);
		if (!one_in(d, 3)) {
			struct iovec from = { &a, sizeof(a) }, to = { arg, sizeof(a) };

			/* It may be gone: let the kernel try. */
			if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) < 0)
				errno = 0;
		}
	} else if (one_in(d, 10)) {
		arg = (void *)some_pointer(d);
	}
	if (one_in(d, 6) && (uintptr_t)arg < 0xffffffff && !getenv("ABI_NO_32BIT"))
		count(request, call32(fd, (uint32_t)request, (uint32_t)(uintptr_t)arg));
	else
		count(request, call(fd, request, arg));
}

static const uint32_t known_flags = LIVEDUMP_PAGE_COPY | LIVEDUMP_PAGE_LOST |
				    LIVEDUMP_PAGE_UNCOVERED | LIVEDUMP_PAGE_TABLE;

/* Pages handed out must be possible ones; the buffers are this thread's own. */
static void good_next(struct dice *d, int fd, unsigned char *data, struct livedump_page *pages,
		      uint64_t max_pfn)
{
	struct livedump_next n = {
		.size = sizeof(n), .max_pages = 1 + below(d, 32), .buf = (uintptr_t)data,
		.pages = (uintptr_t)pages,
	};
	unsigned int i, asked = n.max_pages;
	int err;

	memset(&pages[asked], 0xa5, sizeof(pages[0]));
	memset(data + asked * 4096UL, 0xa5, 4096);
	err = call(fd, LIVEDUMP_IOC_NEXT, &n);
	count(LIVEDUMP_IOC_NEXT, err);
	for (i = 0; i < 4096; i++)
		if (data[asked * 4096UL + i] != 0xa5)
			fail("NEXT wrote behind the pages");
	for (i = 0; i < sizeof(pages[0]); i++)
		if (((uint8_t *)&pages[asked])[i] != 0xa5)
			fail("NEXT wrote behind the descriptions");
	if (err)
		return;
	if (n.nr_pages > asked)
		fail("NEXT: %u pages of %u", n.nr_pages, asked);
	for (i = 0; i < n.nr_pages; i++)
		if (pages[i].pfn >= max_pfn || pages[i].class_id >= LIVEDUMP_NR_CLASSES ||
		    !pages[i].class_id || pages[i].flags & ~known_flags)
			fail("NEXT: page %llx of class %u with flags %x", pages[i].pfn, pages[i].class_id,
			     pages[i].flags);
	__atomic_add_fetch(&tally->pages, n.nr_pages, __ATOMIC_RELAXED);
	if (n.nr_pages && one_in(d, 3)) {
		struct livedump_ack k = { .size = sizeof(k), .nr_pages = n.nr_pages, .pages = (uintptr_t)pages };

		count(LIVEDUMP_IOC_ACK, call(fd, LIVEDUMP_IOC_ACK, &k));
	}
}

static void play_with_files(struct dice *d)
{
	char byte;
	int fd = files[below(d, FILES)];
	struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT };
	void *m;

	switch (below(d, 9)) {
	case 0: {
		int n = open(DEVICE, (one_in(d, 2) ? O_RDWR : O_RDONLY) | O_CLOEXEC);

		if (n >= 0) {
			dup2(n, fd);
			close(n);
		}
		break;
	}
	case 1:
		dup2(files[below(d, FILES)], fd);
		break;
	case 2:
		close(fd);
		break;
	case 3:
		if (read(fd, &byte, 1) == 1)
			fail("the device can be read");
		break;
	case 4:
		if (write(fd, "", 1) == 1)
			fail("the device can be written");
		break;
	case 5:
		lseek(fd, (off_t)some_number(d), SEEK_SET);
		break;
	case 6:
		m = mmap(NULL, 4096, PROT_READ, one_in(d, 2) ? MAP_SHARED : MAP_PRIVATE, fd, 0);
		if (m != MAP_FAILED)
			fail("the device can be mapped");
		break;
	case 7:
		poll(&p, 1, 0);
		break;
	case 8:
		fcntl(fd, F_SETFL, one_in(d, 2) ? O_NONBLOCK | O_ASYNC : 0);
		break;
	}
}

static void play_with_memory(struct dice *d)
{
	unsigned char *at = arena + below(d, ARENA_PAGES) * 4096;
	size_t left = arena + ARENA_PAGES * 4096 - at;
	size_t bytes = (1 + below(d, left / 4096)) * 4096;

	switch (below(d, 5)) {
	case 0:
		munmap(at, bytes);
		break;
	case 1:
		mprotect(at, bytes, one_in(d, 2) ? PROT_READ : PROT_NONE);
		break;
	case 2:
		madvise(at, bytes, MADV_DONTNEED);
		break;
	default:	/* all of it, so that there is something to lose again */
		mmap(arena, ARENA_PAGES * 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	}
}

static void child(struct dice *d)
{
	struct dice own = { roll(d) };
	pid_t pid = fork();
	int status;

	if (!pid) {
		unsigned int n = below(&own, 20);

		while (n--)
			some_call(&own);
		_exit(0);
	}
	if (pid < 0)
		return;
	if (one_in(d, 2))
		kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status))
		_exit(WEXITSTATUS(status));
}

struct actor {
	pthread_t thread;
	struct dice d;
	bool leader;
};

static struct actor actors[THREADS_MAX];
static unsigned int nr_actors;
static pthread_barrier_t all_there;	/* they send each other signals */

/* What a good caller does, mostly. */
static void lead(struct dice *d)
{
	static unsigned char *data;
	static struct livedump_page *pages;
	union argument a;
	struct livedump_freeze f = { .size = sizeof(f) };
	int fd = files[0], err, tries;
	unsigned int batches;

	if (!data) {
		data = mmap(NULL, 33 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		pages = calloc(33, sizeof(*pages));
		if (data == MAP_FAILED || !pages)
			fail("no memory");
	}
	sensible(d, LIVEDUMP_IOC_PREPARE, &a);
	err = call(fd, LIVEDUMP_IOC_PREPARE, &a);
	count(LIVEDUMP_IOC_PREPARE, err);
	if (err == EBUSY && one_in(d, 2)) {
		int n = open(DEVICE, O_RDWR | O_CLOEXEC);

		/* Whose session is it?  Perhaps a file of ours that was replaced. */
		dup2(n, fd);
		close(n);
	}
	if (err)
		return;
	for (tries = 0; tries < 5; tries++) {
		err = call(fd, LIVEDUMP_IOC_FREEZE, &f);
		count(LIVEDUMP_IOC_FREEZE, err);
		if (err != EAGAIN)
			break;
	}
	for (batches = below(d, one_in(d, 4) ? 1000 : 50); batches && !round_over; batches--)
		good_next(d, fd, data, pages, a.prepare.max_pfn);
	if (one_in(d, 2))
		count(LIVEDUMP_IOC_THAW, call(fd, LIVEDUMP_IOC_THAW, NULL));
	if (one_in(d, 2)) {
		int n = open(DEVICE, O_RDWR | O_CLOEXEC);

		dup2(n, fd);
		close(n);
	}
}

static void *act(void *arg)
{
	struct actor *me = arg;
	struct dice *d = &me->d;

	pthread_barrier_wait(&all_there);
	while (!round_over) {
		if (me->leader && !one_in(d, 4)) {
			lead(d);
			continue;
		}
		switch (below(d, 32)) {
		case 0:
			play_with_files(d);
			break;
		case 1: case 2: case 3: case 4:
			play_with_memory(d);
			break;
		case 5:
			if (one_in(d, 4))
				child(d);
			break;
		case 6:
			pthread_kill(actors[below(d, nr_actors)].thread, SIGUSR1);
			break;
		case 7:
			sched_yield();
			break;
		default:
			some_call(d);
			break;
		}
	}
	return NULL;
}

static void on_signal(int number)
{
	(void)number;
}

/* The process of a round. */
static void play(uint64_t seed)
{
	struct sigaction sa = { .sa_handler = on_signal };	/* without SA_RESTART */
	struct dice d = { seed };
	unsigned int i, ms = (200 + below(&d, 3000)) * slowness();
	uint64_t until = now_ms() + ms;

	sigaction(SIGUSR1, &sa, NULL);
	arena = mmap((void *)ARENA_AT, ARENA_PAGES * 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (arena != (void *)ARENA_AT)
		fail("no memory at %lx", ARENA_AT);
	for (i = 0; i < FILES; i++)
		files[i] = open_device();
	nr_actors = 2 + below(&d, THREADS_MAX - 1);
	for (i = 0; i < nr_actors; i++)
		actors[i] = (struct actor){ .d = { roll(&d) }, .leader = !i };
	pthread_barrier_init(&all_there, NULL, nr_actors + 1);
	for (i = 0; i < nr_actors; i++)
		if (pthread_create(&actors[i].thread, NULL, act, &actors[i]))
			fail("no thread");
	pthread_barrier_wait(&all_there);
	while (now_ms() < until)
		pause_shortly();
	round_over = true;
	for (i = 0; i < nr_actors; i++)
		pthread_join(actors[i].thread, NULL);
	exit(0);
}

/* After a round nothing may be left but an orphan that can be taken over. */
static void tidy_up(struct dice *d)
{
	struct livedump_prepare p;
	struct livedump_takeover t;
	int fd = open_device(), err;
	uint64_t until = now_ms() + 60000;

	for (;;) {
		memset(&t, 0, sizeof(t));
		t.size = sizeof(t);
		memcpy(t.uuid, name, sizeof(name));
		err = call(fd, LIVEDUMP_IOC_TAKEOVER, &t);
		if (!err || err == ESRCH)
			break;
		/* EBUSY: a child that was killed late still has the file.  ENOENT: a UUID was spoiled. */
		if (err != EBUSY && err != ENOENT)
			fail("TAKEOVER: %s", strerror(err));
		if (now_ms() > until)
			fail("TAKEOVER: still %s; the round's process is gone", strerror(err));
		pause_shortly();
	}
	if (!err) {
		struct livedump_stats s;
		struct reader r;

		tally->taken_over++;
		EXPECT(stats(fd, &s), 0);
		EXPECT(s.state, LIVEDUMP_STATE_FROZEN);
		EXPECT(s.pages_to_dump, t.freeze.pages_to_dump);
		if (s.failure == LIVEDUMP_FAILURE_NONE && t.deadline_ms > 60000 && one_in(d, 2)) {
			/* The pages that were not reported yet, each once, and then no more. */
			reader_init(&r, 256, t.prepare.max_pfn);
			if (t.prepare.mode == LIVEDUMP_MODE_BEST_EFFORT &&
			    t.prepare.exclude == LIVEDUMP_EXCLUDE_ALL)
				reader_rest(&r, fd, s.pages_to_dump - s.pages_reported);
			reader_free(&r);
		}
		if (one_in(d, 2))
			count(LIVEDUMP_IOC_THAW, call(fd, LIVEDUMP_IOC_THAW, NULL));
		close(fd);
		if (t.prepare.grace_ms) {
			/* Again without an owner, if it was not thawed: nobody comes this time. */
			fd = open_device();
			WAIT_FOR((err = call(fd, LIVEDUMP_IOC_PREPARE, (fill_prepare(&p, name), &p))) != EBUSY);
			EXPECT(err, 0);
		} else {
			fd = open_device();
		}
	}
	close(fd);
}

int run_fuzz(uint64_t seed, unsigned int seconds)
{
	uint64_t until = now_ms() + seconds * 1000ULL, round = 0;
	int i, status;

	say("fuzz: seed %llu for %u s", (unsigned long long)seed, seconds);
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tally == MAP_FAILED)
		fail("no memory");
	while (now_ms() < until) {
		struct dice d = { seed * 1000003 + round };
		uint64_t kill_at = one_in(&d, 3) ? now_ms() + below(&d, 2500 * slowness()) : UINT64_MAX;
		uint64_t hung_at = now_ms() + 120000 * slowness();
		pid_t pid;

		snprintf(name, sizeof(name), "round %llu", (unsigned long long)round);
		fflush(stdout);
		pid = fork();
		if (!pid) {
			setpgid(0, 0);
			play(roll(&d));
		}
		if (pid < 0)
			fail("fork: %s", strerror(errno));
		setpgid(pid, pid);
		while (!waitpid(pid, &status, WNOHANG)) {
			if (now_ms() >= kill_at) {
				kill(-pid, SIGKILL);
				tally->killed++;
				kill_at = UINT64_MAX;
			}
			if (now_ms() > hung_at)
				fail("round %llu does not end", (unsigned long long)round);
			pause_shortly();
		}
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			if (status)
				fail("round %llu ended with status %x", (unsigned long long)round, status);
		kill(-pid, SIGKILL);	/* its children */
		tidy_up(&d);
		round++;
	}
	for (i = 0; i < 136; i++)
		if (tally->errors[i])
			say("fuzz: %8llu %s", (unsigned long long)tally->errors[i], strerror(i));
	say("abi: %llu rounds (%llu killed, %llu taken over), %llu calls, %llu of them good, %llu pages",
	    (unsigned long long)round, (unsigned long long)tally->killed,
	    (unsigned long long)tally->taken_over, (unsigned long long)tally->calls,
	    (unsigned long long)tally->ok, (unsigned long long)tally->pages);
	/* A fuzzer that gets nowhere proves nothing. */
	if (!tally->pages || !tally->errors[EFAULT] || !tally->errors[EINVAL])
		fail("the fuzzer did not get to frozen memory");
	return 0;
}

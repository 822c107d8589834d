// SPDX-License-Identifier: Apache-2.0
/* The calls of /dev/livedump, good ones and what they are made of. */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "abi.h"

void fail(const char *format, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("FAILED: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

void say(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

int open_device(void)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail("open " DEVICE ": %s", strerror(errno));
	return fd;
}

int call(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? errno : 0;
}

/* The 32-bit entry of the kernel: ioctl is number 54 there. */
int call32(int fd, uint32_t request, uint32_t arg)
{
	long ret;

	asm volatile("int $0x80"
		     : "=a" (ret)
		     : "a" (54L), "b" ((long)fd), "c" ((long)request), "d" ((long)arg)
		     : "r8", "r9", "r10", "r11", "memory");
	return (int)-ret;
}

void fill_prepare(struct livedump_prepare *p, const char *name)
{
	memset(p, 0, sizeof(*p));
	p->size = sizeof(*p);
	p->abi_version = LIVEDUMP_ABI_VERSION;
	p->exclude = LIVEDUMP_EXCLUDE_ALL;
	p->mode = LIVEDUMP_MODE_BEST_EFFORT;
	memcpy(p->uuid, name, strnlen(name, sizeof(p->uuid)));
}

void prepare(int fd, struct livedump_prepare *p)
{
	int err = call(fd, LIVEDUMP_IOC_PREPARE, p);

	if (err)
		fail("PREPARE: %s, refusal %u", strerror(err), p->refusal);
	if (p->refusal || !p->max_pfn || !p->ram_pages || !p->reserve_pages)
		fail("PREPARE: refusal %u, %llu RAM pages below %llu, reserve of %llu", p->refusal,
		     p->ram_pages, p->max_pfn, p->reserve_pages);
}

void freeze(int fd, struct livedump_freeze *f)
{
	int err, tries = 0;

	do {
		memset(f, 0, sizeof(*f));
		f->size = sizeof(*f);
		err = call(fd, LIVEDUMP_IOC_FREEZE, f);
		/* A busy host holds a virtual CPU back for longer than the stop waits. */
	} while (err == EAGAIN && tries++ < 20);
	if (err)
		fail("FREEZE: %s", strerror(err));
}

void thaw(int fd)
{
	EXPECT(call(fd, LIVEDUMP_IOC_THAW, NULL), 0);
}

int stats(int fd, struct livedump_stats *s)
{
	memset(s, 0, sizeof(*s));
	s->size = sizeof(*s);
	return call(fd, LIVEDUMP_IOC_STATS, s);
}

void reader_init(struct reader *r, unsigned int batch, uint64_t max_pfn)
{
	memset(r, 0, sizeof(*r));
	r->batch = batch;
	r->max_pfn = max_pfn;
	r->data = mmap(NULL, (size_t)batch * LIVEDUMP_PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	r->pages = calloc(batch, sizeof(*r->pages));
	r->seen = calloc(max_pfn, 1);
	if (r->data == MAP_FAILED || !r->pages || !r->seen)
		fail("no memory for a reader");
}

void reader_free(struct reader *r)
{
	munmap(r->data, (size_t)r->batch * LIVEDUMP_PAGE_SIZE);
	free(r->pages);
	free(r->seen);
}

static bool excluded(uint32_t class_id)
{
	return class_id != LIVEDUMP_CLASS_KERNEL;	/* at the level of fill_prepare() */
}

unsigned int reader_next(struct reader *r, int fd)
{
	struct livedump_next n = {
		.size = sizeof(n), .max_pages = r->batch, .buf = (uintptr_t)r->data,
		.pages = (uintptr_t)r->pages,
	};
	int err = call(fd, LIVEDUMP_IOC_NEXT, &n);
	unsigned int i;

	if (err)
		fail("NEXT: %s", strerror(err));
	if (n.nr_pages > r->batch)
		fail("NEXT: %u pages of %u asked for", n.nr_pages, r->batch);
	for (i = 0; i < n.nr_pages; i++) {
		const struct livedump_page *p = &r->pages[i];

		if (p->pfn >= r->max_pfn)
			fail("NEXT: page %llx of %llx", p->pfn, (unsigned long long)r->max_pfn);
		if (excluded(p->class_id))
			fail("NEXT: page %llx of class %u, which is left out", p->pfn, p->class_id);
		if (r->seen[p->pfn]++)
			fail("NEXT: page %llx for the second time", p->pfn);
		r->lost += !!(p->flags & LIVEDUMP_PAGE_LOST);
		r->copies += !!(p->flags & LIVEDUMP_PAGE_COPY);
	}
	r->reported += n.nr_pages;
	return n.nr_pages;
}

void reader_rest(struct reader *r, int fd, uint64_t expected)
{
	while (reader_next(r, fd))
		;
	if (r->reported != expected)
		fail("%llu pages were reported, not %llu", (unsigned long long)r->reported,
		     (unsigned long long)expected);
}

uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

uint64_t slowness(void)
{
	const char *n = getenv("ABI_SLOWNESS");

	return n ? strtoull(n, NULL, 10) : 1;
}

void pause_shortly(void)
{
	struct timespec t = { .tv_nsec = 2000000 };

	nanosleep(&t, NULL);
}

void write_file(const char *path, const char *text, int *err)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		fail("open %s: %s", path, strerror(errno));
	*err = write(fd, text, strlen(text)) < 0 ? errno : 0;
	close(fd);
}

static unsigned long read_as(const char *path, const char *format)
{
	FILE *f = fopen(path, "re");
	unsigned long n;

	if (!f || fscanf(f, format, &n) != 1)
		fail("no number in %s", path);
	fclose(f);
	return n;
}

unsigned long read_number(const char *path)
{
	return read_as(path, "%lu");
}

unsigned long read_hex(const char *path)
{
	return read_as(path, "%lx");
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the ABI test's guest program know of each other. */
#ifndef ABI_H
#define ABI_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <livedump.h>

#define DEVICE "/dev/" LIVEDUMP_DEVICE

/* A batch of NEXT in memory of its own, and which page frames came so far. */
struct reader {
	unsigned char *data;	/* batch pages */
	struct livedump_page *pages;
	unsigned int batch;
	uint8_t *seen;		/* a byte per page frame */
	uint64_t max_pfn;
	uint64_t reported, lost, copies;
};

/* Ends the program with a message that says where it came from. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

int open_device(void);
/* 0 or a positive errno. */
int call(int fd, unsigned long request, void *arg);
int call32(int fd, uint32_t request, uint32_t arg);

void fill_prepare(struct livedump_prepare *p, const char *name);
void prepare(int fd, struct livedump_prepare *p);
void freeze(int fd, struct livedump_freeze *f);
void thaw(int fd);
int stats(int fd, struct livedump_stats *s);

void reader_init(struct reader *r, unsigned int batch, uint64_t max_pfn);
void reader_free(struct reader *r);
/* Reads one batch; the number of pages. */
unsigned int reader_next(struct reader *r, int fd);
void reader_rest(struct reader *r, int fd, uint64_t expected);

uint64_t now_ms(void);
/* Of the kernel, by whoever has booted it: how many times as long a session takes; 1 if nobody said. */
uint64_t slowness(void);
void write_file(const char *path, const char *text, int *err);
unsigned long read_number(const char *path);
unsigned long read_hex(const char *path);	/* without 0x */
/* Polls until the condition holds; fails after a minute. */
#define WAIT_FOR(condition)							\
	do {									\
		uint64_t until_ = now_ms() + 60000;				\
		while (!(condition)) {						\
			if (now_ms() > until_)					\
				fail("%s:%d: still not: %s", __func__, __LINE__, #condition); \
			pause_shortly();					\
		}								\
	} while (0)
void pause_shortly(void);

#define EXPECT(expression, wanted)						\
	do {									\
		long got_ = (long)(expression), wanted_ = (long)(wanted);	\
		if (got_ != wanted_)						\
			fail("%s:%d: %s is %ld, not %ld (%s)", __func__, __LINE__, \
			     #expression, got_, wanted_, #wanted);		\
	} while (0)

int run_cases(const char *only);
int run_pretend(void);
int run_lockdown(const char *level);
int run_crash_kernel(const char *image, const char *initramfs, const char *words);
int run_hold(uint64_t grace_ms);
int run_fuzz(uint64_t seed, unsigned int seconds);

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * livedump_churn - changes the kernel's mappings all the time
 *
 * Test-only.  While the module is loaded, kernel threads make, use, check and
 * unmake every kind of memory that a frozen kernel may get a new mapping of:
 *
 *	vmalloc		fresh pages in the vmalloc area
 *	vmap		the module's old pages under a new address: a page that was
 *			mapped elsewhere at the stop is written through a mapping that
 *			was not there then
 *	vm_map_ram	the same by the way that file systems take
 *	percpu		per-CPU chunks come and go
 *	kmalloc		slab of many sizes
 *	attributes	entries of the direct map change under whoever protects them
 *			(write-combining and back: set_memory_ro() is not exported; loading
 *			modules and BPF programs is what does that)
 *	entry area	a page is written through an unused place in the CPU entry area, as
 *			the processor writes buffers of PEBS there
 *
 * Old pages hold a known pattern at any time and are checked through the direct map
 * after having been written through another address, and the other way round.
 *
 * Parameters: threads (0: one for each CPU), pause_us between two rounds of a thread, attributes=0 leaves
 * the last kind out, for it splits huge entries of the direct map for good.  rounds and errors can be read
 * below /sys/module/livedump_churn/parameters; what was wrong is in the log.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/vmalloc.h>

#include <asm/cpu_entry_area.h>
#include <asm/desc.h>
#include <asm/pgtable.h>
#include <asm/set_memory.h>

#define POOL_PAGES	32	/* old pages of a thread */
#define RING		12	/* allocations of each kind that live at once */
#define VMALLOC_MAX	48	/* pages */
#define PERCPU_MAX	2048	/* bytes */
#define KMALLOC_MAX	(16 * 1024)
#define ATTRIBUTES_EVERY	8	/* rounds; it flushes caches */
#define ERRORS_LOGGED	20

static unsigned int threads;
module_param(threads, uint, 0444);
MODULE_PARM_DESC(threads, "Threads (0: one for each CPU)");

static unsigned int pause_us = 500;
module_param(pause_us, uint, 0644);
MODULE_PARM_DESC(pause_us, "Rest between two rounds of a thread, in microseconds");

static bool attributes = true;
module_param(attributes, bool, 0444);
MODULE_PARM_DESC(attributes, "Change page attributes of the direct map as well");

static atomic_long_t rounds = ATOMIC_LONG_INIT(0);
static atomic_long_t errors = ATOMIC_LONG_INIT(0);

static int get_count(char *buf, const struct kernel_param *kp)
{
	return sprintf(buf, "%ld\n", atomic_long_read(kp->arg));
}

static const struct kernel_param_ops count_ops = { .get = get_count };
module_param_cb(rounds, &count_ops, &rounds, 0444);
MODULE_PARM_DESC(rounds, "Rounds done by all threads");
module_param_cb(errors, &count_ops, &errors, 0444);
MODULE_PARM_DESC(errors, "Times that memory held something else than was written");

struct block {
	void *p;
	size_t bytes;
	u64 seed;
};

struct worker {
	struct task_struct *task;
	u64 random;
	u64 seed;
	struct page *pool[POOL_PAGES];
	u64 pool_seed[POOL_PAGES];
	struct block vmalloc[RING], kmalloc[RING];
	struct {
		void __percpu *p;
		size_t bytes;
		u64 seed;
	} percpu[RING];
};

static struct worker *workers;
static unsigned int nr_workers;

/* xorshift64: repeatable, and no lock of the kernel's own source is taken. */
static u64 next_random(struct worker *w)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random;
}

static size_t random_below(struct worker *w, size_t n)
{
	return next_random(w) % n;
}

static u64 word(u64 seed, size_t i)
{
	return (seed + i) * 0x9e3779b97f4a7c15ULL;
}

static void fill(void *p, size_t bytes, u64 seed)
{
	u64 *q = p;
	size_t i;

	for (i = 0; i < bytes / sizeof(*q); i++)
		WRITE_ONCE(q[i], word(seed, i));
}

static bool check(const void *p, size_t bytes, u64 seed, const char *what)
{
	const u64 *q = p;
	size_t i;

	for (i = 0; i < bytes / sizeof(*q); i++) {
		u64 is = READ_ONCE(q[i]);

		if (is == word(seed, i))
			continue;
		if (atomic_long_inc_return(&errors) <= ERRORS_LOGGED)
			pr_err("%s of %zu bytes at %px holds %llx at %zu, want %llx\n", what, bytes, p,
			       is, i * sizeof(*q), word(seed, i));
		return false;
	}
	return true;
}

/* An allocation that fails is no error: the guest may be short of memory. */
static void churn_block(struct worker *w, struct block *ring, const char *what, size_t max,
			void *(*get)(size_t bytes), void (*put)(const void *p))
{
	struct block *b = &ring[random_below(w, RING)];

	if (b->p) {
		check(b->p, b->bytes, b->seed, what);
		put(b->p);
	}
	b->bytes = round_up(1 + random_below(w, max), sizeof(u64));
	b->seed = ++w->seed;
	b->p = get(b->bytes);
	if (b->p)
		fill(b->p, b->bytes, b->seed);
}

static void *get_vmalloc(size_t bytes)
{
	return vmalloc(bytes);
}

static void *get_kmalloc(size_t bytes)
{
	return kmalloc(bytes, GFP_KERNEL | __GFP_NOWARN);
}

static void churn_percpu(struct worker *w)
{
	unsigned int i = random_below(w, RING);
	int cpu;

	if (w->percpu[i].p) {
		for_each_possible_cpu(cpu)
			check(per_cpu_ptr(w->percpu[i].p, cpu), w->percpu[i].bytes,
			      w->percpu[i].seed + cpu, "per-CPU memory");
		free_percpu(w->percpu[i].p);
	}
	w->percpu[i].bytes = round_up(1 + random_below(w, PERCPU_MAX), sizeof(u64));
	/* A whole number of CPUs apart, so that no two places share a pattern. */
	w->seed += nr_cpu_ids;
	w->percpu[i].seed = w->seed;
	w->percpu[i].p = __alloc_percpu(w->percpu[i].bytes, sizeof(u64));
	if (!w->percpu[i].p)
		return;
	for_each_possible_cpu(cpu)
		fill(per_cpu_ptr(w->percpu[i].p, cpu), w->percpu[i].bytes, w->seed + cpu);
}

/*
 * Maps some old pages anew, in an order of its own, checks that they hold through
 * the new address what they hold, and writes them there.
 */
static void churn_mapping(struct worker *w, bool ram)
{
	struct page *pages[POOL_PAGES];
	unsigned int place[POOL_PAGES];
	unsigned int n = 1 + random_below(w, POOL_PAGES), first = random_below(w, POOL_PAGES), i;
	void *p;

	for (i = 0; i < n; i++) {
		place[i] = (first + i * 5) % POOL_PAGES;	/* 5 and the pool's size are coprime */
		pages[i] = w->pool[place[i]];
	}
	if (ram)
		p = vm_map_ram(pages, n, NUMA_NO_NODE);
	else
		p = vmap(pages, n, VM_MAP, PAGE_KERNEL);
	if (!p)
		return;
	for (i = 0; i < n; i++) {
		check(p + i * PAGE_SIZE, PAGE_SIZE, w->pool_seed[place[i]], "a page mapped anew");
		w->pool_seed[place[i]] = w->seed += PAGE_SIZE;
		fill(p + i * PAGE_SIZE, PAGE_SIZE, w->seed);
	}
	if (ram)
		vm_unmap_ram(p, n);
	else
		vunmap(p);
	for (i = 0; i < n; i++)
		check(page_address(pages[i]), PAGE_SIZE, w->pool_seed[place[i]],
		      "a page that was mapped anew");
}

static void churn_attributes(struct worker *w)
{
	unsigned int i = random_below(w, POOL_PAGES);
	unsigned long va = (unsigned long)page_address(w->pool[i]);

	if (set_memory_wc(va, 1))
		return;
	check((void *)va, PAGE_SIZE, w->pool_seed[i], "a write-combining page");
	w->pool_seed[i] = w->seed += PAGE_SIZE;
	fill((void *)va, PAGE_SIZE, w->seed);
	if (set_memory_wb(va, 1))
		pr_err("cannot make a page write-back again\n");
}

static int work(void *data)
{
	struct worker *w = data;
	unsigned long n;

	for (n = 0; !kthread_should_stop(); n++) {
		churn_block(w, w->vmalloc, "vmalloc memory", VMALLOC_MAX * PAGE_SIZE, get_vmalloc, vfree);
		churn_block(w, w->kmalloc, "slab memory", KMALLOC_MAX, get_kmalloc, kfree);
		churn_percpu(w);
		churn_mapping(w, false);
		churn_mapping(w, true);
		if (attributes && !(n % ATTRIBUTES_EVERY))
			churn_attributes(w);
		atomic_long_inc(&rounds);
		if (pause_us)
			usleep_range(pause_us, 2 * pause_us);
		else
			cond_resched();
	}
	return 0;
}

/* The page of the entry area; its thread stays on CPU 0, so no other CPU's TLB knows of it. */
static struct task_struct *entry_task;
static struct page *entry_page;

/* The entry of the place for PEBS in CPU 0's entry area; NULL if it is used, or there is none. */
static pte_t *entry_place(unsigned long *va)
{
#ifdef CONFIG_CPU_SUP_INTEL
	struct desc_ptr gdt;
	unsigned int level;
	pte_t *pte;

	/* The entry area begins with the table that the processor reads descriptors from. */
	native_store_gdt(&gdt);
	*va = (unsigned long)((struct cpu_entry_area *)gdt.address)->cpu_debug_buffers.pebs_buffer;
	pte = lookup_address(*va, &level);
	if (pte && level == PG_LEVEL_4K && !(pte_flags(*pte) & _PAGE_PRESENT))
		return pte;
#endif
	return NULL;
}

static int work_in_entry_area(void *data)
{
	unsigned long va, *direct = page_address(entry_page);
	pte_t *pte = entry_place(&va), none;
	u64 seed = 0;

	if (pte) {
		none = *pte;
		set_pte(pte, mk_pte(entry_page, PAGE_KERNEL));
	} else {
		pr_info("no place in the CPU entry area: nothing is written there\n");
	}
	while (!kthread_should_stop()) {
		if (pte) {
			fill((void *)va, PAGE_SIZE, ++seed);
			check(direct, PAGE_SIZE, seed, "a page of the entry area");
		}
		usleep_range(pause_us + 1, 2 * pause_us + 2);
	}
	if (pte) {
		set_pte(pte, none);
		asm volatile("invlpg (%0)" : : "r" (va) : "memory");
	}
	return 0;
}

static int start_entry_area(void)
{
	entry_page = alloc_page(GFP_KERNEL);
	if (!entry_page)
		return -ENOMEM;
	entry_task = kthread_create(work_in_entry_area, NULL, "ld-churn/entry");
	if (IS_ERR(entry_task)) {
		int err = PTR_ERR(entry_task);

		entry_task = NULL;
		return err;
	}
	get_task_struct(entry_task);
	kthread_bind(entry_task, 0);
	return 0;
}

static void free_worker(struct worker *w)
{
	unsigned int i;

	for (i = 0; i < RING; i++) {
		vfree(w->vmalloc[i].p);
		kfree(w->kmalloc[i].p);
		free_percpu(w->percpu[i].p);
	}
	for (i = 0; i < POOL_PAGES; i++) {
		if (w->pool[i])
			__free_page(w->pool[i]);
	}
}

static int init_worker(struct worker *w, unsigned int number)
{
	unsigned int i;

	w->seed = (u64)number << 56;
	w->random = 0x2545f4914f6cdd1dULL ^ w->seed;
	for (i = 0; i < POOL_PAGES; i++) {
		w->pool[i] = alloc_page(GFP_KERNEL);
		if (!w->pool[i])
			return -ENOMEM;
		w->pool_seed[i] = w->seed += PAGE_SIZE;
		fill(page_address(w->pool[i]), PAGE_SIZE, w->seed);
	}
	w->task = kthread_create(work, w, "ld-churn/%u", number);
	if (IS_ERR(w->task)) {
		int err = PTR_ERR(w->task);

		w->task = NULL;
		return err;
	}
	/* kthread_stop() may come later than the thread's own end would. */
	get_task_struct(w->task);
	return 0;
}

static void stop_all(void)
{
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		if (workers[i].task) {
			kthread_stop(workers[i].task);
			put_task_struct(workers[i].task);
		}
	}
	for (i = 0; i < nr_workers; i++)
		free_worker(&workers[i]);
	kvfree(workers);
	if (entry_task) {
		kthread_stop(entry_task);
		put_task_struct(entry_task);
	}
	if (entry_page)
		__free_page(entry_page);
}

static int __init churn_init(void)
{
	unsigned int i;
	int err;

	nr_workers = threads ?: num_online_cpus();
	workers = kvcalloc(nr_workers, sizeof(*workers), GFP_KERNEL);
	if (!workers)
		return -ENOMEM;
	for (i = 0; i < nr_workers; i++) {
		err = init_worker(&workers[i], i);
		if (err) {
			stop_all();
			return err;
		}
	}
	err = start_entry_area();
	if (err) {
		stop_all();
		return err;
	}
	for (i = 0; i < nr_workers; i++)
		wake_up_process(workers[i].task);
	wake_up_process(entry_task);
	return 0;
}

static void __exit churn_exit(void)
{
	stop_all();
	pr_info("%ld rounds, %ld errors\n", atomic_long_read(&rounds), atomic_long_read(&errors));
}

module_init(churn_init);
module_exit(churn_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: makes and unmakes kernel mappings all the time");

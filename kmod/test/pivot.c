// SPDX-License-Identifier: GPL-2.0-only
/*
 * livedump_pivot - counters that say whether an image is of one instant
 *
 * Test-only.  A chain is a row of cells in different kinds of memory.  Its writer
 * bumps the first cell, then makes the second one equal to it, then the third,
 * always in this order and with a full barrier after each:
 *
 *	solo	one thread, bound to a CPU, writes all cells.  In every image of one
 *		instant each cell is as large as the one after it, or one more,
 *		and that in one place of the chain only.
 *	relay	each cell has a thread of its own, on alternating CPUs, that copies
 *		the cell before.  In every image of one instant no cell is larger than
 *		the one before it.
 *
 * An image in which an effect is larger than its cause, or a solo chain is torn
 * further apart than that, shows two instants.
 *
 * <debugfs>/livedump_pivot/cells has a line for each cell, from cause to effect:
 *
 *	CHAIN solo|relay INDEX KIND CPU VA PA
 *
 * A cell (struct cell) says who it is, so that a reader of a dump knows that it
 * has found it.  <debugfs>/livedump_pivot/live reads the cells one after the other from
 * running memory and prints "CHAIN INDEX VALUE" lines: a reader that does not freeze, which
 * must therefore show what the test looks for.
 *
 * remap=0 leaves out the chain with cells that are written through a mapping made
 * anew for each write.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#define CELL_MAGIC	0x6c64706976307431ULL	/* nothing that memory holds by chance */
#define MAX_STEPS	8
#define PAUSE_US	50	/* between two writes: the stop finds chains in the middle */

static bool remap = true;
module_param(remap, bool, 0444);
MODULE_PARM_DESC(remap, "With the chain that is written through new mappings");

struct cell {
	u64 magic;
	u32 chain;
	u32 index;
	u64 value;
};

/* A cell with a page for itself: no neighbour's write makes a copy of it. */
struct lone_cell {
	struct cell cell;
	u8 rest[PAGE_SIZE - sizeof(struct cell)];
} __aligned(PAGE_SIZE);

enum kind {
	SLAB,		/* the direct map */
	VMALLOC,
	DATA,		/* of this module */
	BSS,
	PERCPU,		/* allocated: from a chunk in the vmalloc area, most likely */
	PERCPU_STATIC,	/* of this module: in the first chunk */
	STACK,		/* of the writing thread */
	REMAP,		/* an old page, through a new mapping for each write */
};

static const char *const kind_names[] = {
	"slab", "vmalloc", "data", "bss", "percpu", "percpu-static", "stack", "remap",
};

struct step {
	enum kind kind;
	unsigned int cpu;
	struct cell *cell;	/* to read it, any time while its writer lives */
	struct task_struct *task;	/* relay */
	void *owned;		/* what to free, by kind */
	void __percpu *owned_percpu;
};

struct chain {
	bool relay;
	unsigned int steps;
	struct step step[MAX_STEPS];
	struct task_struct *task;	/* solo */
};

static struct chain chains[] = {
	{ .relay = false, .steps = 7, .step = {
		{ SLAB }, { VMALLOC }, { DATA }, { PERCPU }, { PERCPU_STATIC }, { BSS }, { STACK } } },
	{ .relay = false, .steps = 7, .step = {
		{ STACK }, { BSS }, { PERCPU_STATIC }, { PERCPU }, { DATA }, { VMALLOC }, { SLAB } } },
	{ .relay = true, .steps = 8, .step = {
		{ VMALLOC }, { STACK }, { SLAB }, { PERCPU }, { DATA }, { PERCPU_STATIC }, { STACK }, { BSS } } },
	/* The last one: remap=0 leaves it out. */
	{ .relay = false, .steps = 4, .step = {
		{ SLAB }, { REMAP }, { VMALLOC }, { REMAP } } },
};

#define CHAINS	ARRAY_SIZE(chains)

static unsigned int nr_chains;

/* Not zero, or they would be in .bss. */
static struct lone_cell data_cells[CHAINS] = { [0 ... CHAINS - 1] = { .cell = { .magic = 1 } } };
static struct lone_cell bss_cells[CHAINS];
struct cells {
	struct cell of_chain[CHAINS];
};
static DEFINE_PER_CPU(struct cells, static_cells);

static DECLARE_COMPLETION(started);

static unsigned int chain_number(const struct chain *c)
{
	return c - chains;
}

/* 0: cannot be told. */
static phys_addr_t cell_pa(const struct cell *cell)
{
	struct page *page;

	if (virt_addr_valid(cell))
		return __pa(cell);
	page = vmalloc_to_page(cell);
	return page ? page_to_phys(page) + offset_in_page(cell) : 0;
}

static void init_cell(struct cell *cell, const struct chain *c, const struct step *s)
{
	cell->chain = chain_number(c);
	cell->index = s - c->step;
	cell->value = 0;
	cell->magic = CELL_MAGIC;
}

static void put(const struct step *s, u64 value)
{
	if (s->kind == REMAP) {
		struct page *page = virt_to_page(s->cell);
		struct cell *cell = vmap(&page, 1, VM_MAP, PAGE_KERNEL);

		/* Short of memory: the chain must go on in order, so by the old mapping. */
		WRITE_ONCE((cell ?: s->cell)->value, value);
		vunmap(cell);
	} else {
		WRITE_ONCE(s->cell->value, value);
	}
	smp_mb();	/* each write is seen before the next one */
	usleep_range(PAUSE_US, 2 * PAUSE_US);
}

static int solo(void *data)
{
	struct chain *c = data;
	struct cell own;
	unsigned int i;
	u64 value = 0;

	for (i = 0; i < c->steps; i++) {
		if (c->step[i].kind == STACK) {
			c->step[i].cell = &own;
			init_cell(&own, c, &c->step[i]);
		}
	}
	complete(&started);
	while (!kthread_should_stop()) {
		value++;
		for (i = 0; i < c->steps; i++)
			put(&c->step[i], value);
	}
	return 0;
}

struct relay_start {
	struct chain *chain;
	struct step *step;
};

static int relay(void *data)
{
	struct relay_start *start = data;
	struct step *s = start->step;
	const struct step *before = s == start->chain->step ? NULL : s - 1;
	struct cell own;
	u64 value = 0;

	if (s->kind == STACK) {
		s->cell = &own;
		init_cell(&own, start->chain, s);
	}
	complete(&started);	/* start is gone after this */
	while (!kthread_should_stop()) {
		value = before ? READ_ONCE(before->cell->value) : value + 1;
		smp_mb();	/* the cause was read before the effect is written */
		put(s, value);
	}
	return 0;
}

/* The thread has found its place when this returns, and every cell before it is there. */
static struct task_struct *run_thread(int (*f)(void *), void *data, unsigned int cpu, const char *name)
{
	struct task_struct *task = kthread_create(f, data, "ld-pivot/%s", name);

	if (IS_ERR(task))
		return task;
	kthread_bind(task, cpu);
	wake_up_process(task);
	wait_for_completion(&started);
	return task;
}

static int make_cell(struct chain *c, struct step *s)
{
	unsigned int n = chain_number(c);

	switch (s->kind) {
	case SLAB:
	case REMAP:
		/* A whole page: nobody else's objects are beside it. */
		s->cell = s->owned = kzalloc(PAGE_SIZE, GFP_KERNEL);
		break;
	case VMALLOC:
		s->cell = s->owned = vzalloc(PAGE_SIZE);
		break;
	case PERCPU:
		s->owned_percpu = __alloc_percpu(PAGE_SIZE, PAGE_SIZE);
		if (s->owned_percpu)
			s->cell = per_cpu_ptr(s->owned_percpu, s->cpu);
		break;
	case DATA:
		s->cell = &data_cells[n].cell;
		break;
	case BSS:
		s->cell = &bss_cells[n].cell;
		break;
	case PERCPU_STATIC:
		s->cell = &per_cpu_ptr(&static_cells, s->cpu)->of_chain[n];
		break;
	case STACK:
		return 0;	/* the thread's own doing */
	}
	if (!s->cell)
		return -ENOMEM;
	init_cell(s->cell, c, s);
	return 0;
}

static void free_cell(struct step *s)
{
	switch (s->kind) {
	case SLAB:
	case REMAP:
		kfree(s->owned);
		break;
	case VMALLOC:
		vfree(s->owned);
		break;
	case PERCPU:
		free_percpu(s->owned_percpu);
		break;
	default:
		break;
	}
}

static unsigned int nth_cpu(unsigned int n)
{
	unsigned int cpu;

	n %= num_online_cpus();
	for_each_online_cpu(cpu) {
		if (!n--)
			return cpu;
	}
	return 0;
}

static int start_chain(struct chain *c)
{
	unsigned int n = chain_number(c), i;
	char name[16];
	int err;

	for (i = 0; i < c->steps; i++) {
		c->step[i].cpu = nth_cpu(c->relay ? i : n);
		err = make_cell(c, &c->step[i]);
		if (err)
			return err;
	}
	for (i = 0; i < (c->relay ? c->steps : 1); i++) {
		struct step *s = &c->step[i];
		struct relay_start start = { c, s };
		struct task_struct *task;

		snprintf(name, sizeof(name), "%u.%u", n, i);
		task = c->relay ? run_thread(relay, &start, s->cpu, name) : run_thread(solo, c, s->cpu, name);
		if (IS_ERR(task))
			return PTR_ERR(task);
		if (c->relay)
			s->task = task;
		else
			c->task = task;
	}
	return 0;
}

/* From the last effect to the first cause: a thread reads the one before it. */
static void stop_all(void)
{
	unsigned int n;
	int i;

	for (n = 0; n < nr_chains; n++) {
		struct chain *c = &chains[n];

		if (c->task)
			kthread_stop(c->task);
		for (i = c->steps - 1; i >= 0; i--) {
			if (c->step[i].task)
				kthread_stop(c->step[i].task);
		}
		for (i = 0; i < c->steps; i++)
			free_cell(&c->step[i]);
	}
}

static int cells_show(struct seq_file *m, void *v)
{
	unsigned int n, i;

	for (n = 0; n < nr_chains; n++) {
		for (i = 0; i < chains[n].steps; i++) {
			const struct step *s = &chains[n].step[i];
			phys_addr_t pa = cell_pa(s->cell);

			seq_printf(m, "%u %s %u %s %u %lx %llx\n", n, chains[n].relay ? "relay" : "solo", i,
				   kind_names[s->kind], s->cpu, (unsigned long)s->cell,
				   (unsigned long long)pa);
		}
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(cells);

/* As slow as a reader of memory is, but without a freeze. */
static int live_show(struct seq_file *m, void *v)
{
	unsigned int n, i;

	for (n = 0; n < nr_chains; n++) {
		for (i = 0; i < chains[n].steps; i++) {
			seq_printf(m, "%u %u %llu\n", n, i, READ_ONCE(chains[n].step[i].cell->value));
			usleep_range(PAUSE_US, 2 * PAUSE_US);
		}
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(live);

static struct dentry *dir;

static int __init pivot_init(void)
{
	unsigned int n;
	int err;

	for (n = 0; n < (remap ? CHAINS : CHAINS - 1); n++) {
		nr_chains = n + 1;	/* so that it is stopped if it starts in part */
		err = start_chain(&chains[n]);
		if (err) {
			stop_all();
			return err;
		}
	}
	dir = debugfs_create_dir("livedump_pivot", NULL);
	debugfs_create_file("cells", 0400, dir, NULL, &cells_fops);
	debugfs_create_file("live", 0400, dir, NULL, &live_fops);
	return 0;
}

static void __exit pivot_exit(void)
{
	debugfs_remove_recursive(dir);
	stop_all();
}

module_init(pivot_init);
module_exit(pivot_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: counters whose order says whether an image is of one instant");

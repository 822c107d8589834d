// SPDX-License-Identifier: GPL-2.0-only
/*
 * An entry of the kernel's page tables in which somebody uses the bits that the processor leaves
 * to software, for tests: the kernel's set_memory_4k() and vmap_pfn() do, and the module must
 * carry those bits through a session, or refuse.
 *
 *	insmod livedump_softbits.ko number=3	(of SOFTW1 to SOFTW4)
 *	cat /sys/module/livedump_softbits/parameters/entry	(its flags, in hex)
 *
 * The page that the entry maps is from vmalloc, and writable.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>
#include <linux/vmalloc.h>
#include <asm/pgtable.h>

static unsigned int number;
module_param(number, uint, 0444);
MODULE_PARM_DESC(number, "Which of the software bits is set, 1 to 4");

static void *page;
static unsigned long *entry;
static unsigned long bit;

static int entry_get(char *buf, const struct kernel_param *kp)
{
	/* The processor sets these two. */
	return sysfs_emit(buf, "%lx\n", READ_ONCE(*entry) & ~PTE_PFN_MASK &
			  ~(unsigned long)(_PAGE_ACCESSED | _PAGE_DIRTY));
}

static const struct kernel_param_ops entry_ops = { .get = entry_get };
module_param_cb(entry, &entry_ops, NULL, 0444);
MODULE_PARM_DESC(entry, "Flags of the entry, in hex, without Accessed and Dirty");

static int __init softbits_init(void)
{
	static const u8 bits[] = {
		_PAGE_BIT_SOFTW1, _PAGE_BIT_SOFTW2, _PAGE_BIT_SOFTW3, _PAGE_BIT_SOFTW4,
	};
	unsigned int level;

	if (number < 1 || number > ARRAY_SIZE(bits))
		return -EINVAL;
	bit = 1UL << bits[number - 1];
	page = vzalloc(PAGE_SIZE);
	if (!page)
		return -ENOMEM;
	/* The caller of vmalloc may do to its entries what it likes until it frees them. */
	entry = (unsigned long *)lookup_address((unsigned long)page, &level);
	if (!entry || level != PG_LEVEL_4K) {
		vfree(page);
		return -ENXIO;
	}
	set_bit(bits[number - 1], entry);
	return 0;
}

static void __exit softbits_exit(void)
{
	unsigned long v = READ_ONCE(*entry);

	while (cmpxchg(entry, v, v & ~bit) != v)
		v = READ_ONCE(*entry);
	vfree(page);
}

module_init(softbits_init);
module_exit(softbits_exit);
MODULE_DESCRIPTION("A page-table entry with a software bit, for tests");
MODULE_LICENSE("GPL");

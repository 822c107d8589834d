// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/livedump-vmcore: the frozen machine as an ELF core, for the tools that read
 * /proc/vmcore: makedumpfile, crash, drgn, cp --sparse=always.
 *
 * It can be opened while a session that keeps its pages (LIVEDUMP_PREPARE_KEEP) is
 * frozen, and shows the same memory as NEXT of that session does:
 *
 *	ELF header, program headers, notes	padded to a page
 *	RAM, range by range			page for page
 *
 * The first PT_LOAD is the kernel image at the addresses its code runs at; it shares
 * its bytes in the file with the range of RAM that it lies in.  The others are the
 * ranges of RAM, at their addresses in the direct map.
 *
 * Pages of a class that is left out read as zeros, as they do in a file that
 * makedumpfile has filtered, and are holes for SEEK_DATA and SEEK_HOLE.  Lost pages
 * are EIO.  When the session is over, or fails, every read is ENODATA: what
 * this node returns is of the stop, or it returns nothing.
 *
 * Pages go through a buffer, so that nobody waits for a user's page fault with the session's
 * lock held: a thaw waits for a few page copies at most.
 *
 * A device node has no size, but readers of ELF files ask for it (libelf takes
 * a file of size 0 for an empty one, crash for a truncated one).  So the inode that was
 * opened carries the view's size while it is open.
 */
#include <linux/capability.h>
#include <linux/elf.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "entry.h"

#define BUFFER_PAGES	16UL
#define HOLE_PAGES	1024UL	/* that a read looks at before it lets a thaw through */

struct ld_vmcore_range {
	unsigned long pfn, pages;
	unsigned long first;		/* page of the file */
	unsigned long va;
};

/*
 * What the file looks like.  Made by the first open of a session, gone with the
 * session: readers hold the session's lock, the end of a session holds it for writing.
 */
static struct {
	void *head;
	unsigned long head_pages, pages;
	struct ld_vmcore_range *ranges;	/* the kernel image, then RAM by page of the file */
	unsigned int nr_ranges;
} view;
static DEFINE_MUTEX(view_lock);		/* while it is made */

struct ld_vmcore_file {
	struct list_head list;
	struct inode *inode;
	u64 session;
	loff_t size;
};

static LIST_HEAD(open_files);
static DEFINE_MUTEX(open_files_lock);

void ld_vmcore_release(void)
{
	vfree(view.head);
	kvfree(view.ranges);
	memset(&view, 0, sizeof(view));
}

/* The kernel image: the one stretch of its range that is mapped to contiguous memory. */
static void find_image(struct ld_vmcore_range *image)
{
	unsigned long va = ld_image.start;

	memset(image, 0, sizeof(*image));
	while (va < ld_image.end) {
		unsigned long pfn, pages;
		ld_entry v;
		int level;

		ld_walk(va, &level, &v);
		pages = level_size(level) >> PAGE_SHIFT;
		pfn = leaf_pfn(v, level);
		if (v & _PAGE_PRESENT) {
			if (!image->pages) {
				image->va = va;
				image->pfn = pfn;
			}
			if (pfn - image->pfn == (va - image->va) >> PAGE_SHIFT)
				image->pages = pfn - image->pfn + pages;
		}
		va = (va & ~(level_size(level) - 1)) + level_size(level);
	}
}

/* Counts the ranges of RAM, and notes them if there is room. */
static unsigned int find_ram(struct ld_vmcore_range *ranges, unsigned int room)
{
	unsigned long pfn, end;
	unsigned int n = 0;

	for (pfn = 0; pfn < ld_max_pfn; pfn = end + 1) {
		for (end = pfn; end < ld_max_pfn && ld_page_is_ram(end); end++)
			if (!(end % 4096))
				cond_resched();
		if (end == pfn)
			continue;
		if (n < room) {
			ranges[n].pfn = pfn;
			ranges[n].pages = end - pfn;
			ranges[n].va = (unsigned long)__va((u64)pfn << PAGE_SHIFT);
		}
		n++;
	}
	return n;
}

static void put_load(Elf64_Phdr *p, const struct ld_vmcore_range *r)
{
	p->p_type = PT_LOAD;
	p->p_flags = PF_R | PF_W | PF_X;
	p->p_offset = (u64)r->first << PAGE_SHIFT;
	p->p_vaddr = r->va;
	p->p_paddr = (u64)r->pfn << PAGE_SHIFT;
	p->p_filesz = (u64)r->pages << PAGE_SHIFT;
	p->p_memsz = p->p_filesz;
	/* p_align 0, as in /proc/vmcore: crash tells it from an older format by that. */
}

/* The program headers follow at once: makedumpfile expects them nowhere else. */
static int make_head(void)
{
	size_t notes_at = sizeof(Elf64_Ehdr) + (1 + view.nr_ranges) * sizeof(Elf64_Phdr);
	size_t notes_bytes = ld_notes_bytes();
	u64 info_offset, info_bytes;
	Elf64_Phdr *note, *load;
	unsigned long page;
	Elf64_Ehdr *e;
	unsigned int i;
	ssize_t n;

	view.head_pages = PFN_UP(notes_at + notes_bytes);
	view.head = ld_zalloc(view.head_pages << PAGE_SHIFT);
	if (!view.head)
		return -ENOMEM;
	e = view.head;
	memcpy(e->e_ident, ELFMAG, SELFMAG);
	e->e_ident[EI_CLASS] = ELFCLASS64;
	e->e_ident[EI_DATA] = ELFDATA2LSB;
	e->e_ident[EI_VERSION] = EV_CURRENT;
	e->e_type = ET_CORE;
	e->e_machine = EM_X86_64;
	e->e_version = EV_CURRENT;
	e->e_phoff = sizeof(*e);
	e->e_ehsize = sizeof(*e);
	e->e_phentsize = sizeof(Elf64_Phdr);
	e->e_phnum = 1 + view.nr_ranges;

	note = (Elf64_Phdr *)(e + 1);
	note->p_type = PT_NOTE;
	note->p_offset = notes_at;
	n = ld_notes_fill(view.head + notes_at, notes_bytes, &info_offset, &info_bytes);
	if (n < 0)
		return n;
	note->p_filesz = n;
	note->p_memsz = n;

	/* The image's place in the file is known when RAM's is. */
	page = view.head_pages;
	load = note + 1;
	for (i = 1; i < view.nr_ranges; i++) {
		struct ld_vmcore_range *r = &view.ranges[i], *image = &view.ranges[0];

		r->first = page;
		page += r->pages;
		put_load(&load[i], r);
		if (image->pfn >= r->pfn && image->pfn + image->pages <= r->pfn + r->pages)
			image->first = r->first + (image->pfn - r->pfn);
	}
	view.pages = page;
	if (!view.ranges[0].first) {
		pr_err("the kernel image does not lie in one range of RAM\n");
		return -EOPNOTSUPP;
	}
	put_load(&load[0], &view.ranges[0]);
	return 0;
}

/* Under the session's lock, for reading. */
static int make_view(void)
{
	unsigned int nr;
	int err = 0;

	mutex_lock(&view_lock);
	if (view.pages)
		goto out;
	nr = find_ram(NULL, 0);
	err = -E2BIG;
	if (nr + 2 >= PN_XNUM)
		goto out;
	err = -ENOMEM;
	view.nr_ranges = nr + 1;
	view.ranges = kvcalloc(view.nr_ranges, sizeof(*view.ranges), GFP_KERNEL);
	if (!view.ranges)
		goto out;
	find_image(&view.ranges[0]);
	find_ram(view.ranges + 1, nr);
	err = make_head();
out:
	if (err)
		ld_vmcore_release();
	mutex_unlock(&view_lock);
	return err;
}

/* The page frame of a page of the file that is not of its head; RAM is sorted by it. */
static unsigned long page_to_frame(unsigned long page)
{
	unsigned int low = 1, high = view.nr_ranges - 1;

	while (low < high) {
		unsigned int mid = (low + high + 1) / 2;

		if (view.ranges[mid].first <= page)
			low = mid;
		else
			high = mid - 1;
	}
	return view.ranges[low].pfn + (page - view.ranges[low].first);
}

static bool is_hole(unsigned long page)
{
	return page >= view.head_pages && !ld_page_is_wanted(page_to_frame(page));
}

/* How many pages of the file, from one on, are holes.  There may be far more holes than data. */
static unsigned long count_holes(unsigned long page, unsigned long pages)
{
	unsigned long n = 0;

	while (n < pages && is_hole(page + n))
		n++;
	return n;
}

/*
 * Fills the buffer from a page of the file on, up to the next hole.  Pages it got, or an
 * error if it got none.  *holes: instead, so many pages read as zeros; nothing was filled.
 */
static long fill(struct ld_vmcore_file *f, void *buffer, unsigned long page, unsigned long pages,
		 unsigned long *holes)
{
	unsigned long i;
	int got;

	got = ld_session_read_begin(&f->session);
	if (got)
		return got;
	/* Who reads carries pages away. */
	ld_reserve_mark_writer();
	*holes = count_holes(page, min(pages, HOLE_PAGES));
	pages = *holes ? 0 : min(pages, BUFFER_PAGES);
	for (i = 0; i < pages && !is_hole(page); i++, page++, buffer += PAGE_SIZE) {
		if (page < view.head_pages) {
			memcpy(buffer, view.head + (page << PAGE_SHIFT), PAGE_SIZE);
			continue;
		}
		got = ld_page_read(page_to_frame(page), buffer);
		if (got <= 0)
			break;
	}
	ld_session_read_end();
	if (i || *holes)
		return i;
	return got ?: -EIO;	/* 0: a hole after all, which no page becomes */
}

static ssize_t vmcore_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct ld_vmcore_file *f = iocb->ki_filp->private_data;
	u64 wanted_pages = PFN_UP((u64)offset_in_page(iocb->ki_pos) + iov_iter_count(to));
	ssize_t done = 0, err = 0;
	void *buffer;

	if (iocb->ki_pos >= f->size || !iov_iter_count(to))
		return 0;
	buffer = kvmalloc_array(min_t(u64, BUFFER_PAGES, wanted_pages), PAGE_SIZE, GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	while (iocb->ki_pos < f->size && iov_iter_count(to)) {
		unsigned long skip = offset_in_page(iocb->ki_pos);
		u64 want = min_t(u64, f->size - iocb->ki_pos, iov_iter_count(to));
		unsigned long holes;
		size_t n;
		long got = fill(f, buffer, iocb->ki_pos >> PAGE_SHIFT, PFN_UP(skip + want), &holes);

		if (got < 0) {
			err = got;
			break;
		}
		want = min_t(u64, want, ((u64)(got + holes) << PAGE_SHIFT) - skip);
		n = holes ? iov_iter_zero(want, to) : copy_to_iter(buffer + skip, want, to);
		iocb->ki_pos += n;
		done += n;
		if (n < want) {
			err = -EFAULT;
			break;
		}
		if (fatal_signal_pending(current)) {
			err = -EINTR;
			break;
		}
		cond_resched();
	}
	kvfree(buffer);
	return done ?: err;
}

/* The next page of the file, from one on, that is a hole or that is none. */
static loff_t seek_kind(struct ld_vmcore_file *f, loff_t pos, bool hole)
{
	unsigned long page = pos >> PAGE_SHIFT;
	unsigned long end = f->size >> PAGE_SHIFT;
	int err = 0;

	while (page < end) {
		unsigned long stop = min(end, page + 4096);

		/* Bit by bit: there may be a billion pages, and a thaw that waits. */
		err = ld_session_read_begin(&f->session);
		if (err)
			return err;
		while (page < stop && hole != is_hole(page))
			page++;
		ld_session_read_end();
		if (page < stop)
			return max_t(loff_t, pos, (loff_t)page << PAGE_SHIFT);
		cond_resched();
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	return hole ? f->size : -ENXIO;
}

static loff_t vmcore_llseek(struct file *file, loff_t offset, int whence)
{
	struct ld_vmcore_file *f = file->private_data;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return fixed_size_llseek(file, offset, whence, f->size);
	if (offset < 0 || offset >= f->size)
		return -ENXIO;
	offset = seek_kind(f, offset, whence == SEEK_HOLE);
	return offset < 0 ? offset : vfs_setpos(file, offset, f->size);
}

static int vmcore_open(struct inode *inode, struct file *file)
{
	struct ld_vmcore_file *f;
	int err;

	/* In the first user namespace: a container's root is not enough. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (file->f_mode & FMODE_WRITE)
		return -EROFS;
	err = security_locked_down(LOCKDOWN_KCORE);
	if (err)
		return err;
	f = kzalloc(sizeof(*f), GFP_KERNEL);
	if (!f)
		return -ENOMEM;
	err = ld_session_read_begin(&f->session);
	if (!err) {
		err = make_view();
		f->size = (loff_t)view.pages << PAGE_SHIFT;
		ld_session_read_end();
	}
	if (err) {
		kfree(f);
		return err;
	}
	f->inode = inode;
	file->private_data = f;
	mutex_lock(&open_files_lock);
	list_add(&f->list, &open_files);
	i_size_write(inode, f->size);
	mutex_unlock(&open_files_lock);
	return 0;
}

static int vmcore_release(struct inode *inode, struct file *file)
{
	struct ld_vmcore_file *f = file->private_data, *other;
	loff_t size = 0;

	mutex_lock(&open_files_lock);
	list_del(&f->list);
	list_for_each_entry(other, &open_files, list)
		if (other->inode == inode)
			size = max(size, other->size);
	i_size_write(inode, size);
	mutex_unlock(&open_files_lock);
	kfree(f);
	return 0;
}

static const struct file_operations vmcore_fops = {
	.owner		= THIS_MODULE,
	.open		= vmcore_open,
	.release	= vmcore_release,
	.read_iter	= vmcore_read,
	.llseek		= vmcore_llseek,
};

static struct miscdevice vmcore_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= LIVEDUMP_VMCORE_DEVICE,
	.fops	= &vmcore_fops,
	.mode	= 0400,
};

int ld_vmcore_register(void)
{
	return misc_register(&vmcore_misc);
}

void ld_vmcore_unregister(void)
{
	misc_deregister(&vmcore_misc);
}

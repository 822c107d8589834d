// SPDX-License-Identifier: GPL-2.0-only
/* /dev/livedump: who may, and arguments in and out.  See uapi/livedump.h. */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include "compat.h"
#include "livedump.h"

union ld_arg {
	u32 size;
	struct livedump_prepare prepare;
	struct livedump_freeze freeze;
	struct livedump_notes notes;
	struct livedump_next next;
	struct livedump_stats stats;
	struct livedump_takeover takeover;
	struct livedump_ack ack;
};

static int ld_open(struct inode *inode, struct file *file)
{
	/* In the first user namespace: a container's root is not enough. */
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

static int ld_release(struct inode *inode, struct file *file)
{
	ld_session_release(file);
	return 0;
}

static bool reserved_are_zero(unsigned int cmd, const union ld_arg *a)
{
	switch (cmd) {
	case LIVEDUMP_IOC_PREPARE:
		return !a->prepare.reserved0;
	case LIVEDUMP_IOC_FREEZE:
		return !memchr_inv(a->freeze.reserved, 0, sizeof(a->freeze.reserved));
	case LIVEDUMP_IOC_NOTES:
		return !a->notes.reserved0 &&
		       !memchr_inv(a->notes.reserved, 0, sizeof(a->notes.reserved));
	case LIVEDUMP_IOC_NEXT:
		return !a->next.reserved0 &&
		       !memchr_inv(a->next.reserved, 0, sizeof(a->next.reserved));
	case LIVEDUMP_IOC_ACK:
		return !memchr_inv(a->ack.reserved, 0, sizeof(a->ack.reserved));
	case LIVEDUMP_IOC_TAKEOVER:
		return !memchr_inv(a->takeover.reserved, 0, sizeof(a->takeover.reserved));
	case LIVEDUMP_IOC_STATS:
		return !memchr_inv(a->stats.reserved, 0, sizeof(a->stats.reserved));
	}
	return false;
}

static long ld_ioctl(struct file *file, unsigned int cmd, unsigned long uarg)
{
	unsigned long caller = (unsigned long)__builtin_return_address(0);
	void __user *user = (void __user *)uarg;
	size_t size = _IOC_SIZE(cmd);
	union ld_arg a;
	long err;

	switch (cmd) {
	case LIVEDUMP_IOC_THAW:
		return ld_session_thaw(file);
	case LIVEDUMP_IOC_PREPARE:
	case LIVEDUMP_IOC_FREEZE:
	case LIVEDUMP_IOC_NOTES:
	case LIVEDUMP_IOC_NEXT:
	case LIVEDUMP_IOC_STATS:
	case LIVEDUMP_IOC_TAKEOVER:
	case LIVEDUMP_IOC_ACK:
		break;
	default:
		return -ENOTTY;
	}
	memset(&a, 0, sizeof(a));
	if (copy_from_user(&a, user, size))
		return -EFAULT;
	if (a.size != size || !reserved_are_zero(cmd, &a))
		return -EINVAL;
	/* Can the answer be written?  Better to know before pages are taken. */
	if (copy_to_user(user, &a, size))
		return -EFAULT;

	switch (cmd) {
	case LIVEDUMP_IOC_PREPARE:
		err = ld_session_prepare(file, &a.prepare, caller);
		break;
	case LIVEDUMP_IOC_FREEZE:
		err = ld_session_freeze(file, &a.freeze, caller);
		break;
	case LIVEDUMP_IOC_NOTES:
		err = ld_session_notes(file, &a.notes);
		break;
	case LIVEDUMP_IOC_NEXT:
		err = ld_session_next(file, &a.next);
		break;
	case LIVEDUMP_IOC_ACK:
		err = ld_session_acknowledge(file, &a.ack);
		break;
	case LIVEDUMP_IOC_TAKEOVER:
		err = ld_session_takeover(file, &a.takeover);
		break;
	default:
		err = ld_session_stats(file, &a.stats);
		break;
	}
	/* Why PREPARE refused is part of its answer. */
	if ((!err || cmd == LIVEDUMP_IOC_PREPARE) && copy_to_user(user, &a, size))
		err = err ?: -EFAULT;
	return err;
}

static const struct file_operations ld_fops = {
	.owner		= THIS_MODULE,
	.open		= ld_open,
	.release	= ld_release,
	.unlocked_ioctl	= ld_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};

static struct miscdevice ld_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= LIVEDUMP_DEVICE,
	.fops	= &ld_fops,
	.mode	= 0600,
	.groups	= ld_sysfs_groups,
};

int ld_chardev_register(void)
{
	return misc_register(&ld_misc);
}

void ld_chardev_unregister(void)
{
	misc_deregister(&ld_misc);
}

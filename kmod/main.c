// SPDX-License-Identifier: GPL-2.0-only
/* livedump: a consistent image of the running kernel's memory, without stopping it. */
#include <linux/module.h>
#include "compat.h"
#include "livedump.h"

static int __init ld_init(void)
{
	int err = ld_session_init();

	if (err)
		return err;
	err = ld_stop_init();
	if (err)
		goto no_stop;
	ld_watch_init();
	ld_handed_init();
	ld_vtd_init();
	ld_truth_init();
	err = ld_guard_register();
	if (err)
		goto no_guard;
	err = ld_chardev_register();
	if (err)
		goto no_chardev;
	err = ld_vmcore_register();
	if (!err)
		return 0;
	ld_chardev_unregister();
no_chardev:
	ld_guard_unregister();
no_guard:
	ld_truth_exit();
	ld_handed_exit();
	ld_watch_exit();
	ld_stop_exit();
no_stop:
	ld_session_exit();
	return err;
}

static void __exit ld_exit(void)
{
	/* No file is open any more and no session is an orphan, so there is none. */
	ld_vmcore_unregister();
	ld_chardev_unregister();
	ld_session_exit();
	ld_guard_unregister();
	ld_truth_exit();
	ld_handed_exit();
	ld_watch_exit();
	ld_stop_exit();
}

module_init(ld_init);
module_exit(ld_exit);

MODULE_DESCRIPTION("Consistent image of the running kernel's memory");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");

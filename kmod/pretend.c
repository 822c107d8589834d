// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test builds only: what a machine is or does, without having one that is or does it.
 *
 * The parameter pretend names a refusal (enum livedump_refusal); the check that finds it in
 * real life then finds it.  pretend_splits is how many plans are out of date when they are
 * complete, because the kernel has split a huge leaf of theirs.
 */
#include <linux/moduleparam.h>
#include "compat.h"
#include "livedump.h"

static unsigned int pretend;
module_param(pretend, uint, 0644);
MODULE_PARM_DESC(pretend, "Refusal to be met at the next PREPARE (enum livedump_refusal)");

bool ld_pretend(enum livedump_refusal why)
{
	return READ_ONCE(pretend) == why;
}

static unsigned int pretend_splits;
module_param(pretend_splits, uint, 0644);
MODULE_PARM_DESC(pretend_splits, "Plans of which a huge leaf is split once they are made");

bool ld_pretend_split(void)
{
	if (!pretend_splits)
		return false;
	pretend_splits--;
	return true;
}

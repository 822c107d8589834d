// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test builds only: a machine that has to be refused, without having one.  The
 * parameter pretend names the refusal (enum livedump_refusal); the check that finds it in
 * real life then finds it.
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

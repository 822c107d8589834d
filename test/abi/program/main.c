// SPDX-License-Identifier: Apache-2.0
/*
 * The guest's half of the ABI test: uses /dev/livedump as nobody should, and checks
 * that the answers are what uapi/livedump.h says.  Needs root and a loaded module.
 *
 *	abi cases [NAME]	every promise of the header, one after the other; -NAME: but that one
 *	abi fuzz SEED SECONDS	threads and processes that do anything, in any order
 *	abi pretend		refusals, simulated by the instrumented module
 *	abi lockdown LEVEL	locks the kernel down, for good, and prepares a session
 *	abi crash-kernel IMAGE INITRAMFS COMMANDLINE	loads them for a panic
 *	abi hold [GRACE_MS]	freezes, says so, and waits to be killed
 *
 * Of the kernel it is told in the environment: ABI_SLOWNESS, how many times as long a session takes, and
 * ABI_NO_32BIT, that it has no 32-bit calls.
 *
 * Ends with status 0 and "abi: ..." as the last line, or with FAILED and the reason.
 */
#include "abi.h"

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "cases"))
		return run_cases(argc > 2 ? argv[2] : NULL);
	if (!strcmp(what, "pretend"))
		return run_pretend();
	if (!strcmp(what, "lockdown") && argc == 3)
		return run_lockdown(argv[2]);
	if (!strcmp(what, "hold"))
		return run_hold(argc > 2 ? strtoull(argv[2], NULL, 0) : 0);
	if (!strcmp(what, "crash-kernel") && argc == 5)
		return run_crash_kernel(argv[2], argv[3], argv[4]);
	if (!strcmp(what, "fuzz") && argc == 4)
		return run_fuzz(strtoull(argv[2], NULL, 0), strtoul(argv[3], NULL, 0));
	fprintf(stderr, "usage: abi cases [[-]NAME] | fuzz SEED SECONDS | pretend | lockdown LEVEL | hold [GRACE_MS] |\n"
		"       abi crash-kernel IMAGE INITRAMFS COMMANDLINE\n");
	return 2;
}

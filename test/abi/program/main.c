// SPDX-License-Identifier: Apache-2.0
/*
 * The guest's half of the ABI test: uses /dev/livedump as nobody should, and checks
 * that the answers are what uapi/livedump.h says.  Needs root and a loaded module.
 *
 *	abi cases		every promise of the header, one after the other
 *	abi fuzz SEED SECONDS	threads and processes that do anything, in any order
 *	abi pretend		refusals, simulated by the instrumented module
 *	abi lockdown		locks the kernel down, for good, and is refused
 *	abi hold [GRACE_MS]	freezes, says so, and waits to be killed
 *
 * Ends with status 0 and "abi: ..." as the last line, or with FAILED and the reason.
 */
#include "abi.h"

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "cases"))
		return run_cases();
	if (!strcmp(what, "pretend"))
		return run_pretend();
	if (!strcmp(what, "lockdown"))
		return run_lockdown();
	if (!strcmp(what, "hold"))
		return run_hold(argc > 2 ? strtoull(argv[2], NULL, 0) : 0);
	if (!strcmp(what, "fuzz") && argc == 4)
		return run_fuzz(strtoull(argv[2], NULL, 0), strtoul(argv[3], NULL, 0));
	fprintf(stderr, "usage: abi cases | fuzz SEED SECONDS | pretend | lockdown | hold [GRACE_MS]\n");
	return 2;
}

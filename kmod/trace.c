// SPDX-License-Identifier: GPL-2.0-only
/* The module's trace events, made here once. */
#include <linux/bits.h>
#include <linux/types.h>
#ifndef __CHECKER__
# define CREATE_TRACE_POINTS
#endif
#include "trace.h"

# SPDX-License-Identifier: Apache-2.0
"""
Reads every page of a dump and prints, as JSON: a checksum of all of them, and the
pages that cannot be read.

Run as `drgn -q -c DUMP -s VMLINUX pages.py START-END...`, the ranges of page frames.
"""

import hashlib
import json
import struct
import sys

from drgn import FaultError
from drgn.helpers.linux.pid import for_each_task

digest = hashlib.sha256()
faults = []
for part in sys.argv[1:]:
    start, end = (int(n) for n in part.split("-"))
    for pfn in range(start, end):
        try:
            page = prog.read(pfn * 4096, 4096, physical=True)
        except FaultError:
            faults.append(pfn)
            continue
        digest.update(struct.pack("<Q", pfn))
        digest.update(page)
tasks = [task.pid.value_() for task in for_each_task(prog)]
print(json.dumps({"sha256": digest.hexdigest(), "faults": faults, "tasks": tasks}))

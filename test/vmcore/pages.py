# SPDX-License-Identifier: Apache-2.0
"""
Writes every page that a dump has into a file, each after its number (8 bytes,
little-endian). Pages that the dump leaves out have none.

Run as `drgn -q -c DUMP -s VMLINUX pages.py OUTPUT START-END...`, the ranges of page frames.
"""

import struct
import sys

from drgn import FaultError

with open(sys.argv[1], "wb") as output:
    for part in sys.argv[2:]:
        start, end = (int(n) for n in part.split("-"))
        for pfn in range(start, end):
            try:
                page = prog.read(pfn * 4096, 4096, physical=True)
            except FaultError:
                continue
            output.write(struct.pack("<Q", pfn) + page)

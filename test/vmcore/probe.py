# SPDX-License-Identifier: Apache-2.0
"""
Reads /dev/livedump-vmcore from hole to hole and prints, as JSON, what it found.

Every page that is no hole is read, and counted unless it is of the headers; of each
hole, its first and last page, which must be zeros.
"""

import errno
import json
import os
import struct
import sys

PAGE = 4096
CHUNK = 64 * PAGE

path = sys.argv[1]
found = {"pages": 0, "holes": 0, "errors": 0, "holesWithData": 0, "otherErrors": []}

try:
    os.close(os.open(path, os.O_RDWR))
    found["otherErrors"].append("the node can be opened for writing")
except OSError as error:
    if error.errno != errno.EROFS:
        found["otherErrors"].append(f"opening for writing: {error}")

fd = os.open(path, os.O_RDONLY)
size = os.lseek(fd, 0, os.SEEK_END)
if os.fstat(fd).st_size != size:
    found["otherErrors"].append(f"st_size is {os.fstat(fd).st_size}, the end is at {size}")


# RAM begins where the first of the segments (type 1) does.
phnum = struct.unpack("<H", os.pread(fd, 2, 56))[0]
segments = [struct.unpack("<IIQ", os.pread(fd, 16, 64 + 56 * i)) for i in range(phnum)]
head = min(offset for kind, _, offset in segments if kind == 1) // PAGE


def seek(position, whence):
    try:
        return os.lseek(fd, position, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def read(position, end):
    """Counts the pages from position to end as read or not."""
    while position < end:
        try:
            got = len(os.pread(fd, min(CHUNK, end - position), position))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            found["errors"] += 1
            position += PAGE
            continue
        if got == 0 or got % PAGE:
            found["otherErrors"].append(f"{got} bytes at {position}")
            return
        found["pages"] += got // PAGE
        position += got


position = 0
while position < size:
    data = seek(position, os.SEEK_DATA)
    found["holes"] += (data - position) // PAGE
    if data > position:
        for at in {position, data - PAGE}:
            if os.pread(fd, PAGE, at).strip(b"\0"):
                found["holesWithData"] += 1
    position = seek(data, os.SEEK_HOLE) if data < size else size
    read(data, position)
if found["pages"] + found["holes"] + found["errors"] != size // PAGE:
    found["otherErrors"].append(f"the pages do not add up to {size // PAGE}")
found["pages"] -= head
print(json.dumps(found))

# SPDX-License-Identifier: Apache-2.0
"""
What drgn sees in a dump, as JSON on the last line of output.

Run as `drgn -q -c DUMP -s VMLINUX judge.py TID...`: the stack of each task TID is
unwound. Nothing here tells drgn where anything is: that must come from the dump.
"""

import json
import sys

from drgn import FaultError
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.sched import task_cpu


def text(string):
    return string.string_().decode(errors="replace")


def uptime():
    """Seconds since boot, suspend included, as of the last timekeeping update."""
    try:
        timekeeper = prog["tk_core"].timekeeper
    except KeyError:  # one of several now, the kernel's own first
        timekeeper = prog["timekeeper_data"][0].timekeeper
    whole = timekeeper.xtime_sec.value_() + timekeeper.wall_to_monotonic.tv_sec.value_()
    parts = timekeeper.wall_to_monotonic.tv_nsec.value_() + timekeeper.offs_boot.value_()
    parts += timekeeper.tkr_mono.xtime_nsec.value_() >> timekeeper.tkr_mono.shift.value_()
    return whole + parts / 1e9


def frames(task):
    """Names of the functions of a task's stack, innermost first, inlined ones too."""
    names = []
    for frame in prog.stack_trace(task):
        name = frame.name
        if name is None:
            try:
                name = frame.symbol().name
            except LookupError:
                name = hex(frame.pc)
        names.append(name)
    return names


def main(tids):
    names = prog["init_uts_ns"].name
    tasks = []
    unwound = 0
    failures = []
    for task in for_each_task(prog):
        pid = task.pid.value_()
        tasks.append({"tid": pid, "cpu": task_cpu(task), "comm": text(task.comm)})
        if task.exit_state and not task.stack:
            unwound += 1  # a zombie that has given back its stack
            continue
        try:
            if frames(task):
                unwound += 1
            else:
                failures.append(f"{pid}: empty stack")
        except (FaultError, LookupError, ValueError) as error:
            failures.append(f"{pid}: {error}")
    modules = [
        text(module.name)
        for module in list_for_each_entry("struct module", prog["modules"].address_of_(), "list")
    ]
    stacks = {}
    for tid in tids:
        task = find_task(prog, tid)
        if task:
            print(f"stack of {tid} ({text(task.comm)}):")
            print(prog.stack_trace(task))
            stacks[str(tid)] = frames(task)
    print(f"{len(tasks)} tasks:")
    for task in tasks:
        print(f"{task['tid']:8} {task['comm']}")
    print(
        json.dumps(
            {
                "hostname": text(names.nodename),
                "release": text(names.release),
                "uptimeSeconds": uptime(),
                "cpus": len(list(for_each_online_cpu(prog))),
                "tasks": tasks,
                "modules": modules,
                "stacks": stacks,
                "unwound": unwound,
                "failures": failures,
            }
        )
    )


main([int(argument) for argument in sys.argv[1:]])

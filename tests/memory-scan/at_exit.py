#!/usr/bin/env python3
"""Runs a program and stops it in the moment of its end, when its memory is still there.

    at_exit.py DIRECTORY PROGRAM

With a file `armed` in DIRECTORY, the program gets the content of the file `control` there as environment variable
SEALVOL_SCAN_CONTROL. When its last thread ends, the file `stopped` tells of it in the words of freeze.py, and the process
stands still until there is a file `continue`. Without `armed` the program just runs. Either way it has this process's descriptors.
"""

import json
import os
import signal
import sys
import time

from freeze import WALL, describe, ptrace

PTRACE_TRACEME, PTRACE_CONT, PTRACE_SETOPTIONS = 0, 7, 0x4200
TRACE_CLONE, TRACE_EXEC, TRACE_EXIT, EXIT_KILL = 0x8, 0x10, 0x40, 0x100000
EVENT_CLONE, EVENT_EXEC, EVENT_EXIT = 3, 4, 6


def start(program, control):
    process = os.fork()
    if process == 0:
        ptrace(PTRACE_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.execve(program, [program], {b"SEALVOL_SCAN_CONTROL": control})
    # Else whoever waits for the program to close them would wait for this process.
    os.close(0)
    os.close(1)
    os.waitpid(process, 0)
    ptrace(PTRACE_SETOPTIONS, process, 0, TRACE_CLONE | TRACE_EXEC | TRACE_EXIT | EXIT_KILL)
    ptrace(PTRACE_CONT, process)
    return process


def show(directory, process):
    passing = os.path.join(directory, "stopped.new")
    with open(passing, "w") as file:
        file.write(json.dumps(describe(process, process)) + "\nfrozen\n")
    os.rename(passing, os.path.join(directory, "stopped"))
    while not os.path.exists(os.path.join(directory, "continue")):
        time.sleep(0.01)


def trace(directory, process):
    """Lets all threads run, and the first one end last; gives its status."""
    ending = False
    while True:
        if ending and os.listdir(f"/proc/{process}/task") == [str(process)]:
            show(directory, process)
            ptrace(PTRACE_CONT, process)
            ending = False
        thread, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            if thread == process:
                return os.waitstatus_to_exitcode(status)
            continue
        event, number = status >> 16, os.WSTOPSIG(status)
        if thread == process and event == EVENT_EXIT:
            ending = True
            continue
        ours = event in (EVENT_CLONE, EVENT_EXEC, EVENT_EXIT) or number == signal.SIGSTOP
        ptrace(PTRACE_CONT, thread, 0, 0 if ours else number)


def main():
    directory, program = sys.argv[1:]
    if not os.path.exists(os.path.join(directory, "armed")):
        os.execve(program, [program], {})
    with open(os.path.join(directory, "control"), "rb") as file:
        control = file.read()
    code = trace(directory, start(program, control))
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Runs a program that hands a key over, and stops it again and again, so that its memory can be looked at.

    hold_child.py DIRECTORY PROGRAM

With a file `armed` in DIRECTORY, the program gets the content of the file `control` there as environment variable
SEALVOL_SCAN_CONTROL, and is stopped: before each system call of its first thread from the first connection that it makes until it
hands the key over (`call.0`, `call.1`, ...); before it hands it over, by the first write to what standard output is,
or hands over a backup of all, by the first write to the daemon's memory for it (`hand-over`); and at its end, when its memory is still there (`end`). Each time the file `stopped.MOMENT` tells of the threads in the
words of freeze.py, and they go on when there is a file `continue.MOMENT`. Without `armed` the program just runs. Either way it
has this process's descriptors.
"""

import ctypes
import json
import os
import platform
import signal
import struct
import sys
import time

from freeze import WALL, describe, libc, ptrace

PTRACE_TRACEME, PTRACE_CONT, PTRACE_SYSCALL, PTRACE_SETOPTIONS, PTRACE_GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
TRACE_SYSGOOD, TRACE_CLONE, TRACE_EXEC, TRACE_EXIT, EXIT_KILL = 0x1, 0x8, 0x10, 0x40, 0x100000
EVENT_CLONE, EVENT_EXEC, EVENT_EXIT = 3, 4, 6
IN_SYSCALL = signal.SIGTRAP | 0x80
ENTRY = 1  # of struct ptrace_syscall_info

# Calls that write to the descriptor that is their first argument: write, writev, sendto, sendmsg.
WRITES = {"x86_64": (1, 20, 44, 46), "aarch64": (64, 66, 206, 211)}[platform.machine()]
CONNECT = {"x86_64": 42, "aarch64": 203}[platform.machine()]


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
    options = TRACE_SYSGOOD | TRACE_CLONE | TRACE_EXEC | TRACE_EXIT | EXIT_KILL
    ptrace(PTRACE_SETOPTIONS, process, 0, options)
    ptrace(PTRACE_SYSCALL, process)
    return process


def begun_call(thread):
    """The number and the first argument of the system call that a thread is about to make, if it is not coming out of one."""
    info = ctypes.create_string_buffer(88)
    ptrace(PTRACE_GET_SYSCALL_INFO, thread, 88, ctypes.addressof(info))
    return struct.unpack_from("<QQ", info.raw, 24) if info.raw[0] == ENTRY else None


def hands_over(process, descriptor):
    """Whether that is where keys go, or where a backup goes."""
    standard_output, written = (os.readlink(f"/proc/{process}/fd/{number}") for number in (1, descriptor))
    return written == standard_output or written.startswith("/memfd:sealvol-backup")


def others(process, stopped):
    """Stops the other threads, by a signal that they never see."""
    threads = {int(name) for name in os.listdir(f"/proc/{process}/task")} - {stopped}
    for thread in threads:
        libc.tgkill(process, thread, signal.SIGSTOP)
        os.waitpid(thread, WALL)
    return threads


def show(directory, moment, process, threads):
    passing = os.path.join(directory, "stopped.new")
    with open(passing, "w") as file:
        for thread in threads:
            file.write(json.dumps(describe(process, thread)) + "\n")
        file.write("frozen\n")
    os.rename(passing, os.path.join(directory, f"stopped.{moment}"))
    while not os.path.exists(os.path.join(directory, f"continue.{moment}")):
        time.sleep(0.001)


def trace(directory, process):
    """Lets all threads run, and the first one end last; gives its status."""
    go_on, ending, connected, calls = PTRACE_SYSCALL, False, False, 0
    while True:
        if ending and os.listdir(f"/proc/{process}/task") == [str(process)]:
            show(directory, "end", process, [process])
            ptrace(go_on, process)
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
        call = begun_call(thread) if number == IN_SYSCALL and thread == process else None
        if call and go_on == PTRACE_SYSCALL:
            connected |= call[0] == CONNECT
            if call[0] in WRITES and hands_over(process, call[1]):
                stopped = others(process, thread)
                show(directory, "hand-over", process, [process, *stopped])
                go_on = PTRACE_CONT
                for other in stopped:
                    ptrace(go_on, other)
            elif connected:
                show(directory, f"call.{calls}", process, [process])
                calls += 1
        ours = event in (EVENT_CLONE, EVENT_EXEC, EVENT_EXIT) or number in (signal.SIGSTOP, IN_SYSCALL)
        ptrace(go_on, thread, 0, 0 if ours else number)


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

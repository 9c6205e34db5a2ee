#!/usr/bin/env python3
"""Stops every thread of a process by ptrace, tells what their registers hold, and lets them go again.

    freeze.py PID

Prints one JSON line per thread: its id, name, stack pointer, and each register set as hexadecimal text, as the kernel gives
it; then the line "frozen". The process stays stopped until standard input ends. Needs root for a process that is not dumpable.

Nothing is written to the process, and threads that sleep in a system call go on sleeping.
"""

import ctypes
import json
import os
import platform
import struct
import sys

PTRACE_DETACH, PTRACE_GETREGSET, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4204, 0x4206, 0x4207
WALL = 0x40000000
LONGEST_SET = 1 << 17  # with AMX tiles a thread has some 11 KiB

# Numbers from <elf.h>; where the stack pointer stands among the general registers.
SETS, STACK_POINTER = {
    "x86_64": ({"general": 1, "floating point": 2, "extended state": 0x202}, 19),
    "aarch64": ({"general": 1, "floating point": 2, "scalable vectors": 0x405}, 31),
}[platform.machine()]

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Buffer(ctypes.Structure):
    """struct iovec"""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def ptrace(request, thread, address=None, data=None):
    if libc.ptrace(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace({request:#x}) of {thread}: {os.strerror(number)}")


def threads(process):
    return {int(name) for name in os.listdir(f"/proc/{process}/task")}


def stop(process):
    """Seizes and stops threads until there is none that is not stopped: until then they can start new ones."""
    stopped = set()
    while new := threads(process) - stopped:
        for thread in new:
            try:
                ptrace(PTRACE_SEIZE, thread)
                ptrace(PTRACE_INTERRUPT, thread)
            except ProcessLookupError:
                continue  # it has ended meanwhile
            _, status = os.waitpid(thread, WALL)
            if os.WIFSTOPPED(status):
                stopped.add(thread)
    return stopped


def register_set(thread, number):
    memory = ctypes.create_string_buffer(LONGEST_SET)
    buffer = Buffer(ctypes.addressof(memory), LONGEST_SET)
    ptrace(PTRACE_GETREGSET, thread, number, ctypes.addressof(buffer))
    if buffer.length == LONGEST_SET:
        raise SystemExit("a register set is longer than expected: it was cut")
    return memory.raw[: buffer.length]


def describe(process, thread):
    with open(f"/proc/{process}/task/{thread}/comm") as file:
        name = file.read().rstrip("\n")
    sets = {}
    for title, number in SETS.items():
        try:
            sets[title] = register_set(thread, number)
        except OSError:
            if title != "scalable vectors":  # not on every processor
                raise
    (pointer,) = struct.unpack_from("<Q", sets["general"], STACK_POINTER * 8)
    registers = {title: content.hex() for title, content in sets.items()}
    return {"id": thread, "name": name, "stack_pointer": pointer, "registers": registers}


def main():
    process = int(sys.argv[1])
    stopped = stop(process)
    for thread in sorted(stopped):
        print(json.dumps(describe(process, thread)))
    print("frozen", flush=True)
    sys.stdin.read()
    for thread in stopped:
        ptrace(PTRACE_DETACH, thread)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Runs a program on a kernel that seems to have no memfd_secret(2): a seccomp filter answers it with ENOSYS.

    without_secret_memory.py PROGRAM [ARGUMENT]...
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
MEMFD_SECRET = 447  # the same on every architecture
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of struct sock_filter
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

PROGRAM = [
    (LOAD_WORD, 0, 0, 0),  # the number of the system call
    (JUMP_IF_EQUAL, 0, 1, MEMFD_SECRET),
    (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    (RETURN, 0, 0, ALLOW),
]


def main():
    filters = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in PROGRAM))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(PROGRAM), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise SystemExit(f"the kernel takes no filter: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

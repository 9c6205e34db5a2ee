#!/usr/bin/env python3
"""Does every kind of request to exports over connections of its own, then stays connected and does nothing.

    linger.py URI...

Prints "idle" once every reply is there, and leaves when standard input ends.
"""

import os
import sys

import nbd


def connect(uri):
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    return handle


def use(handle, start):
    for length in (1, 511, 512, 4096, 6000, 65536, (1 << 20) + 3):
        for offset in (start, start + 77, start + 4096):
            content = os.urandom(length)
            handle.pwrite(content, offset)
            if handle.pread(length, offset) != content:
                raise SystemExit(f"other content at {offset}")
    handle.pwrite(os.urandom(4096), start, nbd.CMD_FLAG_FUA)
    handle.pwrite(os.urandom(100), start + 9000, nbd.CMD_FLAG_FUA)
    handle.zero(10000, start + 20000)
    handle.zero(4096, start + 65536, nbd.CMD_FLAG_NO_HOLE)
    handle.trim(65536, start + 131072)
    handle.cache(65536, start)
    handle.block_status(1 << 20, start, lambda *_: 0)
    handle.flush()


def main():
    handles = [connect(uri) for uri in sys.argv[1:] for _ in range(3)]
    for number, handle in enumerate(handles):
        use(handle, number * (4 << 20))
    print("idle", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

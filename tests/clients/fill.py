"""Fills a thin volume whose store is smaller than itself.

    fill.py until-full URI RECORD    writes and overwrites until the store is full, and asserts that the answer is ENOSPC
    fill.py more URI RECORD          asserts that writing goes on now that there is space
    fill.py verify URI RECORD        asserts that everything acknowledged is there

The record holds "NUMBER SEED" of each piece whose write was acknowledged.
"""

import sys
import nbd
from check import KIB, connect, refused, same, text

PIECE = 256 * KIB


def load(path):
    try:
        with open(path) as file:
            return {int(number): seed for number, seed in (line.split() for line in file)}
    except FileNotFoundError:
        return {}


def save(path, pieces):
    with open(path, "w") as file:
        file.writelines(f"{number} {seed}\n" for number, seed in pieces.items())


def write(handle, pieces, number, seed):
    handle.pwrite(text(seed, PIECE), number * PIECE)
    pieces[number] = seed


def until_full(uri, path):
    handle, pieces, full = connect(uri), load(path), None
    for number in range(handle.get_size() // PIECE):
        try:
            write(handle, pieces, number, f"first-{number}")
        except nbd.Error as error:
            same(error.errno, "ENOSPC", "the answer on a full disk")
            full = number
            break
        if number % 8 == 0:
            handle.flush()
    assert full, "the store never got full"

    # Full, it still commits, reads, overwrites what is there, and refuses the next write too.
    handle.flush()
    write(handle, pieces, 0, "over")
    refused("ENOSPC", "another write on a full disk", handle.pwrite, text("next", PIECE), (full + 1) * PIECE)
    handle.flush()
    same(handle.pread(PIECE, 0), text("over", PIECE), "what was overwritten on a full disk")
    handle.shutdown()
    save(path, pieces)


def more(uri, path):
    handle, pieces = connect(uri), load(path)
    start = max(pieces) + 1
    for number in range(start, start + 64):
        write(handle, pieces, number, f"more-{number}")
    handle.flush()
    handle.shutdown()
    save(path, pieces)


def verify(uri, path):
    handle, pieces = connect(uri), load(path)
    assert pieces, "nothing is on record"
    for number, seed in pieces.items():
        same(handle.pread(PIECE, number * PIECE), text(seed, PIECE), f"piece {number}")
    handle.shutdown()


if __name__ == "__main__":
    {"until-full": until_full, "more": more, "verify": verify}[sys.argv[1]](*sys.argv[2:])

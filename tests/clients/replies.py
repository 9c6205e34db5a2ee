"""Structured and simple replies: content, the DF flag, holes, and a session without structured replies."""

import sys
import nbd
from check import BLOCK, KIB, MIB, connect, same, text

uri = sys.argv[1]
h = connect(uri)
same(h.get_structured_replies_negotiated(), True, "structured replies")
same(h.can_meta_context("base:allocation"), True, "base:allocation")

# Data, then a hole, then data: however the server cuts it, the pieces are the range, once, in no overlap.
h.pwrite(text(1, 64 * KIB), 1 * MIB)
h.zero(64 * KIB, 1 * MIB + 64 * KIB)
h.pwrite(text(2, 64 * KIB), 1 * MIB + 128 * KIB)
expected = text(1, 64 * KIB) + bytes(64 * KIB) + text(2, 64 * KIB)


def pieces(flags=0):
    seen = []

    def piece(data, offset, status, error):
        assert status in (nbd.READ_DATA, nbd.READ_HOLE), f"a chunk of type {status}"
        seen.append((offset - 1 * MIB, len(data)))

    got = h.pread_structured(len(expected), 1 * MIB, piece, flags=flags)
    same(got, expected, "a structured read")
    return sorted(seen)


at = 0
for offset, length in pieces():
    same(offset, at, "the offset of a piece")
    at += length
same(at, len(expected), "the end of the pieces")
same(pieces(nbd.CMD_FLAG_DF), [(0, len(expected))], "one piece under DF")

# The same content by simple replies.
simple = connect(uri, structured=False)
same(simple.get_structured_replies_negotiated(), False, "structured replies when not asked for")
same(simple.pread(len(expected), 1 * MIB), expected, "a read by simple replies")
same(simple.can_df(), False, "DF without structured replies")

# Reads across everything, of one byte up to 32 MiB.
same(h.pread(1, 1 * MIB + 1), expected[1:2], "one byte")
same(h.pread(BLOCK + 2, 1 * MIB + 64 * KIB - 1), expected[64 * KIB - 1:64 * KIB + BLOCK + 1], "a read across the hole's edge")
large = h.pread(32 * MIB, 0)
same(large[1 * MIB:1 * MIB + len(expected)], expected, "a read of the greatest size")
h.shutdown()
simple.shutdown()

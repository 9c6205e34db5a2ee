"""Write zeroes and trim, what block status says of them, and REQ_ONE."""

import sys
import nbd
from check import BLOCK, KIB, MIB, connect, extents, same, text, whole_map

HOLE_ZERO = nbd.STATE_HOLE | nbd.STATE_ZERO
uri = sys.argv[1]
h = connect(uri)
size = h.get_size()
same((h.can_zero(), h.can_trim(), h.can_fast_zero()), (True, True, True), "zeroes, trim, fast zeroes")
same(whole_map(h), [(0, size, HOLE_ZERO)], "the map of an empty volume")

h.pwrite(text(1, MIB), MIB)
same(whole_map(h), [(0, MIB, HOLE_ZERO), (MIB, MIB, 0), (2 * MIB, size - 2 * MIB, HOLE_ZERO)], "the map after one write")

# REQ_ONE: one extent, from the first byte, and no longer than asked for.
same(extents(h, MIB, MIB - 64 * KIB, nbd.CMD_FLAG_REQ_ONE), [(64 * KIB, HOLE_ZERO)], "one extent before the data")
same(extents(h, 4 * KIB, MIB, nbd.CMD_FLAG_REQ_ONE), [(4 * KIB, 0)], "one extent inside the data")
same(len(extents(h, 4 * MIB, 0)) > 1, True, "several extents when not asked for one")

# Zeroes read as zeros and are a hole; with NO_HOLE they stay allocated.
h.zero(256 * KIB, MIB)
same(h.pread(MIB, MIB), bytes(256 * KIB) + text(1, MIB)[256 * KIB:], "the content after zeroes")
same(extents(h, 256 * KIB, MIB, nbd.CMD_FLAG_REQ_ONE), [(256 * KIB, HOLE_ZERO)], "the state after zeroes")
h.zero(256 * KIB, MIB + 256 * KIB, flags=nbd.CMD_FLAG_NO_HOLE)
same(h.pread(256 * KIB, MIB + 256 * KIB), bytes(256 * KIB), "the content after zeroes without a hole")
(length, flags), = extents(h, 256 * KIB, MIB + 256 * KIB, nbd.CMD_FLAG_REQ_ONE)
same((length, flags & nbd.STATE_HOLE), (256 * KIB, 0), "no hole after NO_HOLE")

# Fast zeroes are as quick as a trim or refused; a refusal changes nothing.
before = h.pread(BLOCK, MIB + 512 * KIB)
try:
    h.zero(64 * KIB, MIB + 512 * KIB, flags=nbd.CMD_FLAG_FAST_ZERO)
    same(h.pread(64 * KIB, MIB + 512 * KIB), bytes(64 * KIB), "the content after fast zeroes")
except nbd.Error as error:
    same(error.errno, "ENOTSUP", "a refusal of fast zeroes")
    same(h.pread(BLOCK, MIB + 512 * KIB), before, "the content after refused fast zeroes")

# A trim may leave the old content or zeros, block by block; here it gives zeros, and what lies beside it stays.
h.pwrite(text(2, MIB), 4 * MIB)
h.trim(512 * KIB, 4 * MIB + 256 * KIB)
same(h.pread(256 * KIB, 4 * MIB), text(2, MIB)[:256 * KIB], "what lies before a trim")
same(h.pread(512 * KIB, 4 * MIB + 256 * KIB), bytes(512 * KIB), "what was trimmed")
same(h.pread(256 * KIB, 4 * MIB + 768 * KIB), text(2, MIB)[768 * KIB:], "what lies after a trim")

# A trim of less than a block must not touch the rest of the block.
h.trim(100, 4 * MIB + 50)
got = h.pread(BLOCK, 4 * MIB)
same(got[:50] + got[150:], text(2, MIB)[:50] + text(2, MIB)[150:BLOCK], "what lies around a trim of 100 bytes")

# Everything back: a trimmed block can be written again; the whole volume can go at once.
h.pwrite(text(3, MIB), 4 * MIB)
same(h.pread(MIB, 4 * MIB), text(3, MIB), "a write over a trim")
h.zero(size, 0)
same(whole_map(h), [(0, size, HOLE_ZERO)], "the map after the whole volume was zeroed")
h.cache(size, 0)
h.shutdown()

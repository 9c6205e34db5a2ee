"""FUA on every command, FLUSH, and a FLUSH that covers what another connection wrote."""

import sys
import nbd
from check import BLOCK, KIB, MIB, connect, extents, same, text

uri = sys.argv[1]
h = connect(uri)
same((h.can_fua(), h.can_flush(), h.can_multi_conn()), (True, True, True), "FUA, FLUSH, multi-conn")
fua = nbd.CMD_FLAG_FUA

h.pwrite(text(1, BLOCK), 0, flags=fua)                  # a first write
h.pwrite(text(2, BLOCK), 0, flags=fua)                  # an overwrite
h.pwrite(text(3, 100), 50, flags=fua)                   # less than a block
same(h.pread(BLOCK, 0), text(2, BLOCK)[:50] + text(3, 100) + text(2, BLOCK)[150:], "writes with FUA")
h.zero(BLOCK, 0, flags=fua)
same(h.pread(BLOCK, 0), bytes(BLOCK), "zeroes with FUA")
h.pwrite(text(4, 2 * BLOCK), 0)
h.trim(BLOCK, 0, flags=fua)
same(h.pread(BLOCK, BLOCK), text(4, 2 * BLOCK)[BLOCK:], "what lies beside a trim with FUA")

# Where it has no meaning it must be accepted and have none.
same(h.pread(BLOCK, BLOCK, flags=fua), text(4, 2 * BLOCK)[BLOCK:], "a read with FUA")
h.flush(flags=fua)
h.cache(64 * KIB, 0, flags=fua)
extents(h, 64 * KIB, 0, flags=fua)

other = connect(uri)
h.pwrite(text(5, MIB), 4 * MIB)
other.flush()
same(other.pread(MIB, 4 * MIB), text(5, MIB), "what another connection wrote")
for handle in (h, other):
    handle.shutdown()

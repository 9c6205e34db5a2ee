"""Ranges: the ends of the volume, past them, nothing at all, and pieces that fit no sector or block."""

import sys
from check import BLOCK, KIB, MIB, connect, extents, refused, same, text

uri = sys.argv[1]
h = connect(uri)
size = h.get_size()

# The ends belong to the volume.
h.pwrite(text(1, BLOCK), 0)
h.pwrite(text(2, BLOCK), size - BLOCK)
same(h.pread(BLOCK, 0), text(1, BLOCK), "the first block")
same(h.pread(BLOCK, size - BLOCK), text(2, BLOCK), "the last block")
h.pwrite(b"\x5a", size - 1)
same(h.pread(2, size - 2), text(2, BLOCK)[-2:-1] + b"\x5a", "the last byte")

# Past the end: ENOSPC for what would write there, EINVAL for the rest; nothing is written; the connection goes on.
last = h.pread(BLOCK, size - BLOCK)
for offset, length in ((size, BLOCK), (size - BLOCK, 2 * BLOCK), (size + MIB, 1), (2**63, BLOCK), (2**64 - BLOCK, BLOCK), (2**64 - 1, 1)):
    where = f"{length} bytes at {offset}"
    refused("EINVAL", f"a read of {where}", h.pread, length, offset)
    refused("ENOSPC", f"a write of {where}", h.pwrite, text(3, length), offset)
    refused("ENOSPC", f"zeroes for {where}", h.zero, length, offset)
    refused("EINVAL", f"a trim of {where}", h.trim, length, offset)
    refused("EINVAL", f"a cache of {where}", h.cache, length, offset)
    refused("EINVAL", f"a block status of {where}", extents, h, length, offset)
same(h.pread(BLOCK, size - BLOCK), last, "the last block after refused writes")

# A length of nothing is unspecified: an error or success, but an answer, and no harm.
for call in (lambda: h.pread(0, 0), lambda: h.pwrite(b"", 0), lambda: h.zero(0, 0), lambda: h.trim(0, 0), lambda: h.cache(0, 0)):
    try:
        call()
    except Exception as error:
        assert error.errno in ("EINVAL", "ENOSPC"), f"a request for nothing: {error.errno}"
same(h.pread(BLOCK, 0), text(1, BLOCK), "the first block after requests for nothing")

# Pieces that fit no sector and no block, first over nothing, then over data, against a plain copy.
base, span = 8 * MIB, 256 * KIB
model = bytearray(span)
cases = [(0, 1), (1, 1), (511, 2), (512, 512), (513, 511), (4095, 1), (4095, 2), (4096, 4096), (4097, 4095), (4608, 8192),
         (8191, 8194), (12288, 65536), (100000, 30000), (span - 1, 1), (span - 4097, 4097), (3 * BLOCK - 1, 5 * BLOCK + 2)]
for turn in range(2):
    for number, (offset, length) in enumerate(cases):
        piece = text(100 * turn + number, length)
        h.pwrite(piece, base + offset)
        model[offset:offset + length] = piece
        same(h.pread(length, base + offset), piece, f"{length} bytes at {offset}, read back")
        same(h.pread(span, base), bytes(model), f"everything after {length} bytes at {offset}")
for offset, length in ((1, 4095), (700, 100), (4095, 4098), (20001, 40000)):
    h.zero(length, base + offset)
    model[offset:offset + length] = bytes(length)
    same(h.pread(span, base), bytes(model), f"everything after zeroes for {length} bytes at {offset}")
    h.pwrite(text(7, length), base + offset)
    model[offset:offset + length] = text(7, length)
same(h.pread(span, base), bytes(model), "everything at the end")
h.shutdown()

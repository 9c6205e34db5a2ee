"""An export that is attached read-only: it says so, reads, and answers EPERM to whatever would change it."""

import sys
from check import BLOCK, connect, refused, same

uri, expected = sys.argv[1], open(sys.argv[2], "rb").read()
h = connect(uri)
same(h.is_read_only(), True, "the read-only flag")
same(h.pread(len(expected), 0), expected, "the content")
refused("EPERM", "a write", h.pwrite, bytes(BLOCK), 0)
refused("EPERM", "zeroes", h.zero, BLOCK, 0)
refused("EPERM", "a trim", h.trim, BLOCK, 0)
h.flush()
same(h.pread(len(expected), 0), expected, "the content after refused writes")
h.shutdown()

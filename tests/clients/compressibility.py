"""Asserts that the written blocks of a file look random: deflate gains nothing on them, and no block is there twice."""

import sys
import zlib
from check import BLOCK

seen, written, packed = set(), 0, 0
with open(sys.argv[1], "rb") as file:
    while block := file.read(BLOCK):
        if block.count(0) == len(block):
            continue
        assert block not in seen, f"the block at {file.tell() - BLOCK} is there twice"
        seen.add(block)
        written += len(block)
        packed += len(zlib.compress(block, 9))
least = int(sys.argv[2])
assert written >= least, f"{written} bytes are written, expected {least} or more"
assert packed >= written, f"{written} bytes deflate to {packed}"
print(f"{written} bytes deflate to {packed}")

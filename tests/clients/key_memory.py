"""Searches the memory of a running daemon for keys: root may look, and must find none outside locked memory.

    key_memory.py PID STATE-DIRECTORY META

The keys are those that recover.py knows how to come by: the master key and the key material (which the daemon never has), the
volume key, and every round key of both its halves (FIPS 197). Memory of `memfd_secret` cannot be read by anybody; where the
daemon had to fall back to mlock, a key may be in mappings that are locked and kept out of core dumps, and nowhere else.

The search proves itself: this process holds the keys in plain memory, and the same search must find them here.
"""

import os
import struct
import sys

from recovered_key import keys

pid, state, meta = sys.argv[1:]


def sbox():
    """The substitution box of FIPS 197: inverse in GF(2^8), then an affine map."""
    box, p, q = [0x63] * 256, 1, 1
    while True:
        p ^= (p << 1) & 0xFF ^ (0x1B if p & 0x80 else 0)
        for shift in (1, 2, 4):
            q ^= q << shift & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        box[p] = q ^ 0x63
        for shift in (1, 2, 3, 4):
            box[p] ^= (q << shift | q >> 8 - shift) & 0xFF
        if p == 1:
            return bytes(box)


def round_keys(key):
    """The 15 round keys of AES-256."""
    box, words, constant = sbox(), [key[i:i + 4] for i in range(0, 32, 4)], 1
    while len(words) < 60:
        word = words[-1]
        if len(words) % 8 == 0:
            word = word[1:] + word[:1]
        if len(words) % 4 == 0:
            word = word.translate(box)
        if len(words) % 8 == 0:
            word = bytes([word[0] ^ constant]) + word[1:]
            constant <<= 1
        words.append(bytes(a ^ b for a, b in zip(words[-8], word)))
    return [b"".join(words[i:i + 4]) for i in range(0, 60, 4)]


def mappings(pid):
    """(start, end, what it is, whether it is locked and kept out of core dumps)."""
    found = []
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                start, end = (int(word, 16) for word in words[0].split("-"))
                found.append([start, end, " ".join(words[5:]), False])
            elif words[0] == "VmFlags:":
                found[-1][3] = {"lo", "dd"} <= set(words)
    return found


def search(pid, wanted):
    """[(what was found, address, mapping)] outside locked mappings, and how many bytes could be read."""
    found, searched = [], 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for start, end, name, locked in mappings(pid):
            at = start
            while at < end:
                try:
                    text = os.pread(memory.fileno(), min(end - at, 16 << 20), at)
                except OSError:
                    break  # memfd_secret, a guard page, or a device
                if not text:
                    break
                searched += len(text)
                for what, needle in wanted if not locked else ():
                    offset = text.find(needle)
                    if offset >= 0:
                        found.append((what, hex(at + offset), name or "anonymous"))
                at += len(text)
    return found, searched


# FIPS 197, appendix A.3: the schedule of a known key, so that a wrong one does not find nothing.
known = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
assert round_keys(known)[14].hex() == "fe4890d1e6188d0b046df344706c631e", "the key schedule is wrong"

master, material, volume = keys(state, meta)
wanted = [("the master key", master), ("the key material", material)]
for half, key in (("K1", volume[:32]), ("K2", volume[32:])):
    wanted += [(f"round key {number} of {half}", round_key) for number, round_key in enumerate(round_keys(key))]

here, _ = search(os.getpid(), wanted)
assert {what for what, _, _ in here} == {what for what, _ in wanted}, "the search does not find what is in plain memory"
there, searched = search(int(pid), wanted)
assert searched > 1 << 20, f"only {searched} bytes of the daemon could be read"
assert not there, f"keys in the daemon's memory: {there}"
print(f"{len(wanted)} keys in none of {searched} bytes")

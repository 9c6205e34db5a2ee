#!/usr/bin/env python3
"""Puts shares of a master key together without sealvol, after FORMATS.md of the crypto crate, section 7.

    combine_shares.py SHARE... > master.key

As many shares as the first one asks for, or more. The 32 bytes go to standard output, which must not be a terminal.
"""

import hashlib
import hmac
import sys


def times(a, b):
    """Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    for bit in range(8):
        product ^= a << bit if b >> bit & 1 else 0
    for bit in range(14, 7, -1):
        product ^= 0x11B << bit - 8 if product >> bit & 1 else 0
    return product


def read(path):
    with open(path, "rb") as file:
        share = file.read()
    if len(share) != 120 or share[:5] != b"SVss\x01":
        raise SystemExit(f"{path}: not a share of format 1")
    if hashlib.sha256(share[:88]).digest() != share[88:]:
        raise SystemExit(f"{path}: damaged")
    return share


def combine(shares):
    threshold, common = shares[0][5], {share[5:7] + share[8:56] for share in shares}
    points = {share[7]: share[56:88] for share in shares}
    if len(common) != 1 or len(points) != len(shares) or len(points) < threshold:
        raise SystemExit(f"{threshold} different shares of one set are needed")
    key = bytes(32)
    for x, value in points.items():
        weight = 1
        for other in points.keys() - {x}:
            inverse = next(c for c in range(256) if times(c, other ^ x) == 1)
            weight = times(weight, times(other, inverse))
        key = bytes(k ^ times(v, weight) for k, v in zip(key, value))
    # HKDF-SHA256 (RFC 5869) for one block: extract, then expand.
    extracted = hmac.digest(shares[0][8:24], key, "sha256")
    if hmac.digest(extracted, b"sealvol v1 shared key check\x01", "sha256") != shares[0][24:56]:
        raise SystemExit("one of the shares was changed by somebody: this is not the key")
    return key


if __name__ == "__main__":
    if sys.stdout.isatty():
        raise SystemExit("a key does not go to a terminal: redirect standard output")
    sys.stdout.buffer.write(combine([read(path) for path in sys.argv[1:]] or sys.exit(__doc__)))

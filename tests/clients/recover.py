"""Reads a volume without sealvol: the escape hatch, step by step, with `sqlite3` and `cryptography` and nothing of ours.

    recover.py STATE-DIRECTORY META DATA CONTENT

The keys come from recovered_key.py; `data` is plain AES-256-XTS, tweak = sector number: CONTENT must be what its first sectors
decrypt to. Asserts on the way that the superblock's MAC is good, and that the key is in no file of the state directory.
"""

import hmac
import pathlib
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from check import same
from recovered_key import keys, superblock

state, meta, data, content = map(pathlib.Path, sys.argv[1:])
slot = superblock(meta)
_, _, key = keys(state, meta)
same(len(key), 64, "the length of K1 || K2")

mac_key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"sealvol v1 superblock mac").derive(key)
roots, = struct.unpack_from("<I", slot, 76)
same(slot[160:192], hmac.digest(mac_key, slot[:128] + slot[256:256 + 8 * roots], "sha256"), "the superblock's MAC")

sector, = struct.unpack_from("<I", slot, 72)
plain = content.read_bytes()
with open(data, "rb") as file:
    for number in range(len(plain) // sector):
        cipher = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).decryptor()
        got = cipher.update(file.read(sector)) + cipher.finalize()
        same(got, plain[number * sector:(number + 1) * sector], f"sector {number}")

for path in state.rglob("*"):
    if path.is_file():
        text = path.read_bytes()
        assert key[:32] not in text and key[32:] not in text, f"{path} holds the volume key"
print(f"{len(plain) // sector} sectors of {sector} bytes decrypted")

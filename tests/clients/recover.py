"""Reads a volume without sealvol: the escape hatch, step by step, with `sqlite3` and `cryptography` and nothing of ours.

    recover.py STATE-DIRECTORY META DATA CONTENT

From the superblock (crates/volume/FORMAT.md) come the ids and the wrapped key, from the key database (crates/kms/LOCAL.md) the
volume key, and `data` is plain AES-256-XTS, tweak = sector number: CONTENT must be what its first sectors decrypt to. Asserts on
the way that the superblock's MAC is good, and that the key is in no file of the state directory.
"""

import hashlib
import hmac
import pathlib
import struct
import sys
import uuid

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from check import same

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "crates/kms/tests"))
import open_blob  # the key database's own reader

state, meta, data, content = map(pathlib.Path, sys.argv[1:])


def superblock():
    with open(meta, "rb") as file:
        slot = file.read(262_144)
    used, = struct.unpack_from("<I", slot, 140)
    return slot[:used]


def key_record(slot):
    """Provider, key id and wrapped key of the record that opens the layer."""
    layer_key, (roots,), (count,) = slot[104:120], struct.unpack_from("<I", slot, 76), struct.unpack_from("<I", slot, 136)
    at = 256 + 8 * roots
    for _ in range(count):
        data_key = slot[at:at + 16]
        at += 20  # and the version
        fields = []
        for _ in range(3):
            length, = struct.unpack_from("<H", slot, at)
            fields.append(slot[at + 2:at + 2 + length])
            at += 2 + length
        if data_key == layer_key:
            return fields
    raise AssertionError("no record for the layer's own data key")


def volume_key(slot):
    volume, (sector,) = slot[16:32], struct.unpack_from("<I", slot, 72)
    context = {
        "sealvol:volume": str(uuid.UUID(bytes=volume)),
        "sealvol:data-key": str(uuid.UUID(bytes=slot[104:120])),
        "sealvol:params": hashlib.sha256(b"sealvol params v1\0" + volume + struct.pack("<I", sector)).hexdigest(),
    }
    _, _, blob = key_record(slot)
    database = open_blob.open_database(str(state / "keys/local.db"))

    class Arguments:
        master_key_file = state / "keys/local.master"

    database_id, master = open_blob.master_key(database, Arguments)
    material = open_blob.key_material(database, database_id, master, *open_blob.header(open_blob.VOLUME_KEY, blob))
    return open_blob.open_blob(open_blob.VOLUME_KEY, material, blob, context)


slot = superblock()
same(slot[:8], b"sealvol\0", "the magic")
key = volume_key(slot)
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

"""The keys of a volume of the embedded key service, recovered without sealvol.

From the superblock (crates/volume/FORMAT.md) come the ids and the wrapped key, from the key database (crates/kms/LOCAL.md) what
opens it.
"""

import hashlib
import pathlib
import struct
import sys
import uuid

from check import same

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "crates/kms/tests"))
import open_blob  # the key database's own reader


def superblock(meta):
    """The used bytes of the first slot."""
    with open(meta, "rb") as file:
        slot = file.read(262_144)
    same(slot[:8], b"sealvol\0", "the magic")
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


def keys(state, meta):
    """The master key, the key material that wrapped the volume key, and the volume key K1 || K2."""
    slot = superblock(meta)
    volume, (sector,) = slot[16:32], struct.unpack_from("<I", slot, 72)
    context = {
        "sealvol:volume": str(uuid.UUID(bytes=volume)),
        "sealvol:data-key": str(uuid.UUID(bytes=slot[104:120])),
        "sealvol:params": hashlib.sha256(b"sealvol params v1\0" + volume + struct.pack("<I", sector)).hexdigest(),
    }
    _, _, blob = key_record(slot)
    directory = pathlib.Path(state) / "keys"
    database = open_blob.open_database(str(directory / "local.db"))

    class Arguments:
        master_key_file = directory / "local.master"

    database_id, master = open_blob.master_key(database, Arguments)
    header = open_blob.header(open_blob.VOLUME_KEY, blob)
    material = open_blob.key_material(database, database_id, master, *header)
    return master, material, open_blob.open_blob(open_blob.VOLUME_KEY, material, blob, context)

#!/usr/bin/env python3
"""Opens a wrapped volume key without sealvol: only SQLite, SHA-256, HKDF, AES-256-GCM, Argon2id.

    open_blob.py --database keys.db --master-key-file master.key \
        --context '{"sealvol:volume": "...", ...}' BLOB > volume.key

BLOB is a file with the wrapped key as the volume's metadata holds it. The 64 bytes K1 || K2 go to
standard output, which must not be a terminal. Formats: LOCAL.md here, FORMATS.md of the crypto crate.
Needs Python 3.9 and `cryptography` (44 or later for a passphrase).
"""

import argparse
import json
import sqlite3
import struct
import sys
import urllib.parse
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEADER = struct.Struct(">4sB16sI32s")  # magic, format, key id, key version, nonce
VOLUME_KEY = (b"SVwk", b"sealvol v1 wrap volume key")
KEY_MATERIAL = (b"SVsk", b"sealvol v1 seal key-encryption key")


def canonical(context):
    """The encryption context as authenticated data: count, then length-prefixed pairs by key."""
    pairs = sorted((k.encode(), v.encode()) for k, v in context.items())
    parts = [struct.pack(">I", len(pairs))]
    for text in (text for pair in pairs for text in pair):
        parts += [struct.pack(">I", len(text)), text]
    return b"".join(parts)


def key_and_iv(kek, nonce, label):
    okm = HKDF(algorithm=hashes.SHA256(), length=44, salt=nonce, info=label).derive(kek)
    return okm[:32], okm[32:]


def header(kind, blob):
    """Key id and version that a blob names."""
    magic, form, key_id, version, _ = HEADER.unpack_from(blob)
    if magic != kind[0] or form != 1:
        raise SystemExit("this is no wrapped key of the kind expected")
    return key_id, version


def open_blob(kind, kek, blob, context):
    header(kind, blob)
    head, sealed = blob[: HEADER.size], blob[HEADER.size :]
    key, iv = key_and_iv(kek, head[-32:], kind[1])
    return AESGCM(key).decrypt(iv, sealed, head + canonical(context))


def master_key(database, arguments):
    """The master key, after its check value in the database has opened."""
    db_id, form, salt, memory, passes, lanes, check = database.execute(
        "SELECT id, master_key, argon2_salt, argon2_memory, argon2_passes, argon2_lanes,"
        " master_check FROM meta"
    ).fetchone()
    if form == "raw":
        with open(arguments.master_key_file, "rb") as file:
            master = file.read()
    else:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        with open(arguments.passphrase_file, "rb") as file:
            passphrase = file.read().removesuffix(b"\n").removesuffix(b"\r")
        master = Argon2id(
            salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory
        ).derive(passphrase)
    open_blob(KEY_MATERIAL, master, check, local_context(db_id, "master key check"))
    return db_id, master


def local_context(db_id, use):
    return {"sealvol-local:database": str(uuid.UUID(bytes=db_id)), "sealvol-local:use": use}


def key_material(database, db_id, master, key_id, version):
    row = database.execute(
        "SELECT sealed FROM versions WHERE key_id = ? AND version = ?", (key_id, version)
    ).fetchone()
    if row is None:
        raise SystemExit(f"no key {uuid.UUID(bytes=key_id)} of version {version} in the database")
    if header(KEY_MATERIAL, row[0]) != (key_id, version):
        raise SystemExit("the key material in the database belongs to another key")
    return open_blob(KEY_MATERIAL, master, row[0], local_context(db_id, "key material"))


def open_database(path):
    return sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro", uri=True)


def parser(description, context=True):
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--database", required=True)
    master = arguments.add_mutually_exclusive_group(required=True)
    master.add_argument("--master-key-file")
    master.add_argument("--passphrase-file")
    if context:
        arguments.add_argument("--context", required=True, type=json.loads)
    return arguments


def main():
    arguments = parser("Opens a wrapped volume key of the provider `local`.")
    arguments.add_argument("blob")
    arguments = arguments.parse_args()
    if sys.stdout.isatty():
        raise SystemExit("a key does not go to a terminal: redirect standard output")
    database = open_database(arguments.database)
    with open(arguments.blob, "rb") as file:
        blob = file.read()
    try:
        db_id, master = master_key(database, arguments)
        kek = key_material(database, db_id, master, *header(VOLUME_KEY, blob))
        key = open_blob(VOLUME_KEY, kek, blob, arguments.context)
    except InvalidTag:
        raise SystemExit("wrong master key, wrong context, or something was changed") from None
    sys.stdout.buffer.write(key)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Wraps a chosen test key under a key of the provider `local`: to make what sealvol refuses to make.

    wrap_key.py --database keys.db --master-key-file master.key --context JSON NAME HEX > blob
"""

import os
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import open_blob as tool


def main():
    arguments = tool.parser("Wraps a chosen test key.")
    arguments.add_argument("name")
    arguments.add_argument("key", type=bytes.fromhex)
    arguments = arguments.parse_args()
    database = tool.open_database(arguments.database)
    db_id, master = tool.master_key(database, arguments)
    key_id, version = database.execute(
        "SELECT id, max(version) FROM keys JOIN versions ON key_id = id WHERE name = ?",
        (arguments.name,),
    ).fetchone()
    kek = tool.key_material(database, db_id, master, key_id, version)
    magic, label = tool.VOLUME_KEY
    nonce = os.urandom(32)
    head = tool.HEADER.pack(magic, 1, key_id, version, nonce)
    key, iv = tool.key_and_iv(kek, nonce, label)
    sealed = AESGCM(key).encrypt(iv, arguments.key, head + tool.canonical(arguments.context))
    sys.stdout.buffer.write(head + sealed)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Opens a backup of a key database without sealvol: only RSA-OAEP, SHA-256, HKDF and AES-256-GCM.

    open_backup.py --backup FILE --recovery-key PRIVATE.pem --database keys.db --master-key master.key

Writes the database and the 32 bytes of the master key to new files of mode 0600, and says what the backup says of itself.
`--backup-key FILE` instead of `--recovery-key` takes the 32 bytes that the recovery key decrypts. Format: LOCAL.md.
Needs Python 3.9 and `cryptography`.
"""

import argparse
import hashlib
import json
import os
import struct
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

import open_blob as tool

HEADER = struct.Struct(">4sBBH16sQQ32s")  # magic, format, form, n, database, changes, made, recovery key
SEALED_KEY_BYTES = 105
MASTER_KEY = (b"SVsk", b"sealvol v1 seal key-encryption key")
IMAGE = (b"SVst", b"sealvol v1 seal key table")


def backup_key(arguments, wrapped, fingerprint):
    if arguments.backup_key:
        with open(arguments.backup_key, "rb") as file:
            return file.read()
    with open(arguments.recovery_key, "rb") as file:
        private_key = serialization.load_pem_private_key(file.read(), None)
    public_key = private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if hashlib.sha256(public_key).digest() != fingerprint:
        raise SystemExit("this backup was made for another recovery key")
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return private_key.decrypt(wrapped, oaep)


def write_new(path, content):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def main():
    arguments = argparse.ArgumentParser(description="Opens a backup of a key database.")
    arguments.add_argument("--backup", required=True)
    key = arguments.add_mutually_exclusive_group(required=True)
    key.add_argument("--recovery-key")
    key.add_argument("--backup-key")
    arguments.add_argument("--database", required=True)
    arguments.add_argument("--master-key", required=True)
    arguments = arguments.parse_args()
    with open(arguments.backup, "rb") as file:
        backup = file.read()
    magic, form, master_form, length, database, changes, made, fingerprint = HEADER.unpack_from(backup)
    if magic != b"SVbk" or form != 1:
        raise SystemExit("this is no backup of a key database")
    beginning, rest = backup[: HEADER.size + length], backup[HEADER.size + length :]
    context = {
        "sealvol-local:backup": hashlib.sha256(beginning).hexdigest(),
        **tool.local_context(database, "backup"),
    }
    try:
        kek = backup_key(arguments, beginning[HEADER.size :], fingerprint)
        master = tool.open_blob(MASTER_KEY, kek, rest[:SEALED_KEY_BYTES], context)
        image = tool.open_blob(IMAGE, kek, rest[SEALED_KEY_BYTES:], context)
    except (InvalidTag, ValueError):
        raise SystemExit("wrong key, or something was changed") from None
    write_new(arguments.master_key, master)
    write_new(arguments.database, image)
    told = {
        "database": str(uuid.UUID(bytes=database)),
        "changes": changes,
        "made": made,
        "master_key": ["raw", "passphrase"][master_form],
        "recovery_key": fingerprint.hex(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()

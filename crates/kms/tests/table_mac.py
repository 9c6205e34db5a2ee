#!/usr/bin/env python3
"""Checks the MAC over the table of keys without sealvol, as LOCAL.md describes it.

    table_mac.py --database keys.db --master-key-file master.key
"""

import hashlib
import hmac
import re
import struct
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import open_blob as tool

LABEL = b"sealvol v1 key table mac"
DOCUMENT = Path(__file__).parent.parent / "LOCAL.md"


def covered():
    """Tables, their columns and their order, from the document itself."""
    lines = re.findall(r"^\| `(\w+)` \| ([\w, `]+) \| ([\w, `]+|—) \|$", DOCUMENT.read_text(), re.M)
    for table, columns, order in lines:
        names = re.findall(r"\w+", columns)
        by = re.findall(r"\w+", order)
        yield table, names, by


def item(kind, value):
    return kind + struct.pack(">Q", len(value)) + value


def encoded(value):
    if value is None:
        return item(b"n", b"")
    if isinstance(value, int):
        return item(b"i", struct.pack(">q", value))
    if isinstance(value, str):
        return item(b"t", value.encode())
    return item(b"b", value)


def message(database):
    parts = []
    for table, columns, order in covered():
        by = f" ORDER BY {', '.join(order)}" if order else ""
        rows = database.execute(f"SELECT {', '.join(columns)} FROM {table}{by}").fetchall()
        parts += [encoded(table), encoded(len(rows))]
        parts += [encoded(value) for row in rows for value in row]
    return b"".join(parts)


def main():
    arguments = tool.parser("Checks the MAC over the table of keys.", context=False)
    arguments = arguments.parse_args()
    database = tool.open_database(arguments.database)
    db_id, master = tool.master_key(database, arguments)
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=db_id, info=LABEL).derive(master)
    (stored,) = database.execute("SELECT mac FROM meta").fetchone()
    made = hmac.new(key, message(database), hashlib.sha256).digest()
    print("sound" if hmac.compare_digest(made, stored) else "changed")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Checks the MAC over the table of keys without sealvol, as LOCAL.md describes it; or makes it anew.

    table_mac.py --database keys.db --master-key-file master.key [--write] [--format N]
"""

import hashlib
import hmac
import re
import sqlite3
import struct
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import open_blob as tool

LABEL = b"sealvol v1 key table mac"
DOCUMENT = Path(__file__).parent.parent / "LOCAL.md"


def covered(format):
    """Tables, their columns and their order in a format, from the document itself."""
    row = r"^\| `(\w+)` \| (\d+) \| ([\w, `]+) \| ([\w, `]+|—) \|$"
    for table, since, columns, order in re.findall(row, DOCUMENT.read_text(), re.M):
        if int(since) > format:
            continue
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


def message(database, format):
    parts = []
    for table, columns, order in covered(format):
        by = f" ORDER BY {', '.join(order)}" if order else ""
        rows = database.execute(f"SELECT {', '.join(columns)} FROM {table}{by}").fetchall()
        parts += [encoded(table), encoded(len(rows))]
        parts += [encoded(value) for row in rows for value in row]
    return b"".join(parts)


def main():
    arguments = tool.parser("Checks the MAC over the table of keys.", context=False)
    arguments.add_argument("--write", action="store_true", help="make it anew")
    arguments.add_argument("--format", type=int, default=6)
    arguments = arguments.parse_args()
    database = tool.open_database(arguments.database)
    db_id, master = tool.master_key(database, arguments)
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=db_id, info=LABEL).derive(master)
    (stored,) = database.execute("SELECT mac FROM meta").fetchone()
    made = hmac.new(key, message(database, arguments.format), hashlib.sha256).digest()
    if arguments.write:
        writer = sqlite3.connect(arguments.database)
        writer.execute("UPDATE meta SET mac = ?", (made,))
        writer.commit()
        return
    print("sound" if hmac.compare_digest(made, stored) else "changed")


if __name__ == "__main__":
    main()

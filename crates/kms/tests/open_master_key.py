#!/usr/bin/env python3
"""Opens a wrapped master key without sealvol, after LOCAL.md: first its data key, by the key service's own tools, then this.

    open_master_key.py what FILE            the context and the key of the data key, as JSON, and its wrapped form to FILE.data-key
    open_master_key.py open FILE DATA-KEY > master.key
"""

import base64
import json
import struct
import sys
import uuid

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

command, path = sys.argv[1:3]
with open(path) as file:
    wrapped = json.load(file)
context = {"sealvol-local:master-key": wrapped["id"], "sealvol-local:use": "wrapped master key"}
if command == "what":
    with open(path + ".data-key", "wb") as file:
        file.write(base64.b64decode(wrapped["data-key"]))
    print(json.dumps({"context": context, "key": wrapped["key"]}))
    raise SystemExit


def derive(secret, salt, label, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=label).derive(secret)


with open(sys.argv[3], "rb") as file:
    data_key = file.read()
sealing = derive(data_key, uuid.UUID(wrapped["id"]).bytes, b"sealvol v1 wrap master key", 32)
pairs = sorted((k.encode(), v.encode()) for k, v in context.items())
canonical = struct.pack(">I", len(pairs)) + b"".join(struct.pack(">I", len(t)) + t for pair in pairs for t in pair)
sealed = base64.b64decode(wrapped["sealed"])
okm = derive(sealing, sealed[25:57], b"sealvol v1 seal key-encryption key", 44)
sys.stdout.buffer.write(AESGCM(okm[:32]).decrypt(okm[32:], sealed[57:], sealed[:57] + canonical))

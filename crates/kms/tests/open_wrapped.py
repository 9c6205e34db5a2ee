"""Opens a wrapped volume key with its key-encryption key in plain, after FORMATS.md, section 3.

    open_wrapped.py KEK BLOB CONTEXT-JSON OUT
"""

import json
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

kek, blob = (open(name, "rb").read() for name in sys.argv[1:3])
pairs = sorted((k.encode(), v.encode()) for k, v in json.loads(sys.argv[3]).items())
context = struct.pack(">I", len(pairs)) + b"".join(struct.pack(">I", len(t)) + t for pair in pairs for t in pair)
okm = HKDF(algorithm=hashes.SHA256(), length=44, salt=blob[25:57], info=b"sealvol v1 wrap volume key").derive(kek)
with open(sys.argv[4], "wb") as out:
    out.write(AESGCM(okm[:32]).decrypt(okm[32:], blob[57:], blob[:57] + context))

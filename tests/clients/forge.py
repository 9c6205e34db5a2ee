"""A layer made by somebody who has the store and all that is public, and none of the keys: a volume key of their own, wrapped
under a key-encryption key of their own with the names and the context that the real one has, a superblock and map whose
authentication codes fit that volume key, and data that decrypts under it.

    forge.py META DATA [JWK]      changes both files

With the public key of an RSA key (a JSON Web Key, in a file) the volume key is wrapped as its key service would wrap it: what
that wraps, anybody can.

Formats: crates/volume/FORMAT.md, crates/crypto/FORMATS.md.
"""

import base64
import hashlib
import hmac
import json
import os
import struct
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOOL = Path(__file__).parents[2] / "tools/plain-key"
loader = SourceFileLoader("plain_key", str(TOOL))
formats = module_from_spec(spec_from_loader("plain_key", loader))
loader.exec_module(formats)

BOUND = 4
CONTENT = bytes([0x66]) * 4096


def wrapped(blob, key, context):
    """The key as the service that wrapped `blob` would wrap it, but under a key that it does not have."""
    head = blob[: formats.WRAPPED.size - 32] + os.urandom(32)
    output = formats.hkdf(os.urandom(32), head[-32:], formats.VOLUME_KEY[1], 44)
    return head + AESGCM(output[:32]).encrypt(output[32:], key, head + formats.canonical(context))


def wrapped_by_public_key(jwk, key, context):
    """FORMATS.md, section 6."""
    n, e = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in ("n", "e"))
    bound_to = hashlib.sha256(b"sealvol v1 wrap context digest" + formats.canonical(context)).digest()
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    return rsa.RSAPublicNumbers(e, n).public_key().encrypt(key + bound_to, oaep)


def forge_superblock(superblock, key, jwk):
    slot = bytearray(superblock.slot)
    (data_key, blob), = superblock.keys
    if jwk:
        forged = wrapped_by_public_key(jwk, key, superblock.context())
    else:
        forged = wrapped(blob, key, superblock.context())
    assert data_key == superblock.data_key and len(forged) == len(blob)
    at = bytes(slot).index(blob)
    slot[at : at + len(blob)] = forged
    flags, = struct.unpack_from("<I", slot, 12)
    struct.pack_into("<I", slot, 12, flags | BOUND)
    mac_key = formats.hkdf(key, None, b"sealvol v1 superblock mac", 32)
    covered = bytes(slot[:128] + slot[256 : 256 + 8 * len(superblock.root)])
    slot[160:192] = hmac.digest(mac_key, covered, "sha256")
    slot[144:148] = bytes(4)
    struct.pack_into("<I", slot, 144, formats.crc32c(slot))
    assert formats.Superblock(bytes(slot)).mac_is_good(key)
    return bytes(slot)


def forge_pages(meta, key):
    """Every directory and map page that there is, with codes that fit the key."""
    mac_key, count = formats.hkdf(key, None, b"sealvol v1 map mac", 32), 0
    meta.seek(0, os.SEEK_END)
    places = [*range(formats.DIRECTORIES_AT, formats.DIRECTORIES_AT + 8192, 4096), *range(formats.PAGES_AT, meta.tell(), 4096)]
    for at in places:
        meta.seek(at)
        page = bytearray(meta.read(4096))
        if page[:4] not in (b"SVDP", b"SVMP"):
            continue
        page[40:44], page[48:64] = bytes(4), bytes(16)
        mac, checksum = hmac.digest(mac_key, bytes(page), "sha256")[:16], formats.crc32c(page)
        struct.pack_into("<I", page, 40, checksum)
        page[48:64] = mac
        meta.seek(at)
        meta.write(page)
        count += 1
    return count


def main():
    key = os.urandom(64)
    with open(sys.argv[1], "r+b") as meta, open(sys.argv[2], "r+b") as data:
        superblock = formats.read_superblock(meta)
        assert superblock.sector == 4096
        jwk = json.loads(Path(sys.argv[3]).read_text()) if sys.argv[3:] else None
        slot = forge_superblock(superblock, key, jwk)
        for at in formats.SLOTS:
            meta.seek(at)
            meta.write(slot)
        pages = forge_pages(meta, key)
        encryptor = Cipher(algorithms.AES(key), modes.XTS(bytes(16))).encryptor()
        data.write(encryptor.update(CONTENT) + encryptor.finalize())
    print(f"forged the superblock, {pages} pages and a block")


main()

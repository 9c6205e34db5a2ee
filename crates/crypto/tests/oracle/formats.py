"""Second implementation of crates/crypto/FORMATS.md, on Python `cryptography` (OpenSSL).

Written from FORMATS.md alone. Reads one JSON request a line on standard input and answers each with
one line of JSON; byte strings are hexadecimal. A request that must be refused answers {"refused": true}.
"""

import hashlib
import hmac
import json
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

COMMITMENT = b"sealvol v1 key commitment"
SUPERBLOCK_MAC = b"sealvol v1 superblock mac"
MAP_MAC = b"sealvol v1 map mac"
KINDS = {
    "volume key": (b"SVwk", b"sealvol v1 wrap volume key", 64),
    "key-encryption key": (b"SVsk", b"sealvol v1 seal key-encryption key", 32),
}


def hkdf(ikm, salt, info, length):
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(ikm)


def canonical(pairs):
    ordered = sorted((key.encode(), value.encode()) for key, value in pairs)
    assert len({key for key, _ in ordered}) == len(ordered)
    parts = [struct.pack(">I", len(ordered))]
    for pair in ordered:
        for text in pair:
            parts += [struct.pack(">I", len(text)), text]
    return b"".join(parts)


def wrap(kind, kek, key_id, key_version, nonce, secret, pairs):
    magic, label, length = KINDS[kind]
    assert len(secret) == length and len(key_id) == 16 and len(nonce) == 32
    header = magic + b"\x01" + key_id + struct.pack(">I", key_version) + nonce
    okm = hkdf(kek, nonce, label, 44)
    return header + AESGCM(okm[:32]).encrypt(okm[32:], secret, header + canonical(pairs))


def unwrap(kind, kek, blob, pairs):
    magic, label, length = KINDS[kind]
    if blob[:5] != magic + b"\x01" or len(blob) != 57 + length + 16:
        return {"refused": True}
    header, sealed = blob[:57], blob[57:]
    okm = hkdf(kek, header[25:57], label, 44)
    try:
        secret = AESGCM(okm[:32]).decrypt(okm[32:], sealed, header + canonical(pairs))
    except InvalidTag:
        return {"refused": True}
    if kind == "volume key" and secret[:32] == secret[32:]:
        return {"refused": True}
    return {
        "secret": secret.hex(),
        "key_id": header[5:21].hex(),
        "key_version": struct.unpack(">I", header[21:25])[0],
    }


def times(a, b):
    """Product in the field of AES."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a, b = a << 1 ^ (0x11B if a & 0x80 else 0), b >> 1
    return product


def over(a, b):
    return next(c for c in range(256) if times(b, c) == a)


def share_check(key, set_id):
    return hkdf(key, set_id, b"sealvol v1 shared key check", 32)


def split(key, set_id, count, coefficients):
    """`coefficients` are those of x, x^2, ..., as many bytes each as the key has."""
    shares = []
    for index in range(1, count + 1):
        value = bytes(len(key))
        for term in [*reversed(coefficients), key]:
            value = bytes(times(v, index) ^ t for v, t in zip(value, term))
        head = b"SVss\x01" + bytes([len(coefficients) + 1, count, index])
        share = head + set_id + share_check(key, set_id) + value
        shares.append(share + hashlib.sha256(share).digest())
    return shares


def combine(shares):
    refused = {"refused": True}
    for share in shares:
        if len(share) != 120 or share[:5] != b"SVss\x01":
            return refused
        if hashlib.sha256(share[:88]).digest() != share[88:]:
            return refused
    if len({share[5:7] + share[8:56] for share in shares}) != 1:
        return refused
    points = {share[7]: share[56:88] for share in shares}
    if len(points) < len(shares) or len(points) < shares[0][5]:
        return refused
    key = bytes(32)
    for x, value in points.items():
        weight = 1
        for other in points.keys() - {x}:
            weight = times(weight, over(other, other ^ x))
        key = bytes(k ^ times(v, weight) for k, v in zip(key, value))
    if share_check(key, shares[0][8:24]) != shares[0][24:56]:
        return refused
    return {"bytes": key.hex()}


def xts(key, unit_bytes, first_unit, data, encrypt):
    out = []
    for index in range(len(data) // unit_bytes):
        tweak = (first_unit + index).to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak))
        step = cipher.encryptor() if encrypt else cipher.decryptor()
        out.append(step.update(data[index * unit_bytes :][:unit_bytes]) + step.finalize())
    return b"".join(out)


def answer(request):
    def raw(name):
        return bytes.fromhex(request[name])

    match request["op"]:
        case "canonical":
            return {"bytes": canonical(request["pairs"]).hex()}
        case "commitment":
            return {"bytes": hkdf(raw("key"), b"", COMMITMENT, 32).hex()}
        case "superblock mac":
            key = hkdf(raw("key"), b"", SUPERBLOCK_MAC, 32)
            return {"bytes": hmac.new(key, raw("data"), hashlib.sha256).hexdigest()}
        case "map mac":
            key = hkdf(raw("key"), b"", MAP_MAC, 32)
            return {"bytes": hmac.new(key, raw("data"), hashlib.sha256).hexdigest()[:32]}
        case "wrap":
            blob = wrap(
                request["kind"],
                raw("kek"),
                raw("key_id"),
                request["key_version"],
                raw("nonce"),
                raw("secret"),
                request["pairs"],
            )
            return {"bytes": blob.hex()}
        case "unwrap":
            return unwrap(request["kind"], raw("kek"), raw("blob"), request["pairs"])
        case "xts":
            data = xts(
                raw("key"), request["unit_bytes"], request["first_unit"], raw("data"), request["encrypt"]
            )
            return {"bytes": data.hex()}
        case "split":
            coefficients = [bytes.fromhex(term) for term in request["coefficients"]]
            shares = split(raw("key"), raw("set"), request["count"], coefficients)
            return {"shares": [share.hex() for share in shares]}
        case "combine":
            return combine([bytes.fromhex(share) for share in request["shares"]])
        case "master key wrap":
            return {"bytes": hkdf(raw("key"), raw("id"), b"sealvol v1 wrap master key", 32).hex()}
        case "passphrase":
            key = Argon2id(
                salt=raw("salt"),
                length=32,
                iterations=request["iterations"],
                lanes=request["parallelism"],
                memory_cost=request["memory_kib"],
            ).derive(raw("passphrase"))
            return {"bytes": key.hex()}
    raise ValueError(request["op"])


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)

#!/usr/bin/env python3
"""Tells every secret that is behind one layer of a volume, made without any of our programs: it asks the key service itself.

    secrets_of.py META local --database keys.db --master-key-file master.key
    secrets_of.py META transit --address http://127.0.0.1:8200 --token-file TOKEN
    secrets_of.py META aws_kms --endpoint http://127.0.0.1:5000 --region eu-west-1 --credentials FILE

META is the layer's `meta` file. Prints lines "NAME: HEX", most telling name first where two secrets are equal (the first two
round keys are the key itself). What is printed: the volume key, both directions of both AES key schedules, the MAC keys, and the
state of SHA-256 after the first block of each HMAC, which is as good as its key; of `local`, where a process of ours has them,
the key-encryption key, the master key and the keys that one wrapping uses, too. The line that begins with "control" is no secret
but the wrapped key: it came from the key service as the key did. Formats: crates/volume/FORMAT.md, crates/crypto/FORMATS.md,
crates/kms/LOCAL.md.

A provider joins by a function that opens a wrapped key (and tells what else its processes hold), and a line in `main`.
"""

import argparse
import base64
import configparser
import hashlib
import hmac
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import types
import urllib.parse
import urllib.request
import uuid

KMS_TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../crates/kms/tests")
sys.path.insert(0, KMS_TESTS)
sys.dont_write_bytecode = True
import open_blob  # noqa: E402  (found by the line above)


def times(a, b):
    """Product in the field of AES, GF(2^8)."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def sbox():
    box = []
    for value in range(256):
        inverse = next((other for other in range(256) if times(value, other) == 1), 0)
        word = inverse << 8 | inverse
        mixed = inverse
        for shift in range(1, 5):
            mixed ^= word >> 8 - shift & 0xFF
        box.append(mixed ^ 0x63)
    return box


SBOX = sbox()


def encryption_round_keys(key):
    """FIPS 197, section 5.2, for 256-bit keys: 15 round keys."""
    words = [key[at : at + 4] for at in range(0, 32, 4)]
    constant = 1
    for at in range(8, 60):
        word = words[-1]
        if at % 8 == 0:
            word = bytes(SBOX[byte] for byte in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = times(constant, 2)
        elif at % 8 == 4:
            word = bytes(SBOX[byte] for byte in word)
        words.append(bytes(a ^ b for a, b in zip(words[-8], word)))
    return [b"".join(words[at : at + 4]) for at in range(0, 60, 4)]


def decryption_round_key(round_key):
    """InvMixColumns of a round key: FIPS 197, section 5.3.5."""
    columns = [round_key[at : at + 4] for at in range(0, 16, 4)]
    mixed = bytearray()
    for column in columns:
        for row in range(4):
            value = 0
            for offset, factor in enumerate((14, 11, 13, 9)):
                value ^= times(column[(row + offset) % 4], factor)
            mixed.append(value)
    return bytes(mixed)


def schedules(name, key):
    encryption = encryption_round_keys(key)
    for number, round_key in enumerate(encryption):
        yield f"{name} encryption round key {number}", round_key
    for number, round_key in enumerate(encryption[1:-1], 1):
        yield f"{name} decryption round key {number}", decryption_round_key(round_key)


def roots(exponent):
    """32 bits of the fractional parts of the roots of the first primes: the constants of FIPS 180-4."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))][:64]
    for prime in primes:
        low, high = 0, prime << 40
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle**exponent <= prime << 32 * exponent else (low, middle)
        yield low & 0xFFFFFFFF


CUBE_ROOTS = list(roots(3))
SQUARE_ROOTS = list(roots(2))[:8]


def sha256_state(block):
    """The chaining value after one block of 64 bytes, as the eight words of FIPS 180-4, big-endian."""
    mask = 0xFFFFFFFF

    def turn(word, count):
        return (word >> count | word << 32 - count) & mask

    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        s0 = turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((w[t - 16] + s0 + w[t - 7] + s1) & mask)
    a, b, c, d, e, f, g, h = SQUARE_ROOTS
    for t in range(64):
        s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)
        t1 = (h + s1 + (e & f ^ ~e & g) + CUBE_ROOTS[t] + w[t]) & mask
        t2 = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + (a & b ^ a & c ^ b & c)) & mask
        a, b, c, d, e, f, g, h = (t1 + t2) & mask, a, b, c, (d + t1) & mask, e, f, g
    return struct.pack(">8I", *((x + y) & mask for x, y in zip((a, b, c, d, e, f, g, h), SQUARE_ROOTS)))


def hmac_key(name, key):
    yield name, key
    padded = key.ljust(64, b"\0")
    for side, pad in (("inner", 0x36), ("outer", 0x5C)):
        yield f"{name}, {side} HMAC state", sha256_state(bytes(byte ^ pad for byte in padded))


def derived(name, key, salt, label, length):
    """What HKDF makes of a key, and what it makes it of."""
    pseudorandom = hmac.digest(salt or bytes(32), key, "sha256")
    output, block = b"", b""
    while len(output) < length:
        block = hmac.digest(pseudorandom, block + label + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return list(hmac_key(f"{name} HKDF key", pseudorandom)), output[:length]


def of_wrapping(name, kek, blob, label):
    """The secrets of one AES-256-GCM wrapping: key, schedule, hash subkey."""
    secrets, key_and_iv = derived(name, kek, blob[25:57], label, 44)
    key = key_and_iv[:32]
    yield from secrets
    yield f"{name} AES-GCM key", key
    yield from schedules(f"{name} AES-GCM key", key)


def of_volume_key(key):
    yield "volume key K1", key[:32]
    yield "volume key K2", key[32:]
    yield from schedules("K1", key[:32])
    yield from schedules("K2", key[32:])
    for title in ("superblock mac", "map mac"):
        secrets, mac_key = derived("volume key", key, b"", f"sealvol v1 {title}".encode(), 32)
        yield from secrets
        yield from hmac_key(f"{title} key", mac_key)


def read_meta(path):
    """The wrapped key that opens a layer, the id of what wrapped it, and its encryption context (FORMAT.md, sections 3.1 and 5)."""
    with open(path, "rb") as file:
        slot = file.read(262144)
    volume, data_key = slot[16:32], slot[104:120]
    sector_size, entries = struct.unpack_from("<II", slot, 72)
    (count,) = struct.unpack_from("<I", slot, 136)
    at = 256 + 8 * entries
    for _ in range(count):
        record, at = slot[at : at + 16], at + 20
        fields = []
        for _ in range(3):  # provider, key id, wrapped key
            (length,) = struct.unpack_from("<H", slot, at)
            fields.append(slot[at + 2 : at + 2 + length])
            at += 2 + length
        if record == data_key:
            break
    else:
        raise SystemExit(f"{path} has no wrapped copy of its own data key")
    params = hashlib.sha256(b"sealvol params v1\0" + volume + struct.pack("<I", sector_size)).hexdigest()
    context = {
        "sealvol:volume": str(uuid.UUID(bytes=volume)),
        "sealvol:data-key": str(uuid.UUID(bytes=data_key)),
        "sealvol:params": params,
    }
    return types.SimpleNamespace(key=fields[1].decode(), blob=fields[2], context=context)


def local(arguments, wrapped):
    """The volume key from the embedded key service's database, then all that its processes hold for it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(wrapped.blob)
        file.flush()
        command = [sys.executable, os.path.join(KMS_TESTS, "open_blob.py")]
        command += ["--database", arguments.database, "--master-key-file", arguments.master_key_file]
        command += ["--context", json.dumps(wrapped.context), file.name]
        yield from of_volume_key(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    database = open_blob.open_database(arguments.database)
    given = types.SimpleNamespace(master_key_file=arguments.master_key_file)
    db_id, master = open_blob.master_key(database, given)
    key_id, version = open_blob.header(open_blob.VOLUME_KEY, wrapped.blob)
    kek = open_blob.key_material(database, db_id, master, key_id, version)
    yield "key-encryption key", kek
    yield from schedules("key-encryption key", kek)
    yield "master key", master
    yield from schedules("master key", master)
    (check,) = database.execute("SELECT master_check FROM meta").fetchone()
    (sealed,) = database.execute(
        "SELECT sealed FROM versions WHERE key_id = ? AND version = ?", (key_id, version)
    ).fetchone()
    yield from of_wrapping("volume key's wrapping", kek, wrapped.blob, open_blob.VOLUME_KEY[1])
    yield from of_wrapping("key material's sealing", master, sealed, open_blob.KEY_MATERIAL[1])
    yield from of_wrapping("master key check's sealing", master, check, open_blob.KEY_MATERIAL[1])


def transit(arguments, wrapped):
    """The volume key as an OpenBao or Vault server opens it; its own keys never leave it."""
    with open(arguments.token_file) as file:
        token = file.read().strip()
    context = base64.b64encode(open_blob.canonical(wrapped.context)).decode()
    body = json.dumps({"ciphertext": wrapped.blob.decode(), "context": context}).encode()
    url = f"{arguments.address}/v1/transit/decrypt/{wrapped.key}"
    question = urllib.request.Request(url, body, {"X-Vault-Token": token})
    with urllib.request.urlopen(question) as answer:
        yield from of_volume_key(base64.b64decode(json.load(answer)["data"]["plaintext"]))


def aws_kms(arguments, wrapped):
    """The volume key as AWS KMS opens it; its own keys never leave it, so there is nothing else to look for."""
    file = configparser.ConfigParser(interpolation=None)
    with open(arguments.credentials) as lines:
        file.read_file(lines)
    profile = file["default"]
    blob = base64.b64encode(wrapped.blob).decode()
    body = json.dumps({"KeyId": wrapped.key, "CiphertextBlob": blob, "EncryptionContext": wrapped.context}).encode()
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": urllib.parse.urlsplit(arguments.endpoint).netloc,
        "x-amz-target": "TrentService.Decrypt",
    }
    sign(headers, body, arguments.region, profile["aws_access_key_id"], profile["aws_secret_access_key"])
    with urllib.request.urlopen(urllib.request.Request(arguments.endpoint + "/", body, headers)) as answer:
        yield from of_volume_key(base64.b64decode(json.load(answer)["Plaintext"]))


def sign(headers, body, region, identity, secret):
    """Adds a signature of version 4 to a POST to /, as AWS's reference of IAM describes it."""
    headers["x-amz-date"] = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = sorted(headers)
    lines = ["POST", "/", "", *(f"{name}:{headers[name]}" for name in names), "", ";".join(names)]
    request = "\n".join([*lines, hashlib.sha256(body).hexdigest()])
    scope = [headers["x-amz-date"][:8], region, "kms", "aws4_request"]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], "/".join(scope), digest])
    key = b"AWS4" + secret.encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = "/".join([identity, *scope])
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )


def self_test():
    """FIPS 197, appendix A.3, and SHA-256 by another implementation: a wrong secret would never be found."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    if encryption_round_keys(key)[14].hex() != "fe4890d1e6188d0b046df344706c631e":
        raise SystemExit("the AES key schedule is wrong")
    # A message of 55 bytes and its padding are one block.
    if sha256_state(key + key[:23] + b"\x80" + struct.pack(">Q", 440)) != hashlib.sha256(key + key[:23]).digest():
        raise SystemExit("the SHA-256 state is wrong")


def main():
    parser = argparse.ArgumentParser(description="Tells every secret behind a layer of a volume.")
    parser.add_argument("meta")
    providers = parser.add_subparsers(dest="provider", required=True)
    for provider, options in (
        (local, ("--database", "--master-key-file")),
        (transit, ("--address", "--token-file")),
        (aws_kms, ("--endpoint", "--region", "--credentials")),
    ):
        of_provider = providers.add_parser(provider.__name__)
        of_provider.set_defaults(secrets=provider)
        for option in options:
            of_provider.add_argument(option, required=True)
    arguments = parser.parse_args()
    self_test()
    wrapped = read_meta(arguments.meta)
    told = set()
    for name, secret in arguments.secrets(arguments, wrapped):
        if secret not in told:
            told.add(secret)
            print(f"{name}: {secret.hex()}")
    print(f"control, the wrapped key: {wrapped.blob.hex()}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A token without sealvol, by its PKCS #11 module and ctypes: what an operator can do to a key, and the way to a volume key.

    operate_token.py --module M.so --token LABEL --pin-file F allow KEY encrypt,decrypt yes|no
    operate_token.py ... destroy KEY
    operate_token.py ... exposed KEY                        makes KEY as one that can be taken out
    operate_token.py ... twin KEY                           makes another KEY of the same label
    operate_token.py ... open KEY --context JSON BLOB > volume.key

BLOB is a file with the wrapped key as the volume's metadata holds it. The format is described in PKCS11.md.
"""

import argparse
import ctypes
import hashlib
import json
import os
import struct
import sys
from ctypes import POINTER, Structure, byref, c_char, c_ulong, c_void_p, cast, create_string_buffer, sizeof

CKA = {"class": 0, "token": 1, "private": 2, "label": 3, "value": 0x11, "key_type": 0x100, "id": 0x102, "sensitive": 0x103,
       "encrypt": 0x104, "decrypt": 0x105, "wrap": 0x106, "unwrap": 0x107, "value_len": 0x161, "extractable": 0x162}
CKO_SECRET_KEY, CKK_GENERIC_SECRET, CKK_AES = 4, 0x10, 0x1F
CKM_AES_KEY_GEN, CKM_AES_GCM, CKM_AES_KEY_WRAP_PAD = 0x1080, 0x1087, 0x210A


class Attribute(Structure):
    _fields_ = [("type", c_ulong), ("value", c_void_p), ("length", c_ulong)]


class Mechanism(Structure):
    _fields_ = [("mechanism", c_ulong), ("parameter", c_void_p), ("length", c_ulong)]


class GcmParams(Structure):
    _fields_ = [("iv", c_void_p), ("iv_length", c_ulong), ("iv_bits", c_ulong), ("aad", c_void_p), ("aad_length", c_ulong),
                ("tag_bits", c_ulong)]


def canonical(context):
    """The encryption context as it is bound: count, then length-prefixed pairs by key."""
    pairs = sorted((k.encode(), v.encode()) for k, v in context.items())
    parts = [struct.pack(">I", len(pairs))]
    for text in (text for pair in pairs for text in pair):
        parts += [struct.pack(">I", len(text)), text]
    return b"".join(parts)


def template(**attributes):
    kept, rows = [], []
    for name, value in attributes.items():
        if isinstance(value, bool):
            value = bytes([value])
        elif isinstance(value, int):
            value = struct.pack("@L", value)
        kept.append(create_string_buffer(value, max(len(value), 1)))
        rows.append(Attribute(CKA[name], cast(kept[-1], c_void_p), len(value)))
    array = (Attribute * len(rows))(*rows)
    array.kept = kept
    return array


class Token:
    def __init__(self, module, label, pin):
        self.module = ctypes.CDLL(module)
        self.call("C_Initialize", None)
        count = c_ulong()
        self.call("C_GetSlotList", c_char(1), None, byref(count))
        slots = (c_ulong * count.value)()
        self.call("C_GetSlotList", c_char(1), slots, byref(count))
        for slot in slots:
            info = create_string_buffer(512)
            self.call("C_GetTokenInfo", c_ulong(slot), info)
            if info.raw[:32].rstrip(b" ") == label.encode():
                break
        else:
            sys.exit("no such token")
        self.session = c_ulong()
        self.call("C_OpenSession", c_ulong(slot), c_ulong(6), None, None, byref(self.session))
        self.call("C_Login", self.session, c_ulong(1), pin, c_ulong(len(pin)))

    def call(self, name, *arguments):
        result = getattr(self.module, name)(*arguments)
        if result:
            sys.exit(f"{name}: 0x{result & 0xFFFFFFFF:x}")

    def find(self, label):
        rows = template(**{"class": CKO_SECRET_KEY, "label": label.encode(), "token": True})
        found, count = c_ulong(), c_ulong()
        self.call("C_FindObjectsInit", self.session, rows, c_ulong(len(rows)))
        self.call("C_FindObjects", self.session, byref(found), c_ulong(1), byref(count))
        self.call("C_FindObjectsFinal", self.session)
        if not count.value:
            sys.exit("no such key")
        return found

    def allow(self, key, uses, yes):
        rows = template(**{use: yes for use in uses})
        self.call("C_SetAttributeValue", self.session, self.find(key), rows, c_ulong(len(rows)))

    def destroy(self, key):
        self.call("C_DestroyObject", self.session, self.find(key))

    def make(self, label, sensitive):
        rows = template(**{"token": True, "private": True, "sensitive": sensitive, "extractable": not sensitive,
                           "label": label.encode(), "id": os.urandom(8), "value_len": 32, "encrypt": True, "decrypt": True})
        mechanism, made = Mechanism(CKM_AES_KEY_GEN, None, 0), c_ulong()
        self.call("C_GenerateKey", self.session, byref(mechanism), rows, c_ulong(len(rows)), byref(made))

    def open(self, key, blob, context):
        magic, version, number, nonce = struct.unpack(">4sBB12s", blob[:18])
        if (magic, version) != (b"SVp1", 1):
            sys.exit("not a wrapped key of a token")
        handle, context = self.find(key), canonical(context)
        if number == 1:
            return self.decrypt(handle, blob[:6] + context, nonce, blob[18:])
        payload = self.unwrap(handle, blob[18:])
        if hashlib.sha256(b"sealvol pkcs11 v1 binding" + blob[:18] + context).digest() != payload[64:]:
            sys.exit("bound to another context")
        return payload[:64]

    def decrypt(self, handle, aad, nonce, sealed):
        iv, data = create_string_buffer(nonce, 12), create_string_buffer(aad, len(aad))
        params = GcmParams(cast(iv, c_void_p), 12, 96, cast(data, c_void_p), len(aad), 128)
        mechanism = Mechanism(CKM_AES_GCM, cast(byref(params), c_void_p), sizeof(params))
        self.call("C_DecryptInit", self.session, byref(mechanism), handle)
        out, length = create_string_buffer(128), c_ulong(128)
        self.call("C_Decrypt", self.session, sealed, c_ulong(len(sealed)), out, byref(length))
        return out.raw[:length.value]

    def unwrap(self, handle, sealed):
        rows = template(**{"class": CKO_SECRET_KEY, "key_type": CKK_GENERIC_SECRET, "token": False, "sensitive": False,
                           "extractable": True})
        mechanism, made = Mechanism(CKM_AES_KEY_WRAP_PAD, None, 0), c_ulong()
        self.call("C_UnwrapKey", self.session, byref(mechanism), handle, sealed, c_ulong(len(sealed)), rows,
                  c_ulong(len(rows)), byref(made))
        out = create_string_buffer(128)
        value = (Attribute * 1)(Attribute(CKA["value"], cast(out, c_void_p), 128))
        self.call("C_GetAttributeValue", self.session, made, value, c_ulong(1))
        return out.raw[:value[0].length]


def main():
    parser = argparse.ArgumentParser()
    for name in ("--module", "--token", "--pin-file"):
        parser.add_argument(name, required=True)
    parser.add_argument("command", choices=["allow", "destroy", "exposed", "twin", "open"])
    parser.add_argument("key")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--context", default="{}")
    arguments = parser.parse_args()
    with open(arguments.pin_file, "rb") as file:
        token = Token(arguments.module, arguments.token, file.read().strip())
    if arguments.command == "allow":
        token.allow(arguments.key, arguments.rest[0].split(","), arguments.rest[1] == "yes")
    elif arguments.command == "destroy":
        token.destroy(arguments.key)
    elif arguments.command in ("exposed", "twin"):
        token.make(arguments.key, arguments.command == "twin")
    else:
        with open(arguments.rest[0], "rb") as file:
            key = token.open(arguments.key, file.read(), json.loads(arguments.context))
        sys.stdout.buffer.write(key)


main()

#!/usr/bin/env python3
"""Encrypts key material for an import as its owner would, by an implementation that is not ours.

    encrypt_material.py --public-key PEM --algorithm RSAES_OAEP_SHA_256|RSA_AES_KEY_WRAP_SHA_256 HEX > encrypted
"""

import argparse
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding


def main():
    arguments = argparse.ArgumentParser(description="Encrypts key material for an import.")
    arguments.add_argument("--public-key", required=True)
    arguments.add_argument("--algorithm", required=True)
    arguments.add_argument("material", type=bytes.fromhex)
    arguments = arguments.parse_args()
    text = Path(arguments.public_key).read_bytes()
    load = serialization.load_pem_public_key if text.startswith(b"-----") else serialization.load_der_public_key
    public_key = load(text)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    if arguments.algorithm == "RSAES_OAEP_SHA_256":
        encrypted = public_key.encrypt(arguments.material, oaep)
    else:
        key = os.urandom(32)
        wrapped = keywrap.aes_key_wrap_with_padding(key, arguments.material)
        encrypted = public_key.encrypt(key, oaep) + wrapped
    sys.stdout.buffer.write(encrypted)


if __name__ == "__main__":
    main()

"""How many blocks of a file are known content under a known key: XTS by another implementation than the server's.

    blocks_under_key.py KEY KNOWN FILE...

KEY holds K1 || K2, KNOWN what a volume reads with 4096-byte sectors. Each FILE is taken for the ciphertext of that volume, from
its start on. Prints the number of blocks, over all files, that decrypt to what KNOWN has in their place; zeros don't count.
"""

import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 4096


def main():
    key, known = (open(path, "rb").read() for path in sys.argv[1:3])
    found = 0
    for path in sys.argv[3:]:
        with open(path, "rb") as file:
            for number in range(len(known) // BLOCK):
                sealed = file.read(BLOCK)
                plain = known[number * BLOCK : (number + 1) * BLOCK]
                if len(sealed) < BLOCK or not any(sealed) or not any(plain):
                    continue
                tweak = number.to_bytes(16, "little")
                opened = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor().update(sealed)
                found += opened == plain
    print(found)


main()

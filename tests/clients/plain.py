"""The whole of a layer's `data` is plain AES-256-XTS: decrypted sector by sector it is what the volume read.

    plain.py KEY-FILE SECTOR-SIZE DATA VOLUME-COPY
"""

import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from check import same

key_file, sector, data, volume = sys.argv[1:]
sector = int(sector)
with open(key_file, "rb") as file:
    key = file.read()
same(len(key), 64, "the length of K1 || K2")
algorithm = algorithms.AES(key)
number = 0
with open(data, "rb") as cipher_file, open(volume, "rb") as plain_file:
    while plain := plain_file.read(sector):
        cipher = Cipher(algorithm, modes.XTS(number.to_bytes(16, "little"))).decryptor()
        if cipher.update(cipher_file.read(sector)) + cipher.finalize() != plain:
            raise AssertionError(f"sector {number} differs")
        number += 1
    same(cipher_file.read(1), b"", "what follows the volume's last sector")
print(f"{number} sectors of {sector} bytes are what the volume reads")

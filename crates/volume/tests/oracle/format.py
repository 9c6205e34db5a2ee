"""Second implementation of crates/volume/FORMAT.md, on Python `cryptography` (OpenSSL).

Written from FORMAT.md and crates/crypto/FORMATS.md alone.

    format.py read KEY LAYER     checks every rule that the documents state of the layer in the directory LAYER, and
                                 prints its map and the SHA-256 of its plaintext
    format.py golden KEY OUT     writes the golden layer, always the same bytes

KEY is K1 || K2 in hexadecimal.
"""

import hashlib
import hmac
import os
import struct
import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

BLOCK = 4096
PAGE_BLOCKS = 16384
PAGE = PAGE_BLOCKS * BLOCK
DIRECTORY_PAGES = 256
DIRECTORY = DIRECTORY_PAGES * PAGE
SLOTS = (0, 262144)
DIRECTORY_AREA = 1048576
MAP_AREA = 67108864
SEALED, CLEAN, BOUND, EPHEMERAL = 1, 2, 4, 8
STATES = ("absent", "zero", "data")
ABSENT, ZERO, DATA, PAGED = 0, 1, 2, 3


def crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = crc_table()


def crc32c(data):
    """CRC-32C (Castagnoli), RFC 3720 appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


class Keys:
    def __init__(self, volume_key):
        assert len(volume_key) == 64
        self.volume_key = volume_key
        self.superblock = self.derive(b"sealvol v1 superblock mac")
        self.map = self.derive(b"sealvol v1 map mac")

    def derive(self, label):
        return HKDF(SHA256(), 32, b"", label).derive(self.volume_key)

    def superblock_mac(self, data):
        return hmac.digest(self.superblock, data, "sha256")

    def map_mac(self, data):
        return hmac.digest(self.map, data, "sha256")[:16]

    def sectors(self, data, offset, sector, encrypt):
        out = []
        for at in range(0, len(data), sector):
            tweak = ((offset + at) // sector).to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(self.volume_key), modes.XTS(tweak))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            out.append(context.update(data[at : at + sector]) + context.finalize())
        return b"".join(out)


def ceil_div(a, b):
    return -(-a // b)


def check(condition, what):
    if not condition:
        sys.exit(f"violates FORMAT.md: {what}")


# --- reading


class Superblock:
    def __init__(self, slot, keys):
        check(slot[:8] == b"sealvol\0", "magic")
        self.version, self.flags = struct.unpack_from("<II", slot, 8)
        check(self.version == 1, "version")
        self.size, self.sector, entries = struct.unpack_from("<QII", slot, 64)
        self.generation, self.content, self.base = struct.unpack_from("<QQQ", slot, 80)
        (self.exact_from, self.key_generation) = struct.unpack_from("<QQ", slot, 120)
        records, used, checksum = struct.unpack_from("<III", slot, 136)
        check(len(slot[:used]) == used, "used length")
        check(crc32c(slot[:144] + bytes(4) + slot[148:used]) == checksum, "checksum of the slot")
        check(self.size % BLOCK == 0 and BLOCK <= self.size <= 1 << 46, "size")
        check(self.sector in (512, 4096), "sector size")
        check(entries == ceil_div(self.size, DIRECTORY), "number of root table entries")
        check(slot[148:160] == bytes(12) and slot[192:256] == bytes(64), "reserved fields are zeros")
        self.layer = slot[32:48]
        self.root = struct.unpack_from(f"<{entries}Q", slot, 256)
        self.bound = bool(self.flags & BOUND)
        self.clean = bool(self.flags & CLEAN)
        mac = keys.superblock_mac(slot[:128] + slot[256 : 256 + 8 * entries])
        check(slot[160:192] == (mac if self.bound else bytes(32)), "MAC of the superblock")
        at = 256 + 8 * entries
        self.records = []
        for _ in range(records):
            fields = [slot[at : at + 16], struct.unpack_from("<I", slot, at + 16)[0]]
            at += 20
            for limit in (64, 2048, 6144):
                (length,) = struct.unpack_from("<H", slot, at)
                check(length <= limit, "length in a key record")
                fields.append(slot[at + 2 : at + 2 + length])
                at += 2 + length
            self.records.append(fields)
        check(at == used, "the key records end where the slot does")
        if self.flags & EPHEMERAL:
            check(not self.records, "an ephemeral layer has no key records")
        else:
            check(any(record[0] == slot[104:120] for record in self.records), "a record for the layer's data key")
        self.bytes = slot[:used]


class Layer:
    def __init__(self, path, keys):
        self.keys = keys
        self.meta = open(os.path.join(path, "meta"), "rb")
        self.data = open(os.path.join(path, "data"), "rb")
        slots = [Superblock(self.at(offset, 262144), keys) for offset in SLOTS]
        check(slots[0].bytes == slots[1].bytes, "at rest both slots are the same")
        self.superblock = slots[0]
        size = self.superblock.size
        check(os.fstat(self.data.fileno()).st_size == size, "length of data")
        check(os.fstat(self.meta.fileno()).st_size == MAP_AREA + 8192 * ceil_div(size, PAGE), "length of meta")
        self.exact_from = self.superblock.exact_from if self.superblock.clean else 1 << 64
        self.sequences = set()

    def at(self, offset, length):
        self.meta.seek(offset)
        return self.meta.read(length)

    def page(self, magic, index, offset, entry):
        """The payload of the place that counts."""
        best = None
        for place in (0, 4096):
            page = self.at(offset + place, 4096)
            checksum, _, mac = struct.unpack_from("<II16s", page, 40)
            bare = page[:40] + bytes(4) + page[44:48] + bytes(16) + page[64:]
            if page[:4] != magic or crc32c(bare) != checksum:
                continue
            check(mac == self.keys.map_mac(bare), f"MAC of {magic} {index}")
            check(page[4:8] == bytes(4) and page[44:48] == bytes(4), "reserved fields of a page")
            check(page[8:24] == self.superblock.layer, "layer of a page")
            found, sequence = struct.unpack_from("<QQ", page, 24)
            check(found == index, "index of a page")
            check(sequence not in self.sequences, "a sequence never comes twice")
            check(sequence < self.superblock.base + (1 << 36), "a sequence of an opening that was")
            self.sequences.add(sequence)
            if best is None or sequence > best[0]:
                best = (sequence, page[64:])
        check(best is not None, f"an intact place of {magic} {index}")
        if entry >= self.exact_from:
            check(best[0] == entry, f"exact sequence of {magic} {index}")
        else:
            check(entry <= best[0] < self.exact_from, f"floor of the sequence of {magic} {index}")
        return best[1]

    def states(self, page, payload):
        states = []
        for byte in payload[:3277]:
            check(byte <= 242, "a byte of five states")
            for _ in range(5):
                states.append(byte % 3)
                byte //= 3
        check(not any(states[PAGE_BLOCKS:]), "entries past the last one are 0")
        check(not any(payload[3277:]), "the rest of a map page is reserved")
        states = states[:PAGE_BLOCKS]
        past = max(0, (page + 1) * PAGE - self.superblock.size) // BLOCK
        check(not any(states[PAGE_BLOCKS - past :]) or past == 0, "blocks past the end are absent")
        return states

    def runs(self):
        """(first block, number of blocks, state), not joined."""
        blocks = self.superblock.size // BLOCK
        for directory, entry in enumerate(self.superblock.root):
            if entry == 0:
                first = directory * DIRECTORY_PAGES * PAGE_BLOCKS
                yield first, min(blocks - first, DIRECTORY_PAGES * PAGE_BLOCKS), ABSENT
                continue
            payload = self.page(b"SVDP", directory, DIRECTORY_AREA + 8192 * directory, entry)
            check(not any(payload[2048:]), "the rest of a directory page is reserved")
            for at, bits in enumerate(struct.unpack_from("<256Q", payload)):
                page = directory * DIRECTORY_PAGES + at
                first = page * PAGE_BLOCKS
                if first >= blocks:
                    check(bits == 0, "a directory entry past the end")
                    continue
                state, sequence = bits >> 62, bits & (1 << 62) - 1
                if state != PAGED:
                    check(sequence == 0, "sequence of a page that is not paged")
                    yield first, min(blocks - first, PAGE_BLOCKS), state
                    continue
                payload = self.page(b"SVMP", page, MAP_AREA + 8192 * page, sequence)
                for block, state in enumerate(self.states(page, payload)):
                    if first + block < blocks:
                        yield first + block, 1, state

    def joined(self):
        last = None
        for first, count, state in self.runs():
            if last and last[2] == state:
                last[1] += count
                continue
            if last:
                yield last
            last = [first, count, state]
        yield last

    def describe(self):
        superblock = self.superblock
        print(f"size {superblock.size} sector {superblock.sector} clean {int(superblock.clean)}")
        plain = hashlib.sha256()
        for first, count, state in self.joined():
            print(first * BLOCK, count * BLOCK, STATES[state])
            if state != DATA:
                continue
            for block in range(first, first + count):
                self.data.seek(block * BLOCK)
                cipher = self.data.read(BLOCK)
                plain.update(self.keys.sectors(cipher, block * BLOCK, superblock.sector, False))
        print("plaintext", plain.hexdigest())


# --- writing


def sealed_page(keys, magic, layer, index, sequence, payload):
    page = struct.pack("<4sI16sQQII16s", magic, 0, layer, index, sequence, 0, 0, bytes(16))
    page += payload + bytes(4096 - 64 - len(payload))
    return page[:40] + struct.pack("<II16s", crc32c(page), 0, keys.map_mac(page)) + page[64:]


def packed(states):
    states = [states.get(block, ABSENT) for block in range(PAGE_BLOCKS + 1)]
    weights = (1, 3, 9, 27, 81)
    return bytes(sum(w * s for w, s in zip(weights, states[at : at + 5])) for at in range(0, PAGE_BLOCKS, 5))


def golden(keys, out):
    """A clean layer of 17 GiB and three blocks: absent, zero and data, paged and uniform, and one torn place."""
    size, sector, layer = (17 << 30) + 3 * BLOCK, 4096, bytes([0x22] * 16)
    base, exact = 5 << 36, 4 << 36
    files = {"data": {}, "meta": {}}

    def write_blocks(blocks):
        for block in blocks:
            plain = hashlib.shake_128(b"golden block %d" % block).digest(BLOCK)
            files["data"][block * BLOCK] = keys.sectors(plain, block * BLOCK, sector, True)

    last = size // BLOCK - 1
    first_page = {0: DATA, 1: ZERO, 2: DATA, 16382: ZERO, 16383: DATA}
    last_page = {last % PAGE_BLOCKS: DATA, last % PAGE_BLOCKS - 1: ZERO}
    write_blocks([0, 2, 16383, last])
    meta = files["meta"]
    # Page 0 was written twice: the newer place counts. Its entry is a floor from before a crash.
    meta[MAP_AREA] = sealed_page(keys, b"SVMP", layer, 0, exact - 7, packed({0: DATA}))
    meta[MAP_AREA + 4096] = sealed_page(keys, b"SVMP", layer, 0, exact - 5, packed(first_page))
    # The last page's other place is torn.
    at = MAP_AREA + 8192 * (last // PAGE_BLOCKS)
    meta[at] = sealed_page(keys, b"SVMP", layer, last // PAGE_BLOCKS, base + 1, packed(last_page))
    meta[at + 4096] = sealed_page(keys, b"SVMP", layer, last // PAGE_BLOCKS, base, packed({}))[:2048]
    # Directory 0: a paged page, a page of zeros, one of data whose ciphertext is all zeros.
    entries = {0: PAGED << 62 | exact - 7, 3: ZERO << 62, 4: DATA << 62}
    payload = struct.pack("<256Q", *(entries.get(at, 0) for at in range(256)))
    meta[DIRECTORY_AREA] = sealed_page(keys, b"SVDP", layer, 0, base + 2, payload)
    entries = {last // PAGE_BLOCKS % 256: PAGED << 62 | base + 1}
    payload = struct.pack("<256Q", *(entries.get(at, 0) for at in range(256)))
    meta[DIRECTORY_AREA + 8192 + 4096] = sealed_page(keys, b"SVDP", layer, 1, base + 3, payload)
    slot = golden_slot(keys, size, sector, layer, base, exact, (base + 2, base + 3))
    for offset in SLOTS:
        meta[offset] = slot
    with open(out, "wb") as image:
        for number, name in enumerate(("data", "meta")):
            for offset, content in sorted(files[name].items()):
                content = content.rstrip(b"\0")
                image.write(struct.pack("<BQI", number, offset, len(content)) + content)


def golden_slot(keys, size, sector, layer, base, exact, root):
    data_key = bytes([0x33] * 16)
    head = b"sealvol\0" + struct.pack("<II", 1, CLEAN | BOUND)
    head += bytes([0x11] * 16) + layer + bytes(16)
    head += struct.pack("<QIIQQQ", size, sector, len(root), 9, 0, base) + data_key + struct.pack("<Q", exact)
    table = struct.pack(f"<{len(root)}Q", *root)
    record = data_key + struct.pack("<I", 1)
    for field in (b"local", b"default", bytes([0x44] * 100)):
        record += struct.pack("<H", len(field)) + field
    used = 256 + len(table) + len(record)
    mac = keys.superblock_mac(head + table)
    start = head + struct.pack("<QII", 1, 1, used)
    rest = bytes(12) + mac + bytes(64) + table + record
    return start + struct.pack("<I", crc32c(start + bytes(4) + rest)) + rest


def ephemeral_slot():
    """A slot of a new ephemeral layer of 17 GiB: not bound, and without key records."""
    head = b"sealvol\0" + struct.pack("<II", 1, CLEAN | EPHEMERAL)
    head += bytes([0x11] * 16) + bytes([0x22] * 16) + bytes(16)
    head += struct.pack("<QIIQQQ", 17 << 30, 4096, 2, 1, 0, 0) + bytes([0x33] * 16) + bytes(8)
    start = head + struct.pack("<QII", 1, 0, 256 + 2 * 8)
    rest = bytes(12 + 32 + 64) + bytes(2 * 8)
    return start + struct.pack("<I", crc32c(start + bytes(4) + rest)) + rest


def main():
    command, key, path = sys.argv[1:]
    keys = Keys(bytes.fromhex(key))
    if command == "read":
        Layer(path, keys).describe()
    elif command == "ephemeral":
        with open(path, "wb") as out:
            out.write(ephemeral_slot())
    elif command == "golden":
        golden(keys, path)
    else:
        sys.exit(f"no such command: {command}")


main()

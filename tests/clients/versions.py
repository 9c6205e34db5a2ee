"""Writes versions of blocks over several connections until the server is gone, and judges later what it kept.

    versions.py write URI RECORD SEED     prints "flushed N" after each FLUSH; ends when the connections break
    versions.py check URI RECORD

Each block holds its own number and version and nothing else. The record says, per block: the newest version that a completed
FLUSH (or FUA) covers, the newest that was acknowledged, and the newest that was sent. What must hold afterwards:

- a block holds exactly one of the versions written to it, whole, or zeros if none was flushed: never bytes that nobody wrote;
- it is not older than the flushed version;
- it is not older than the acknowledged one either: the death of the server is not the death of the machine's page cache.
"""

import json
import random
import sys
import threading
import nbd
from check import BLOCK, connect

WRITERS, SPAN = 6, 16 * 1024 * 1024
BLOCKS = SPAN // BLOCK


def content(block, version):
    return (f"block {block:8} version {version:12} ".encode() * (BLOCK // 32 + 1))[:BLOCK] if version else bytes(BLOCK)


class Record:
    def __init__(self):
        self.lock = threading.Lock()
        self.flushed, self.acknowledged, self.sent = ([0] * BLOCKS for _ in range(3))
        self.busy = set()


def writer(record, handle, seed):
    choice = random.Random(seed)
    try:
        while True:
            count = choice.choice((1, 1, 1, 2, 16))
            first = choice.randrange(BLOCKS - count)
            blocks = range(first, first + count)
            with record.lock:
                if record.busy & set(blocks):
                    continue
                record.busy |= set(blocks)
                for block in blocks:
                    record.sent[block] += 1
                data = b"".join(content(block, record.sent[block]) for block in blocks)
            fua = choice.random() < 0.05
            handle.pwrite(data, first * BLOCK, flags=nbd.CMD_FLAG_FUA if fua else 0)
            with record.lock:
                for block in blocks:
                    record.acknowledged[block] = record.sent[block]
                    if fua:
                        record.flushed[block] = record.sent[block]
                record.busy -= set(blocks)
    except nbd.Error:
        pass  # the blocks in flight stay sent and not acknowledged


def write(uri, path, seed):
    record, flusher = Record(), connect(uri)
    threads = [threading.Thread(target=writer, args=(record, connect(uri), f"{seed}/{n}")) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    flushes = 0
    try:
        while True:
            with record.lock:
                covered = list(record.acknowledged)
            flusher.flush()
            with record.lock:
                record.flushed = [max(pair) for pair in zip(record.flushed, covered)]
            flushes += 1
            print("flushed", flushes, flush=True)
    except nbd.Error:
        pass
    for thread in threads:
        thread.join()
    with open(path, "w") as file:
        json.dump({"flushed": record.flushed, "acknowledged": record.acknowledged, "sent": record.sent}, file)
    print(sum(map(bool, record.acknowledged)), "blocks acknowledged,", sum(map(bool, record.flushed)), "flushed")


def check(uri, path):
    with open(path) as file:
        record = json.load(file)
    handle = connect(uri)
    data = handle.pread(SPAN, 0)
    lost = {"flushed": [], "acknowledged": []}
    for block in range(BLOCKS):
        got = data[block * BLOCK:(block + 1) * BLOCK]
        version = int(got[23:35]) if got.startswith(b"block ") else 0
        assert got == content(block, version), f"block {block} holds bytes that nobody wrote: {got[:64]!r}"
        assert version <= record["sent"][block], f"block {block} holds version {version} of {record['sent'][block]}"
        for kind, versions in lost.items():
            if version < record[kind][block]:
                versions.append((block, version, record[kind][block]))
    for kind, versions in lost.items():
        assert not versions, f"{len(versions)} blocks lost {kind} writes, (block, found, expected): {versions[:5]}"
    handle.shutdown()


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])

"""A disk whose power can be cut: an NBD server that keeps in memory what no FLUSH covers.

    forgetful_disk.py IMAGE NOW SOCKET SEED

Serves the file IMAGE to one client; NOW is a file of its own, what the disk holds while it has power. When the client is gone without
NBD_CMD_DISC, the power was cut: of what was written since the last FLUSH a part reaches IMAGE, chosen by SEED in sectors of 512
bytes, each of the versions of a sector by itself; sometimes all of it, sometimes nothing. What was written with FUA is there. It
prints what became of it, and ends.

On SIGUSR1 it cuts the power itself, by SIGKILL to its client, in the middle of the writes that come next. From SIGUSR2 on it lies: it
answers FLUSH, and writes with FUA, and forgets all the same.
"""

import os
import random
import signal
import socket
import struct
import subprocess
import sys

SECTOR = 512
READ, WRITE, DISC, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1
# has flags, FLUSH, FUA, TRIM, WRITE_ZEROES
EXPORT_FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6


class Gone(Exception):
    pass


class Cut(Gone):
    pass


def take(peer, length):
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        try:
            count = peer.recv_into(view)
        except OSError:
            raise Gone from None
        if not count:
            raise Gone
        view = view[count:]
    return bytes(buffer)


def negotiate(peer, size):
    peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    take(peer, 4)
    while True:
        magic, option, length = struct.unpack(">8sII", take(peer, 16))
        take(peer, length)

        def reply(kind, data=b""):
            peer.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

        if option in (6, 7):  # INFO, GO
            reply(3, struct.pack(">HQH", 0, size, EXPORT_FLAGS))
            reply(1)
            if option == 7:
                return
        elif option == 2:  # ABORT
            raise Gone
        else:
            reply(1 << 31 | 1)


class Disk:
    def __init__(self, image, now):
        # An image is mostly holes.
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, now], check=True)
        self.image, self.now = os.open(image, os.O_RDWR), os.open(now, os.O_RDWR)
        self.lies, self.unflushed = False, []
        self.flushes = 0
        self.left = None  # writes until it cuts the power

    def write(self, offset, data, fua):
        os.pwrite(self.now, data, offset)
        self.unflushed.append((offset, data, fua and not self.lies))
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise Cut

    def flush(self):
        self.flushes += 1
        if self.lies:
            return
        for offset, data, _ in self.unflushed:
            os.pwrite(self.image, data, offset)
        self.unflushed.clear()

    def cut(self, chance):
        """What the power leaves: so many eighths, sector by sector or write by write."""
        eighths, whole = 0 if self.lies else chance.choice((0, 1, 4, 7, 8)), chance.random() < 0.3
        kept = lost = 0
        for offset, data, fua in self.unflushed:
            all_of_it = whole and chance.randrange(8) < eighths
            for at in range(0, len(data), SECTOR):
                if fua or all_of_it or not whole and chance.randrange(8) < eighths:
                    os.pwrite(self.image, data[at : at + SECTOR], offset + at)
                    kept += 1
                else:
                    lost += 1
        print(f"{self.flushes} flushes; of what none covered {kept} sectors are left, {lost} are not")


def serve(peer, disk):
    while True:
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", take(peer, 28))
        data = b""
        if kind == READ:
            data = os.pread(disk.now, length, offset)
        elif kind == WRITE:
            disk.write(offset, take(peer, length), flags & FUA)
        elif kind in (TRIM, ZEROES):
            disk.write(offset, bytes(length), flags & FUA)
        elif kind == FLUSH:
            disk.flush()
        elif kind == DISC:
            disk.flush()
            return
        try:
            peer.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
        except OSError:
            raise Gone from None


def main():
    image, now, path, seed = sys.argv[1:]
    disk = Disk(image, now)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen()
    os.rename(path + ".new", path)
    peer, _ = listener.accept()
    chance = random.Random(int(seed))

    def soon(*_):
        disk.left = chance.randrange(1, 60)

    def lie(*_):
        disk.lies = True

    signal.signal(signal.SIGUSR1, soon)
    signal.signal(signal.SIGUSR2, lie)
    try:
        negotiate(peer, os.fstat(disk.image).st_size)
        serve(peer, disk)
    except Cut:
        client, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(client, signal.SIGKILL)
    except Gone:
        pass
    disk.cut(chance)


main()

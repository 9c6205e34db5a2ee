"""Bytes that no client should send, straight over a socket: the server answers or hangs up, and goes on serving others."""

import os
import socket
import struct
import sys
from check import BLOCK, connect, same, text

path, name = sys.argv[1], sys.argv[2]
uri = f"nbd+unix:///{name}?socket={path}"

IHAVEOPT, REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
REQUEST, SIMPLE_REPLY = 0x25609513, 0x67446698
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
REP_ACK, REP_INFO = 1, 3
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (2**31 + n for n in (1, 3, 6, 9))
EINVAL = 22


class Peer:
    def __init__(self, flags=3):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        same(self.take(18)[:16], b"NBDMAGIC" + IHAVEOPT, "the greeting")
        if flags is not None:
            self.send(struct.pack(">I", flags))

    def send(self, data):
        self.socket.sendall(data)

    def take(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def option(self, number, data=b"", length=None):
        self.send(IHAVEOPT + struct.pack(">II", number, len(data) if length is None else length) + data)

    def reply(self, number):
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        same((magic, option), (REPLY_MAGIC, number), "the head of an option reply")
        return kind, self.take(length)

    def go(self):
        self.option(OPT_GO, struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0))
        while True:
            kind, _ = self.reply(OPT_GO)
            if kind == REP_ACK:
                return self
            same(kind, REP_INFO, "a reply to GO")

    def request(self, kind, offset=0, length=BLOCK, flags=0, cookie=7, magic=REQUEST, payload=b""):
        self.send(struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length) + payload)

    def answer(self, cookie=7):
        magic, error, got = struct.unpack(">IIQ", self.take(16))
        same((magic, got), (SIMPLE_REPLY, cookie), "the head of a simple reply")
        return error

    def hung_up(self, what):
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            raise AssertionError(f"{what}: the server keeps the connection")
        self.socket.close()


def serves():
    h = connect(uri)
    h.pwrite(text(9, BLOCK), 0)
    same(h.pread(BLOCK, 0), text(9, BLOCK), "another client's data")
    h.shutdown()


# Haggling: what is not understood is refused and the haggling goes on; what cannot be followed ends it.
p = Peer()
for number in (0, 4, 99, 2**32 - 1):
    p.option(number, b"x" * 10)
    same(p.reply(number)[0], ERR_UNSUP, f"the answer to option {number}")
p.option(OPT_LIST, b"data that LIST does not take")
same(p.reply(OPT_LIST)[0], ERR_INVALID, "the answer to a LIST with data")
p.option(OPT_GO, struct.pack(">I", 1000) + b"short")
same(p.reply(OPT_GO)[0], ERR_INVALID, "the answer to a GO whose name is cut off")
p.option(OPT_GO, struct.pack(">I", 4) + b"none" + struct.pack(">H", 0))
same(p.reply(OPT_GO)[0], ERR_UNKNOWN, "the answer to a GO for no export")
p.go()
p.socket.close()

for what, data in (("noise", os.urandom(4096)), ("wrong option magic", struct.pack(">I", 3) + b"IHAVENOT" + bytes(8)),
                   ("unknown client flags", struct.pack(">I", 0xFFFF) + IHAVEOPT + bytes(8))):
    p = Peer(flags=None)
    try:
        p.send(data)
    except ConnectionError:
        pass
    p.hung_up(what)
    serves()

# An option that announces 4 GiB: refused or cut off, and never waited for in memory.
p = Peer()
p.option(OPT_LIST, length=2**32 - 1)
try:
    kind, _ = p.reply(OPT_LIST)
    assert kind in (ERR_TOO_BIG, ERR_INVALID), f"the answer to an option of 4 GiB: {kind:#x}"
    p.socket.close()
except (EOFError, ConnectionError):
    p.hung_up("an option of 4 GiB")
serves()

# An unknown export by EXPORT_NAME has no answer but the end.
p = Peer()
p.option(OPT_EXPORT_NAME, b"none")
p.hung_up("EXPORT_NAME for no export")

# A client that stops in the middle of anything.
for cut in (b"", struct.pack(">I", 3), struct.pack(">I", 3) + IHAVEOPT, struct.pack(">I", 3) + IHAVEOPT + struct.pack(">II", 7, 500) + b"x"):
    p = Peer(flags=None)
    p.send(cut)
    p.socket.close()
p = Peer().go()
p.request(1, payload=b"half a block"[:6])
p.socket.close()
serves()

# Transmission: an unknown command and unknown flags are answered, and the stream stays in step.
p = Peer().go()
for kind, flags, what in ((9, 0, "command 9"), (0xFFFF, 0, "command 65535"), (0, 0x8000, "a read with an unknown flag"),
                          (4, 0x40, "a trim with an unknown flag"), (7, 0, "a block status without its context")):
    p.request(kind, flags=flags)
    same(p.answer(), EINVAL, what)
p.request(1, flags=0x8000, payload=text(1, BLOCK))
same(p.answer(), EINVAL, "a write with an unknown flag")
p.request(0, offset=0, length=0)
assert p.answer() in (0, EINVAL)
p.request(0, length=512)
same(p.answer(), 0, "a read after all that")
same(p.take(512), text(9, BLOCK)[:512], "its data")

# More than the greatest payload: refused, either in step or by hanging up.
p.request(0, length=2**32 - 1)
assert p.answer() in (EINVAL, 75), "a read of 4 GiB"
p.request(1, length=2**31)
try:
    p.socket.settimeout(1)
    assert p.answer() != 0, "a write of 2 GiB"
except (EOFError, ConnectionError, TimeoutError):
    pass
p.socket.close()
serves()

# A request with the wrong magic leaves no way to find the next one.
p = Peer().go()
p.request(0, magic=0xBADC0DE)
p.hung_up("a request with the wrong magic")
serves()

# Many at once that say nothing.
idle = [Peer(flags=None) for _ in range(100)]
serves()
for p in idle:
    p.socket.close()

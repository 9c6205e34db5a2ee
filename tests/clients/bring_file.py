"""Asks for a backup of keys with what is no file to write one to: as no client of ours does.

    bring_file.py CONTROL-SOCKET PUBLIC.pem DIRECTORY

What always holds: each is refused before anything is written, with the cause, and the daemon goes on.
"""

import array
import json
import os
import socket
import sys

from check import same

control, public_key, directory = sys.argv[1:]


def ask(descriptors):
    """The status and message of a backup that is to be written to these descriptors."""
    body = json.dumps({"recovery_key": open(public_key).read()}).encode()
    request = (
        "POST /v1/keys/local/backup HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\n"
        f"Upgrade: sealvol-key\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(control)
        connection.sendall(request.encode() + body)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        same(head.split()[1], b"101", "the answer to an upgrade")
        same(connection.recv(1), b"k", "the daemon's turn")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        connection.sendmsg([b"k"], rights)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int.from_bytes(answer[:2], "big"), json.loads(answer[2:])


def refused(descriptors, cause):
    status, answer = ask(descriptors)
    same(status, 400, f"the status for {cause!r}")
    same(cause in answer["error"]["message"], True, f"{cause!r} in {answer}")


def file(name, content=b"", flags=os.O_RDWR):
    path = os.path.join(directory, name)
    with open(path, "wb") as made:
        made.write(content)
    return path, os.open(path, flags)


reader, writer = os.pipe()
refused([writer], "not a regular and empty one")
path, full = file("full", b"of somebody else")
refused([full], "not a regular and empty one")
same(open(path, "rb").read(), b"of somebody else", "a file that was not empty")
(first, one), (second, other) = file("one"), file("other")
refused([one, other], "does not come")
refused([], "does not come")
same([os.path.getsize(first), os.path.getsize(second)], [0, 0], "what was written")

# One that cannot be written to fails; the next one is served.
_, read_only = file("read-only", flags=os.O_RDONLY)
status, answer = ask([read_only])
same((status, "the backup's file" in answer["error"]["message"]), (500, True), f"{answer}")
path, good = file("good")
status, made = ask([good])
same((status, os.path.getsize(path)), (200, made["bytes"]), "a backup into an empty file")

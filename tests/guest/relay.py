"""Carries TCP connections to a port on loopback over to a Unix socket.   relay.py SOCKET PORT-FILE"""

import os
import socket
import sys
import threading

path, port_file = sys.argv[1:]


def pump(source, sink):
    buffer = bytearray(1 << 18)
    view = memoryview(buffer)
    try:
        while count := source.recv_into(buffer):
            sink.sendall(view[:count])
    except OSError:
        pass
    for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            end.shutdown(how)
        except OSError:
            pass


listener = socket.create_server(("127.0.0.1", 0))
with open(port_file + ".new", "w") as file:
    print(listener.getsockname()[1], file=file)
os.rename(port_file + ".new", port_file)
while True:
    client, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()

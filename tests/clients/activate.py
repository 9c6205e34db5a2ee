"""Listens on Unix sockets and becomes a program that is handed them, as a service manager does.

    activate.py NAME=SOCKET... PROGRAM ARGUMENT...
"""

import os
import socket
import sys

names, arguments, first = [], sys.argv[1:], 3
while "=" in arguments[0]:
    name, path = arguments.pop(0).split("=", 1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    descriptor = listener.detach()
    if descriptor != first + len(names):
        os.dup2(descriptor, first + len(names))
    os.set_inheritable(first + len(names), True)
    names.append(name)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
os.execv(arguments[0], arguments)

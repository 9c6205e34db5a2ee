"""What clients of a volume with limits see. Waits for lines on standard input where the caller is to do something meanwhile.

    limited.py turns URI            two connections with queues of different depth: prints how far each was when one was done
    limited.py pace URI COUNT       COUNT reads of 4 KiB, all sent at once: prints how long they took, in milliseconds
    limited.py hold URI COUNT       sends COUNT reads; prints "waiting" after the first reply, then, on another connection, flushes and
                                    prints "flushed" and the number of replies until then; in the end the number of replies
"""

import sys
import time
from check import connect

BLOCK = 4096


def queued(handle, count, depth, done):
    """Keeps `depth` of `count` reads in flight; calls `done` for each reply. Gives a function that sends what there is room for."""
    state = {"sent": 0, "ended": 0}

    def ended(error):
        state["ended"] += error == 0
        done()
        return 1

    import nbd

    def send():
        while state["sent"] < count and state["sent"] - state["ended"] < depth:
            handle.aio_pread(nbd.Buffer(BLOCK), state["sent"] * BLOCK, completion=lambda error: ended(error.value))
            state["sent"] += 1

    return send, state


def poll(handles):
    for handle in handles:
        if not handle.aio_is_closed() and not handle.aio_is_dead():
            handle.poll(5)


def turns(uri):
    handles = [connect(uri), connect(uri)]
    count = 60
    queues = [queued(handle, count, depth, lambda: None) for handle, depth in zip(handles, (32, 2))]
    while all(state["ended"] < count for _, state in queues):
        for send, _ in queues:
            send()
        poll(handles)
    print(*(state["ended"] for _, state in queues))
    while any(state["ended"] < count for _, state in queues):
        for send, _ in queues:
            send()
        poll(handles)
    for handle in handles:
        handle.shutdown()


def pace(uri, count):
    handle = connect(uri)
    send, state = queued(handle, count, count, lambda: None)
    began = time.monotonic()
    send()
    while state["ended"] < count:
        poll([handle])
    print(int((time.monotonic() - began) * 1000))
    handle.shutdown()


def hold(uri, count):
    handle, other = connect(uri), connect(uri)
    send, state = queued(handle, count, count, lambda: None)
    send()
    while state["ended"] == 0:
        poll([handle])
    print("waiting", flush=True)
    other.flush()
    other.shutdown()
    print("flushed", state["ended"], flush=True)
    try:
        while state["ended"] < count:
            if handle.aio_is_dead() or handle.aio_is_closed():
                break
            poll([handle])
    except Exception as error:
        print(f"the connection ended: {error}", file=sys.stderr)
    print("replies", state["ended"], flush=True)


command, uri, *rest = sys.argv[1:]
{"turns": turns, "pace": pace, "hold": hold}[command](uri, *map(int, rest))

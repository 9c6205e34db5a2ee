"""What the scripts beside this file share: a connection with libnbd's own guards off, and assertions that say what was expected.

libnbd refuses requests that break the protocol before they are sent; these scripts are about what the server answers.
"""

import errno
import nbd

KIB = 1024
MIB = 1024 * KIB
BLOCK = 4096


def connect(uri, *, structured=True, contexts=("base:allocation",), strict=False):
    handle = nbd.NBD()
    if not strict:
        handle.set_strict_mode(0)
    handle.set_request_structured_replies(structured)
    for context in contexts if structured else ():
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    return handle


def same(got, expected, what):
    if got != expected:
        if isinstance(got, (bytes, bytearray)) and len(got) > 64:
            where = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
            raise AssertionError(f"{what}: differs from byte {where} on, {len(got)} bytes for {len(expected)}: "
                                 f"{bytes(got[where:where + 16]).hex()} for {bytes(expected[where:where + 16]).hex()}")
        raise AssertionError(f"{what}: {got!r}, expected {expected!r}")


def refused(expected, what, call, *arguments, **options):
    """Asserts that `call` is answered with the errno called `expected`, and that the connection goes on."""
    try:
        call(*arguments, **options)
    except nbd.Error as error:
        same(error.errno, expected, what)
        return
    raise AssertionError(f"{what}: succeeded, expected {expected}")


def text(seed, length):
    """`length` reproducible bytes without a run of zeros."""
    import random
    return random.Random(seed).randbytes(length)


def extents(handle, length, offset, flags=0):
    """The extents of `base:allocation` as [(length, flags)], checked for what every answer must hold."""
    found = []

    def note(context, start, entries, error):
        same(error.value, 0, "the error of a block status chunk")
        if context == nbd.CONTEXT_BASE_ALLOCATION:
            same(start, offset, "the offset of a block status reply")
            found.extend(zip(entries[0::2], entries[1::2]))

    handle.block_status(length, offset, note, flags=flags)
    assert found, f"no extent for {length} bytes at {offset}"
    assert all(size > 0 for size, _ in found), f"an empty extent: {found}"
    return found


def whole_map(handle):
    """All extents of the export, neighbours of one kind joined, as [(offset, length, flags)]."""
    size, at, joined = handle.get_size(), 0, []
    while at < size:
        for length, flags in extents(handle, min(size - at, 1 << 30), at):
            length = min(length, size - at)
            if joined and joined[-1][2] == flags:
                joined[-1] = (joined[-1][0], joined[-1][1] + length, flags)
            else:
                joined.append((at, length, flags))
            at += length
    return joined

"""Rows, and one measurement: a job file of bench/jobs against one server, once."""

import contextlib
import itertools
import json
import os
import pathlib
import subprocess
import sys

from measure import figures

JOBS = pathlib.Path(__file__).resolve().parent.parent / "jobs"
PATTERNS = ("randread", "randwrite", "randrw", "read", "write", "rw")
DEPTHS = {"4k": (1, 32), "1m": (1, 8)}
EMPTY = "empty-randwrite-4k.d32.c1"


def all_rows():
    """JOB.dDEPTH.cCONNECTIONS: the depth is that of each connection."""
    rows = [
        f"{pattern}-{size}.d{depth}.c{connections}"
        for size in DEPTHS
        for pattern, depth, connections in itertools.product(PATTERNS, DEPTHS[size], (1, 4))
    ]
    return [*rows, EMPTY]


def goal_rows():
    """Those that a goal speaks of: 4 KiB at random, at depth 1 on one connection and without a mix; 1 MiB in order, never at depth 1."""
    small = [row for row in all_rows() if row.startswith(("randread-4k", "randwrite-4k", "randrw-4k"))]
    large = [row for row in all_rows() if row.startswith(("read-1m", "write-1m"))]
    small = [row for row in small if ".d1." not in row or row.endswith(".c1") and not row.startswith("randrw")]
    return [*small, *(row for row in large if ".d1." not in row), EMPTY]


def parts(row):
    job, depth, connections = row.rsplit(".", 2)
    return job, int(depth[1:]), int(connections[1:])


def is_empty(row):
    return row.startswith("empty-")


def job_file(job, server, raw):
    """The job file as it is, or one of its own for a file without a server."""
    path = JOBS / f"{job}.fio"
    if server.engine == "nbd":
        return path
    text = path.read_text().replace("ioengine=nbd", f"ioengine={server.engine}\ndirect=1")
    own = raw.with_suffix(".fio")
    own.write_text(text.replace("uri=${URI}", "filename=${URI}"))
    return own


def run(server, row, seconds, raw):
    """One run of fio: its JSON is kept at `raw`."""
    job, depth, connections = parts(row)
    settings = {"URI": server.uri, "DEPTH": depth, "CONNECTIONS": connections, "PART": server.size // connections, "RUNTIME": seconds}
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    command = ["fio", "--output-format=json", str(job_file(job, server, raw))]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if found.returncode or "{" not in found.stdout:
        raise figures.Unusable(f"{server.name}, {row}: fio: exit code {found.returncode}\n{found.stdout}{found.stderr}")
    text = found.stdout[found.stdout.index("{"):]  # the NBD engine says who connected before fio speaks JSON
    raw.write_text(text)
    return json.loads(text)


@contextlib.contextmanager
def at(server, row):
    """Where a row is measured: one of an empty volume gets its own each time."""
    if not is_empty(row):
        yield server
        return
    fresh = server.fresh()
    try:
        yield fresh
    finally:
        fresh.remove()


def measure(server, row, seconds, raw):
    """The figures of one round."""
    with at(server, row) as measured:
        measured.forget_peak()
        before = measured.cpu_seconds()
        report = run(measured, row, seconds, raw)
        if figures.was_paused(report, seconds):
            print(f"{row}, {server.name}: the machine stood still, once more", file=sys.stderr)
            measured.forget_peak()
            before = measured.cpu_seconds()
            report = run(measured, row, seconds, raw)
        return figures.of_fio(report, measured.cpu_seconds() - before, measured.peak_kib())


def warm_up(server, row, raw):
    if not is_empty(row):
        run(server, row, 1, raw)
        raw.unlink()

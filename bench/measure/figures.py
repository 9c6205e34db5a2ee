"""The arithmetic of a comparison: what a fio run says, medians, spreads, ratios, goals. No I/O; tested by test_figures.py.

    results = {(row, server): [figures of a round, ...]}
"""

import re
import statistics

GIB = 1 << 30
CEILING, OURS, PLAIN = "ceiling", "sealvol", "nbdkit-file"
# Met at the ratio against that rival, or at so much of the run's ceiling.
OF_CEILING = 0.9
GOALS = (  # rows, memory file system or disk, rival, least ratio of IOPS
    (r"^(randread|randwrite)-4k\.d32\.", "memory", "nbdkit-file", 1.5),
    (r"^randrw-4k\.d32\.", "memory", "nbdkit-file", 1.3),
    (r"^(read|write)-1m\.d8\.", "memory", "nbdkit-file", 1.0),
    (r"^(?!empty)(.*\.d32\.|.*-1m\.)", "memory", "nbdkit-luks", 2.5),
    (r"^(?!empty)(.*\.d32\.|.*-1m\.)", "memory", "qemu-nbd-luks", 5.0),
    (r"^empty-", "memory", "nbdkit-file", 1.0),
    (r"^empty-|\.d1\.", "memory", "nbdkit-luks", 1.0),
    (r"^empty-|\.d1\.", "memory", "qemu-nbd-luks", 1.0),
    (r"^(randread|randwrite)-4k\.d32\.|^(read|write)-1m\.", "disk", "fio-io_uring", 0.9),
)
# At depth 1 the goal is the 99th percentile of the latency, against nbdkit, or within the run's spread.
GOAL_P99 = 1.05


class Unusable(Exception):
    """fio's output says that something failed, or says nothing."""


def of_fio(report, server_cpu, peak_kib):
    """The figures of one run: fio's JSON, the server's CPU seconds during it, its peak memory."""
    job = report["jobs"][0]
    if job.get("error"):
        raise Unusable(f"fio: error {job['error']} in {job['jobname']}")
    sides = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    if not sides:
        raise Unusable(f"fio did nothing in {job['jobname']}")
    requests = sum(side["total_ios"] for side in sides)
    moved = sum(side["io_bytes"] for side in sides)

    def worst(percentile):
        return max(side["clat_ns"].get("percentile", {}).get(percentile, 0) for side in sides) / 1000

    return {
        "iops": sum(side["iops"] for side in sides),
        "MBps": sum(side["bw_bytes"] for side in sides) / 1e6,
        "p50_us": worst("50.000000"),
        "p99_us": worst("99.000000"),
        "p99.9_us": worst("99.900000"),
        "cpu_s_per_gib": server_cpu / (moved / GIB),
        "cpu_us_per_request": server_cpu * 1e6 / requests,
        "peak_mib": peak_kib / 1024,
        "client_cpus": (job["usr_cpu"] + job["sys_cpu"]) / 100,
    }


def was_paused(report, seconds):
    """Whether a round took so much longer than it was told to that the machine must have stood still (a paused guest)."""
    job = report["jobs"][0]
    return max(job[side].get("runtime", 0) for side in ("read", "write")) > 3000 * seconds


def median(rounds, figure):
    return statistics.median(figures[figure] for figures in rounds)


def spread(rounds, figure="iops"):
    """From the least to the greatest, as a part of the median."""
    values = [figures[figure] for figures in rounds]
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def ratio(results, row, server, base, figure="iops"):
    """The medians of two servers, or None if one of them was not measured."""
    if (row, server) not in results or (row, base) not in results:
        return None
    below = median(results[row, base], figure)
    return median(results[row, server], figure) / below if below else None


def verdicts(results, row, medium):
    """What the goals say of a row: (what is asked, whether it is met)."""
    found = []
    of_ceiling = ratio(results, row, OURS, CEILING)
    at_ceiling = of_ceiling is not None and of_ceiling >= OF_CEILING
    for rows, where, rival, least in GOALS:
        reached = ratio(results, row, OURS, rival)
        if where == medium and re.search(rows, row) and reached is not None:
            found.append((f">= {least} x {rival}", reached >= least or at_ceiling))
    slower = ratio(results, row, OURS, PLAIN, "p99_us")
    if medium == "memory" and ".d1." in row and slower is not None:
        noise = max(spread(results[row, name], "p99_us") for name in (OURS, PLAIN))
        found.append((f"p99 <= {GOAL_P99} x {PLAIN}", slower <= max(GOAL_P99, 1 + noise)))
    return found


def rows_of(results):
    return list(dict.fromkeys(row for row, _ in results))


def servers_of(results):
    return list(dict.fromkeys(server for _, server in results))


def number(value):
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head, lines):
    """A markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)) + "\n"


def ratio_table(results, medium):
    """A line for each row: the first server against each of the others."""
    first, *others = servers_of(results)
    lines = []
    for row in rows_of(results):
        rounds = results[row, first]
        goals = verdicts(results, row, medium)
        said = "; ".join(f"{what}: {'met' if met else 'NOT met'}" for what, met in goals)
        lines.append([
            row, number(median(rounds, "iops")), number(median(rounds, "MBps")), number(median(rounds, "p99_us")),
            f"{spread(rounds):.0%}", *(number(ratio(results, row, first, other)) for other in others), said,
        ])
    return table(["row", f"{first} IOPS", "MB/s", "p99 us", "spread", *(f"/ {other}" for other in others), "goals"], lines)


def full_table(results):
    """A line for each row and server, with everything that was measured."""
    names = list(next(iter(results.values()))[0])
    lines = [
        [row, server, *(number(median(rounds, name)) for name in names), f"{spread(rounds):.0%}"]
        for (row, server), rounds in results.items()
    ]
    return table(["row", "server", *names, "spread"], lines)

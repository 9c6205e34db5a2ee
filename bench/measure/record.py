"""What is kept of a run: README.md (how), summary.md and summary.csv (what), *.svg (drawn), raw/ (fio's own words)."""

import csv
import os
import pathlib
import platform
import re
import sys

from measure import figures, plots
from measure.servers import output

ROOT = pathlib.Path(__file__).resolve().parents[2]


def commit():
    return output("git", "-C", str(ROOT), "describe", "--always", "--dirty")


def describe(path, options, servers, rows, load):
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    processor = f"{os.cpu_count()} x {model[1] if model else platform.processor()}"
    where = output("findmnt", "-no", "FSTYPE", "-T", str(options.directory)).split()[-1]
    how = ", past the page cache" if options.direct else ""
    lines = [
        f"# {path.name}", "",
        "    " + " ".join(["bench/run", *sys.argv[1:]]), "",
        "| | |", "|---|---|",
        f"| commit | {commit()} |",
        f"| host | {platform.node()}: {processor}, {platform.system()} {platform.release()} |",
        f"| load before | {load:.2f} |",
        f"| images | {options.size >> 20} MiB of the same random bytes each, fully written, on {where}{how} |",
        f"| rounds | {options.rounds} of {options.seconds} s a row, interleaved, after a warm-up of each server |",
        f"| client | {output('fio', '--version')}, its nbd engine, the job files of bench/jobs |",
        *(f"| {server.name} | {server.version()} |" for server in servers),
        "",
        f"{len(rows)} rows. `summary.md` has the ratios and every median, `summary.csv` every round, `raw/` fio's own output. A row is "
        "JOB.dDEPTH.cCONNECTIONS. CPU is the server's; spread is from the least round to the greatest, as a part of the median.", "",
    ]
    (path / "README.md").write_text("\n".join(lines))


def summarise(path, results, medium):
    """Writes the summary; the table of ratios is also for the terminal."""
    ratios = figures.ratio_table(results, medium)
    text = "# Ratios of IOPS, medians\n\n" + ratios + "\n# Everything\n\n" + figures.full_table(results)
    (path / "summary.md").write_text(text)
    with open(path / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "server", "round", *next(iter(results.values()))[0]])
        for (row, server), rounds in results.items():
            for number, found in enumerate(rounds):
                writer.writerow([row, server, number, *(f"{value:.3f}" for value in found.values())])
    draw(path, results)
    return ratios


def draw(path, results):
    first, *others = figures.servers_of(results)
    rows = figures.rows_of(results)
    against = [(row, [(other, figures.ratio(results, row, first, other)) for other in others]) for row in rows]
    (path / "ratios.svg").write_text(plots.bars(f"IOPS of {first} against the others (medians)", against))
    base = next((name for name in (figures.PLAIN, *others) if any(server == name for _, server in results)), first)
    for figure, title in (("p99_us", "99th percentile of the latency"), ("cpu_us_per_request", "CPU time per request")):
        entries = [
            (row, [(server, figures.ratio(results, row, server, base, figure)) for server in (first, *others)]) for row in rows
        ]
        (path / f"{figure}.svg").write_text(plots.bars(f"{title}, against {base}", entries))

"""A profile of a server during a row, as a flame graph: perf records, this folds the stacks and draws them."""

import collections
import re
import subprocess
from html import escape

FRAME = re.compile(r"\s+[0-9a-f]+ (.*) \(([^()]*)\)$")
WIDTH, HEIGHT, LEAST = 1400, 16, 0.4


def record(pid, seconds, path):
    """Starts recording a process; it ends by itself."""
    command = ["perf", "record", "--quiet", "-F", "499", "--call-graph", "dwarf,16384", "-p", str(pid), "-o", str(path), "--", "sleep", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def script(path):
    """What perf makes of a recording, as text."""
    found = subprocess.run(["perf", "script", "--no-inline", "-i", str(path)], capture_output=True, text=True, errors="replace")
    return found.stdout


def folded(text):
    """{(thread, root, ..., leaf): samples} from the output of perf script."""
    stacks = collections.Counter()
    for sample in text.split("\n\n"):
        head, *lines = sample.strip("\n").split("\n")
        if not head.strip():
            continue
        frames = [name_of(line) for line in lines if FRAME.match(line)]
        stacks[(head.split()[0], *reversed(frames))] += 1
    return dict(stacks)


def name_of(line):
    name = FRAME.match(line)[1]
    return re.sub(r"(::h[0-9a-f]{16})?(\+0x[0-9a-f]+)?$", "", name)


def tree(stacks):
    root = [0, {}]
    for stack, samples in stacks.items():
        node = root
        node[0] += samples
        for frame in stack:
            node = node[1].setdefault(frame, [0, {}])
            node[0] += samples
    return root


def svg(stacks, title):
    """The leaves are above, the width of a frame is its part of all samples; hover for the name and the number."""
    root = tree(stacks)
    scale = WIDTH / max(1, root[0])
    boxes, deepest = [], 0

    def place(children, left, depth):
        nonlocal deepest
        deepest = max(deepest, depth)
        for name, (samples, below) in sorted(children.items()):
            width = samples * scale
            if width >= LEAST:
                boxes.append((name, samples, left, depth, width))
                place(below, left, depth + 1)
            left += width

    place(root[1], 0.0, 0)
    height = (deepest + 3) * HEIGHT
    parts = [f'<text x="6" y="12">{escape(title)}: {root[0]} samples</text>']
    for name, samples, left, depth, width in boxes:
        y = height - (depth + 1) * HEIGHT
        hue = sum(name.encode()) * 7 % 50
        said = escape(f"{name}: {samples} samples, {samples / max(1, root[0]):.1%}")
        fits = escape(name[: int(width / 6.2)]) if width > 20 else ""
        parts.append(
            f'<g><title>{said}</title><rect x="{left:.1f}" y="{y}" width="{width:.2f}" height="{HEIGHT - 1}" fill="hsl({hue},80%,65%)"/>'
            f'<text x="{left + 2:.1f}" y="{y + 11}">{fits}</text></g>'
        )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="monospace" font-size="10">'
    return head + "\n" + "\n".join(parts) + "\n</svg>\n"

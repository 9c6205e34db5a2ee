"""Bar charts as SVG, without any library."""

from html import escape

COLOURS = ("#2a6f97", "#e07a2f", "#5b8e3e", "#a23b72", "#7a6c5d", "#c9a227", "#555")


def bars(title, groups, base=1.0):
    """Horizontal bars: groups are (label, [(name, value or None)]); a line stands at `base`."""
    names = list(dict.fromkeys(name for _, entries in groups for name, _ in entries))
    values = [value for _, entries in groups for _, value in entries if value is not None]
    bar, left, width = 13, 210, 520
    scale = width / max([base * 1.2, *values])
    parts, y = [f'<text x="8" y="16" font-weight="bold" font-size="13">{escape(title)}</text>'], 30
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{8 + 130 * number}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{22 + 130 * number}" y="{y + 9}">{escape(name)}</text>')
    y += 22
    top = y
    for label, entries in groups:
        shown = [(name, value) for name, value in entries if value is not None]
        parts.append(f'<text x="8" y="{y + 11}">{escape(label)}</text>')
        for name, value in shown:
            length = value * scale
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 4:.1f}" y="{y + 10}">{value:,.2f}</text>')
            y += bar
        y += 8
    line = left + base * scale
    parts.append(f'<line x1="{line:.1f}" y1="{top - 4}" x2="{line:.1f}" y2="{y}" stroke="#000" stroke-dasharray="3"/>')
    size = f'width="{left + width + 70}" height="{y + 10}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n' + "\n".join(parts) + "\n</svg>\n"

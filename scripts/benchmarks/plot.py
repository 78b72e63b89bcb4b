"""The ratios as an SVG: one line for each row, one dot for each peer, on a logarithmic axis."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benchmarks.peers import OURS
from benchmarks.report import Results

_LINE = 18
_LEFT = 300
_WIDTH = 560
_TOP = 70
_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#7f7f7f", "#9467bd", "#ff7f0e")
_TITLE = f"what a peer needs, for 1 that {OURS} needs: to the right, {OURS} is ahead"
_LOWEST, _HIGHEST = -4, 6  # powers of two


def _x(ratio: float) -> float:
    power = min(max(math.log2(ratio), _LOWEST), _HIGHEST)
    return _LEFT + (power - _LOWEST) / (_HIGHEST - _LOWEST) * _WIDTH


def svg(results: Results) -> str:
    """A picture of every ratio: right of the line, the peer needs more time than we do."""
    others = [peer for peer in results.peers if peer != OURS]
    colours = dict(zip(others, _COLOURS, strict=False))
    bottom = _TOP + _LINE * len(results.values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{bottom + 20}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="16">{_TITLE}</text>',
    ]
    for number, peer in enumerate(others):
        left = _LEFT + number * 130
        parts.append(f'<circle cx="{left + 5}" cy="34" r="4" fill="{colours.get(peer, "black")}"/>')
        parts.append(f'<text x="{left + 14}" y="38">{escape(peer)}</text>')
    for power in range(_LOWEST, _HIGHEST + 1):
        x, label = _x(2.0**power), f"{2**power}" if power >= 0 else f"1/{2**-power}"
        colour = "black" if power == 0 else "#dddddd"
        parts.append(f'<line x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{bottom}" stroke="{colour}"/>')
        parts.append(f'<text x="{x}" y="{_TOP - 12}" text-anchor="middle">{label}x</text>')
    for number, row in enumerate(results.values):
        y = _TOP + _LINE * number + _LINE / 2
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(row)}</text>')
        for peer in others:
            ratio = results.ratio(row, peer)
            if ratio is not None:
                dot = f'<circle cx="{_x(ratio):.1f}" cy="{y}" r="4" fill="{colours.get(peer, "black")}">'
                parts.append(f"{dot}<title>{escape(peer)}: {ratio:.2f}x</title></circle>")
    return "\n".join([*parts, "</svg>"]) + "\n"

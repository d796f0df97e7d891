"""Draws the floors of the house for ``docs/architecture.md``: ``python -m tools.architecture_picture``.

The floors come from the import contract in ``pyproject.toml`` and the texts from the docstrings of the packages.
So the picture shows what the linter enforces. It writes ``docs/images/architecture.svg`` and the Mermaid diagram
of ``docs/architecture.md``. ``--check`` writes nothing, and ends with exit code 1 where either is out of date.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
CONTRACT = "Imports point downwards"

BANDS = {
    "interfaces": ("workers", "__main__", "cli", "server"),
    "operations": ("core", "transfer", "maintenance", "trail", "ingest", "metrics", "recall"),
    "memory service": ("store",),
    "write pipeline": ("provenance_queue", "pipeline", "spill", "deployment"),
    "storage": ("broker", "storage"),
    "ground": (
        *("embedders", "telemetry", "config", "parameters", "record"),
        *("entries", "common", "errors", "_version"),
    ),
}
"""Which rooms make up which band; a room of the contract that is missing here is an error."""

WAY = ("recall", "store", "provenance_queue", "broker", "pipeline", "storage")
"""The way of an entry, in order."""

WIDTH, MARGIN, LABEL, ROW, GAP = 1000, 20, 145, 46, 8
COLOURS = ("#dbeafe", "#e0e7ff", "#ede9fe", "#fce7f3", "#ffedd5", "#f1f5f9")


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down, without the package's name."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"] == CONTRACT]
    return [[room.strip().removeprefix("iai_mcp.") for room in floor.split("|")] for floor in layers]


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    base = ROOT / room if room == "workers" else ROOT / "iai_mcp" / room
    source = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    sentence = re.split(r"(?<=[.;])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".;")
    return re.sub(r":\w+:|`", "", sentence)


def label(room: str) -> str:
    """A room's name as people see it in the tree."""
    inside = "" if room == "workers" else "iai_mcp"
    return f"{room}/" if (ROOT / inside / room).is_dir() else f"{room}.py"


def mermaid() -> str:
    """The diagram as Mermaid source: a subgraph for each band, and the numbered way of an entry."""
    band_of = {room: band for band, rooms in BANDS.items() for room in rooms}
    lines = ["```mermaid", "flowchart TB"]
    for number, band in enumerate(BANDS):
        lines.append(f'  subgraph band{number}["{band}"]')
        lines += [f'    {room}["{label(room)}"]' for floor in floors() for room in floor if band_of[room] == band]
        lines.append("  end")
    lines += [f"  band{number} ~~~ band{number + 1}" for number in range(len(BANDS) - 1)]
    pairs = itertools.pairwise(WAY)
    lines += [f"  {one} -- {step} --> {other}" for step, (one, other) in enumerate(pairs, 1)]
    return "\n".join([*lines, "```"])


def svg() -> str:
    """The same as SVG: one row for each floor, grouped into bands."""
    rows, y = [], MARGIN + 30
    for (band, rooms), colour in zip(BANDS.items(), COLOURS, strict=True):
        here = [[room for room in floor if room in rooms] for floor in floors()]
        here = [floor for floor in here if floor]
        height = len(here) * (ROW + GAP) + GAP
        box = f'x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{height}" rx="8"'
        rows.append(f'<rect {box} fill="{colour}"/>')
        rows.append(f'<text x="{MARGIN + 12}" y="{y + height / 2 + 5}" class="band">{escape(band)}</text>')
        for at, floor in enumerate(here):
            rows += _floor(floor, y + GAP + at * (ROW + GAP))
        y += height + GAP
    title = "The rooms of iai-mcp. Imports point downwards. The numbers show the way of a provenance entry."
    view = f'viewBox="0 0 {WIDTH} {y + MARGIN}" role="img" aria-label="{title}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {view}>',
            "<style>text{font-family:system-ui,sans-serif;fill:#1e293b}.band{font-size:14px;font-weight:600}"
            ".room{font-size:13px;font-weight:600}.why{font-size:9.5px;fill:#475569}"
            ".step{font-size:11px;font-weight:700;fill:#fff}.title{font-size:14px}</style>",
            f'<rect width="{WIDTH}" height="{y + MARGIN}" fill="#ffffff"/>',
            f'<text x="{MARGIN}" y="{MARGIN + 10}" class="title">{title}</text>',
            *rows,
            "</svg>\n",
        ]
    )


def _floor(rooms: list[str], y: float) -> list[str]:
    """The boxes of one floor, side by side."""
    left, space = MARGIN + LABEL, WIDTH - 2 * MARGIN - LABEL - GAP
    width = (space - GAP * (len(rooms) - 1)) / len(rooms)
    found = []
    for at, room in enumerate(rooms):
        x = left + at * (width + GAP)
        box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" rx="5"'
        found.append(f'<rect {box} fill="#ffffff" stroke="#94a3b8"/>')
        found.append(f'<text x="{x + 8:.1f}" y="{y + 17}" class="room">{escape(label(room))}</text>')
        for line, text in enumerate(_wrapped(purpose(room), int(width / 5.4))):
            found.append(f'<text x="{x + 8:.1f}" y="{y + 29 + 11 * line}" class="why">{escape(text)}</text>')
        if room in WAY:
            step = WAY.index(room) + 1
            found.append(f'<circle cx="{x + width - 13:.1f}" cy="{y + 13}" r="8" fill="#be185d"/>')
            found.append(f'<text x="{x + width - 16:.1f}" y="{y + 17}" class="step">{step}</text>')
    return found


def _wrapped(text: str, most: int) -> list[str]:
    """``text`` on two lines of at most ``most`` characters; what does not fit is cut."""
    lines: list[str] = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 <= most or not lines[-1]:
            lines[-1] = f"{lines[-1]} {word}".strip()
        elif len(lines) < 2:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1][: most - 1].rstrip(' ,:;')}…"
            break
    return [line[:most] for line in lines]


def page() -> str:
    """The page with the diagram of today."""
    return re.sub(r"```mermaid\n.*?```", lambda _: mermaid(), PAGE.read_text(), count=1, flags=re.DOTALL)


def main() -> int:
    """Write both, or with ``--check`` compare both; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if one is out of date")
    unknown = {room for floor in floors() for room in floor} ^ {room for rooms in BANDS.values() for room in rooms}
    if unknown:
        sys.exit(f"BANDS and the import contract do not agree about {', '.join(sorted(unknown))}")
    if parser.parse_args().check:
        wanted = {PAGE: page(), PICTURE: svg()}
        stale = [path for path, new in wanted.items() if not path.exists() or path.read_text() != new]
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python -m tools.architecture_picture")  # noqa: T201
        return 1 if stale else 0
    PAGE.write_text(page())
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(svg())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs ``iai-mcp demo`` in a terminal of 80 columns and draws what it prints: ``docs/images/demo.svg``.

``python tools/demo_picture.py`` needs Linux or macOS. The picture loads nothing: no font, no style sheet.
"""

from __future__ import annotations

import fcntl
import html
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "demo.svg"
COLUMNS = 80
KEPT = {  # lines of a section; a section that is not named is left out
    "Remember": 3,
    "Recall": 9,
    "Every recall left a trace: the memory that was recalled most": 14,
    "What the trace cost": 4,
}
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def main() -> None:
    """Run, draw, write."""
    text = Text("\n").join([Text("$ iai-mcp demo", "bold green"), Text(), *shortened(Text.from_ansi(demo()))])
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(text))
    sys.stdout.write(f"{PICTURE}\n")


def demo() -> str:
    """What the demo prints on a terminal, colours included, from an empty home.

    Raises:
        subprocess.CalledProcessError: the demo failed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 100, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "iai_mcp", "demo"]
    with tempfile.TemporaryDirectory() as home:
        plain = {
            name: value for name, value in os.environ.items() if not name.startswith(("IAI_MCP_", "NO_COLOR"))
        }
        env = {**plain, "HOME": home, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=env)
        os.close(theirs)
        printed = b"".join(iter(lambda: _read(ours), b""))
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return printed.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's word for the end of a terminal
        return b""


def shortened(text: Text) -> list[Text]:
    """The first lines of each section of ``KEPT``; an ellipsis marks a cut."""
    shown: list[Text] = []
    head = ""

    def section(line: Text) -> str:
        nonlocal head
        if found := re.match(r"(\w.*?) ─+$", line.plain):
            head = found[1]
        return head

    for name, lines in groupby(text.split("\n"), section):
        whole = list(lines)
        while whole and not whole[-1].plain.strip():
            whole.pop()
        if room := KEPT.get(name, 0):
            cut = [Text("   ⋮", "dim")] if len(whole) > room else []
            shown += [*whole[:room], *cut, Text()]
    return shown[:-1]


def drawn(text: Text) -> str:
    """``text`` as an SVG that loads nothing from elsewhere."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True
    )
    console.print(text)
    form = re.sub(r"\s*@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code, monospace", FONTS)
    picture = console.export_svg(title="iai-mcp demo", theme=MONOKAI, code_format=form, unique_id="demo")
    return re.sub(r'x="([\d.]+)"( y="[\d.]+") textLength="([\d.]+)"([^>]*)>((?:&#160;)+)', _indented, picture)


def _indented(text: re.Match[str]) -> str:
    """A text that starts with blanks, moved to the right instead: some viewers drop the blanks."""
    x, y, length, rest, blanks = text.groups()
    cell = float(length) / len(html.unescape(text.string[text.start(5) : text.string.index("<", text.end())]))
    moved = cell * blanks.count(";")
    return f'x="{float(x) + moved:g}"{y} textLength="{float(length) - moved:g}"{rest}>'


if __name__ == "__main__":
    main()

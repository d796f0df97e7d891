"""MkDocs hooks: the site holds the repository's files that its pages link to, and loads nothing from elsewhere.

Links in ``docs/`` are written for the repository: ``../benchmarks/README.md``, ``../deploy/prometheus/``. The
site has a page below ``repository/`` for each such file, and the links lead there. A link to a missing file stays
as it is, and a strict build fails on it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
SHOWN = "repository"  # the folder of the site
ALWAYS = ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
PICTURES = (".png", ".svg")
LANGUAGES = {
    "c": "c",
    "json": "json",
    "lua": "lua",
    "py": "python",
    "sh": "sh",
    "toml": "toml",
    "yaml": "yaml",
    "yml": "yaml",
}

_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|alternate|next|prev))[^>]*\bhref=[\"']?(?:https?:)?//"
    r"|class=[\"']?mermaid\b|@import\b|url\([\"']?(?:https?:)?//"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the repository that a page links to, directly or through another such page."""
    todo = [*ALWAYS]
    for file in files.documentation_pages():
        todo += _outward(f"docs/{file.src_uri}", file.content_string)
    done: set[str] = set()
    while todo:
        path = todo.pop()
        if path in done or not (ROOT / path).exists():
            continue
        done.add(path)
        content = _content(path)
        if isinstance(content, str) and path.endswith(".md"):
            todo += _outward(path, content)
        files.append(File.generated(config, _uri(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link of the repository to the page of the site."""
    here = page.file.src_uri
    path = here.removeprefix(f"{SHOWN}/") if here.startswith(f"{SHOWN}/") else f"docs/{here}"

    def led(link: re.Match[str]) -> str:
        target, _, anchor = link[2].partition("#")
        found = _resolved(path, target)
        if found is None or files.get_file_from_path(_uri(found)) is None:
            return link[0]
        there = posixpath.relpath(_uri(found), posixpath.dirname(here) or ".")
        line = re.fullmatch(r"L\d+(-L\d+)?", anchor)  # GitHub's anchor of a line of code; the site has none
        return f"{link[1]}{there}{f'#{anchor}' if anchor and not line else ''}{link[3]}"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(led, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(led, markdown[end:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name things as ``:class:`Name```; the site shows the name."""
    return re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", html)


def on_post_build(config: MkDocsConfig) -> None:
    """Check every page and style sheet.

    Raises:
        PluginError: one of them loads something from elsewhere, or has a Mermaid element, for which
            Material does.
    """
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css", ".svg") and (found := _OUTSIDE.search(_without_code(file))):
            raise PluginError(f"{file.relative_to(config.site_dir)} loads from outside: {found[0]}")


def _without_code(file: Path) -> str:
    return re.sub(r"<code\b.*?</code>", "", file.read_text(), flags=re.DOTALL)


def _outward(path: str, text: str) -> Iterator[str]:
    """What a page links to outside of ``docs/``, relative to the repository."""
    for link in _LINK.finditer(_FENCE.sub("", text)):
        found = _resolved(path, link[2].partition("#")[0])
        if found is not None and not found.startswith(("docs/", "..")):
            yield found


def _resolved(path: str, target: str) -> str | None:
    """The repository's path of a link in the file ``path``; None for a URL and for an anchor of the same file."""
    if not target or re.match(r"[a-z]+:|/", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _uri(path: str) -> str:
    """The site's source file for a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{SHOWN}/{path}" if path.endswith((".md", *PICTURES)) else f"{SHOWN}/{path}.md"


def _content(path: str) -> str | bytes:
    """A file as a page: Markdown as it is, code in a block, a folder as a list. A picture stays one."""
    file = ROOT / path
    if path.endswith(PICTURES):
        return file.read_bytes()
    if path.endswith(".md"):
        return file.read_text()
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    if file.is_dir():
        names = sorted(one.name for one in file.iterdir() if not one.name.startswith((".", "__")))
        return head + "".join(f"- `{name}`\n" for name in names)
    language = LANGUAGES.get(file.suffix.removeprefix("."), "text")
    return f"{head}~~~~ {language}\n{file.read_text()}~~~~\n"

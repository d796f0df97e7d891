"""Checks the Python version, the installed packages and the settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

from iai_mcp.config import world_readable
from iai_mcp.maintenance.checks.check import Check, State

__all__ = ["packages", "python", "secrets"]

PACKAGES = ("lancedb", "pyarrow", "redis", "rq")


def python() -> Iterator[Check]:
    """Check the version of Python."""
    fits = sys.version_info >= (3, 11)
    message = f"{sys.version.split()[0]} on {sys.platform}"
    yield Check("python", State.PASS if fits else State.FAIL, message, "" if fits else "install 3.11 or newer")


def packages() -> Iterator[Check]:
    """Check that the packages that matter most are installed and new enough."""
    wanted = _required_versions()
    for package in PACKAGES:
        name, required = f"package {package}", wanted.get(package, "0")
        remedy = f"pip install '{package}>={required}'"
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Check(name, State.FAIL, "not installed", remedy)
            continue
        fits = _numbers(found) >= _numbers(required)
        message = found if fits else f"{found} is older than {required}"
        yield Check(name, State.PASS if fits else State.FAIL, message, "" if fits else remedy)


def _required_versions() -> dict[str, str]:
    """The versions that the metadata of this package requires, by package."""
    lines = [line.split(";")[0] for line in metadata.requires("iai-mcp") or []]
    pairs = [line.partition(">=") for line in lines if ">=" in line]
    return {name.split("[")[0].strip(): required.split(",")[0].strip() for name, _, required in pairs}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def secrets() -> Iterator[Check]:
    """Check that only this user can read the files that hold secrets."""
    if opened := world_readable():
        remedy = f"chmod 600 {' '.join(map(str, opened))}"
        yield Check("settings", State.WARN, f"every user may read the secret in {opened[0]}", remedy)
    else:
        yield Check("settings", State.PASS, "every environment variable can be read")

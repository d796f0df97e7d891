"""What there is to run: ``nox -s fast``, ``nox -s test lint types docs``. CONTRIBUTING.md describes each session.

Sessions run in the current environment, with what ``pip install -e '.[test,dev,docs]'`` put there. Arguments after
``--`` go to the tool.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "fast"]
nox.options.stop_on_first_error = True

QUICK_BENCHMARKS = ("startup", "enqueue", "drain", "redis_enqueue", "redis_drain")


@nox.session
def test(session: nox.Session) -> None:
    """All tests, with real servers and workers."""
    session.run("pytest", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """The tests that start no other process: under a minute."""
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """All tests with branch coverage of both packages, subprocesses included, and the report."""
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and format, and the import layers."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, strictly: a broken link or a page that loads from elsewhere fails."""
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """A quick run of the main benchmarks, or of those that are named."""
    for name in session.posargs or QUICK_BENCHMARKS:
        session.run("python", f"benchmarks/{name}.py", "--quick")


@nox.session
def chaos(session: nox.Session) -> None:
    """Random faults against real Redis and workers; two minutes unless told otherwise."""
    session.run("python", "-m", "tests.chaos", *(session.posargs or ("--minutes", "2", "--seed", "11")))

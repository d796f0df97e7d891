"""The driver of long runs, briefly: a good deployment ends with a table and 0, a violation with 1."""

from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT


def test_a_short_run_is_clean() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "0.1", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 1: python -m tests.chaos --minutes 0.1 --seed 1 --workers 2")
    *_, last = done.stdout.strip().splitlines()
    assert last.count("|") == 12


def test_a_recall_over_the_budget_is_a_violation() -> None:
    """A budget that nothing can keep, whatever the control lost meanwhile."""
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "0.01", "--seed", "1", "--budget-ms", "-1000"]
    command += ["--only", "scripts flushed", "--workers", "1", "--producers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stdout + done.stderr

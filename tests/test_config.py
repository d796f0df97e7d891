"""Settings: ``iai-mcp config`` shows each with its source and never a secret; the code names only real ones."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.errors import ConfigError
from tests.support import ROOT


def config(*args: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
    done = CliRunner().invoke(app, ["config", *args], env=env, prog_name="iai-mcp")
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_each_setting_says_where_it_comes_from_and_secrets_stay_hidden(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sesame-key\n")
    env = {
        "IAI_MCP_EMBEDDER_KEY_FILE": str(file),
        "IAI_MCP_REDIS_URL": "redis://ada:sesame-redis@db:6380/1",
        "IAI_MCP_TOKEN": "sesame-token",
        "IAI_MCP_SIGNING_KEY": f"sesame-{'1' * 32},sesame-{'2' * 32}",
        "IAI_MCP_LEASE": "5",
    }
    found = json.loads(config("--json", env=env).stdout)
    assert found["IAI_MCP_EMBEDDER_KEY"] == {"value": "***", "source": str(file)}
    assert found["IAI_MCP_REDIS_URL"] == {"value": "redis://ada:***@db:6380/1", "source": "environment"}
    assert found["IAI_MCP_TOKEN"] == {"value": "***", "source": "environment"}
    assert found["IAI_MCP_SIGNING_KEY"] == {"value": "***", "source": "environment"}
    assert "sesame" not in repr(Settings.load(env))
    assert found["IAI_MCP_LEASE"] == {"value": 5.0, "source": "environment"}
    assert found["IAI_MCP_STORE"] == {"value": str(home / ".iai-mcp" / "store"), "source": "default"}
    shown = config(env=env)
    assert shown.stderr == ""
    assert "sesame" not in shown.stdout + json.dumps(found)
    assert "redis://ada:***@db:6380/1" in shown.stdout


def test_a_misspelled_setting_is_pointed_out() -> None:
    errors = config(env={"IAI_MCP_REDIS_ULR": "x", "IAI_MCP_TOKEN_FILE": ""}).stderr
    assert errors == "note: IAI_MCP_REDIS_ULR is not a setting: did you mean IAI_MCP_REDIS_URL?\n"


def test_an_unusable_value_ends_in_one_line() -> None:
    assert config(code=2, env={"IAI_MCP_LEASE": "long"}).stderr == "error: IAI_MCP_LEASE='long' is not a number\n"
    assert "give one of them" in config("--json", "--markdown", code=2).stderr


def test_the_code_names_only_variables_that_are_settings() -> None:
    """Messages and commands spell variables out; a renamed setting must not leave an old name behind."""
    known = {spec.metadata["env"] for spec in fields(Settings)}
    known |= {f"{spec.metadata['env']}_FILE" for spec in fields(Settings) if spec.metadata["secret"]}
    for folder in ("iai_mcp", "workers", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            named = {*re.findall(r"IAI_MCP_[A-Z_]*[A-Z]\b", path.read_text())}
            assert named <= known | {"IAI_MCP_PUBLIC_HOST"}, path  # compose.yaml has this one for itself


KEYS = ["a" * 32, "b" * 40]


@pytest.mark.parametrize("given", [",".join(KEYS), "\n".join(KEYS), f" {KEYS[0]} , {KEYS[1]}\n"])
def test_a_signing_key_may_be_several(tmp_path: Path, given: str) -> None:
    file = tmp_path / "key"
    file.write_text(given)
    assert Settings.load({"IAI_MCP_SIGNING_KEY": given}).signing_keys == tuple(KEYS)
    assert Settings.load({"IAI_MCP_SIGNING_KEY_FILE": str(file)}).signing_keys == tuple(KEYS)
    assert Settings.load({}).signing_keys == ()


@pytest.mark.parametrize("given", ["sesame", "a" * 31, f"{KEYS[0]},sesame", f"{KEYS[0]},", ",", " "])
def test_a_short_or_empty_signing_key_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError, match=r"IAI_MCP_SIGNING_KEY .* `openssl rand -hex 32`") as refused:
        Settings.load({"IAI_MCP_SIGNING_KEY": given})
    assert "sesame" not in str(refused.value)

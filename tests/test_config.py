"""``iai-mcp config``: what is set and where that comes from, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app


def config(*args: str, code: int = 0, **env: str) -> Result:
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
        "IAI_MCP_LEASE": "5",
    }
    found = json.loads(config("--json", **env).stdout)
    assert found["IAI_MCP_EMBEDDER_KEY"] == {"value": "***", "source": str(file)}
    assert found["IAI_MCP_REDIS_URL"] == {"value": "redis://ada:***@db:6380/1", "source": "environment"}
    assert found["IAI_MCP_TOKEN"] == {"value": "***", "source": "environment"}
    assert found["IAI_MCP_LEASE"] == {"value": 5.0, "source": "environment"}
    assert found["IAI_MCP_STORE"] == {"value": str(home / ".iai-mcp" / "store"), "source": "default"}
    said = config(**env)
    assert said.stderr == ""
    assert "sesame" not in said.stdout + json.dumps(found)
    assert "redis://ada:***@db:6380/1" in said.stdout


def test_what_is_no_setting_is_pointed_out() -> None:
    told = config(IAI_MCP_REDIS_ULR="x", IAI_MCP_TOKEN_FILE="").stderr
    assert told == "note: IAI_MCP_REDIS_ULR is no setting: did you mean IAI_MCP_REDIS_URL?\n"


def test_what_cannot_be_used_is_one_line() -> None:
    assert config(code=2, IAI_MCP_LEASE="long").stderr == "error: IAI_MCP_LEASE='long' is not a number\n"
    assert "give one of them" in config("--json", "--markdown", code=2).stderr

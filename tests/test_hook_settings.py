"""The settings for Claude Code that `hook --print-settings` prints, and the commands of docs/hooks.md that use them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetctl.commands import hook_settings
from harness.daemon import CTL

ROOT = Path(__file__).parents[1]
SCRIPT = Path(os.path.abspath(sys.executable)).parent / "fluxbudgetctl"


def settings(*command: str, path: str = "/nowhere") -> Any:
    made = subprocess.run(
        [*command, "hook", "--print-settings"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.startswith('{\n  "hooks": {\n    "SessionStart"')
    return json.loads(made.stdout)


def test_settings_call_the_installed_program(tmp_path: Path) -> None:
    """By name if $PATH leads to it, else by its path, quoted for the shell."""
    folder = tmp_path / "with space"
    folder.mkdir()
    link = folder / "fluxbudgetctl"
    link.symlink_to(SCRIPT)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(SCRIPT, other / "fluxbudgetctl")
    by_path = shlex.quote(str(SCRIPT.resolve()))
    for command, path, expected in (
        (str(SCRIPT), str(SCRIPT.parent), "fluxbudgetctl"),
        (str(link), str(SCRIPT.parent), "fluxbudgetctl"),
        (str(SCRIPT), "/nowhere", by_path),
        (str(SCRIPT), str(other), by_path),
        (str(link), "/nowhere", by_path),
    ):
        found = settings(command, path=path)
        assert found["statusLine"] == {"type": "command", "command": f"{expected} statusline"}, (command, path)
        assert found["hooks"]["SessionEnd"] == [
            {"hooks": [{"type": "command", "command": f"{expected} hook", "timeout": 1}]}
        ]
    assert settings(*CTL)["statusLine"]["command"] == shlex.join([*CTL, "statusline"])


def test_documented_settings_are_those_that_are_printed() -> None:
    shown = json.loads(blocks("json")[0])
    assert shown == settings(str(SCRIPT), path=str(SCRIPT.parent))
    assert shown["hooks"]["PreToolUse"][0]["matcher"] == "Agent|Task"


def blocks(kind: str) -> list[str]:
    """Return the document's code blocks of this kind."""
    pieces = (ROOT / "docs" / "hooks.md").read_text().split("```")[1::2]
    return [piece.removeprefix(kind + "\n") for piece in pieces if piece.startswith(kind + "\n")]


needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="the document's commands need jq")


class ClaudesSettings:
    """Claude Code's settings in a temporary home directory, and the commands of docs/hooks.md that change them."""

    def __init__(self, home: Path) -> None:
        self.place = home / ".claude" / "settings.json"
        self.ours = settings(str(SCRIPT), path=str(SCRIPT.parent))
        self._environ = {**os.environ, "HOME": str(home), "PATH": f"{SCRIPT.parent}:/usr/bin:/bin"}
        self._install, self._remove = blocks("bash")[:2]

    def write(self, value: object) -> None:
        self.place.parent.mkdir(exist_ok=True)
        self.place.write_text(json.dumps(value))

    def install(self) -> Any:
        return self._run(self._install)

    def remove(self) -> Any:
        return self._run(self._remove)

    def _run(self, script: str) -> Any:
        subprocess.run(["bash", "-e", "-c", script], env=self._environ, check=True)
        return json.loads(self.place.read_text())


@needs_jq
def test_documented_install_and_removal(tmp_path: Path) -> None:
    """Installing twice changes nothing; other settings stay in their order; removing restores the original."""
    claudes = ClaudesSettings(tmp_path)
    mine = {"hooks": [{"type": "command", "command": "mine"}]}
    bash = {"matcher": "Bash", **mine}
    before = {"model": "m", "hooks": {"PreToolUse": [bash], "Stop": [mine]}}
    claudes.write(before)
    installed = claudes.install()
    ours = claudes.ours
    assert installed["model"] == "m"
    assert installed["statusLine"] == ours["statusLine"]
    assert installed["hooks"]["Stop"] == [mine]
    assert installed["hooks"]["PreToolUse"] == [bash, *ours["hooks"]["PreToolUse"]]
    assert installed["hooks"]["SessionEnd"] == ours["hooks"]["SessionEnd"]
    assert claudes.install() == installed
    assert claudes.remove() == before
    claudes.place.unlink()
    assert claudes.install() == ours
    assert claudes.remove() == {}


@needs_jq
@pytest.mark.parametrize(
    "program", ["/old/bin/fluxbudgetctl", "'/old path/fluxbudgetctl'", "/usr/bin/python3 -m fluxbudgetctl"]
)
def test_earlier_installation_is_replaced_and_removed(tmp_path: Path, program: str) -> None:
    """Whatever its path and events. Other hooks stay."""
    claudes = ClaudesSettings(tmp_path)
    mine = {"type": "command", "command": "echo fluxbudgetctl hook; mine"}
    old = json.loads(json.dumps(hook_settings.settings(program)))
    old["hooks"]["Stop"] = old["hooks"]["SubagentStop"]
    old["hooks"]["SessionEnd"][0]["hooks"].append(mine)
    old["statusLine"]["padding"] = 0
    claudes.write(old)
    ours = claudes.ours
    assert claudes.install() == {
        "hooks": {**ours["hooks"], "SessionEnd": [{"hooks": [mine]}, *ours["hooks"]["SessionEnd"]]},
        "statusLine": {**ours["statusLine"], "padding": 0},
    }
    claudes.write(old)
    assert claudes.remove() == {"hooks": {"SessionEnd": [{"hooks": [mine]}]}}


@needs_jq
@pytest.mark.parametrize(
    "command",
    ["mine", "mine; fluxbudgetctl statusline", "'/my' x; /bin/fluxbudgetctl statusline", "my-fluxbudgetctl statusline"],
)
def test_other_status_line_stays(tmp_path: Path, command: str) -> None:
    """Even one that calls ours for a part of its line."""
    claudes = ClaudesSettings(tmp_path)
    mine = {"statusLine": {"type": "command", "command": command}}
    claudes.write(mine)
    assert claudes.install()["statusLine"] == mine["statusLine"]
    assert claudes.remove() == mine

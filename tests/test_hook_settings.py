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


def settings(*command: str, path: str = "/nowhere", flags: tuple[str, ...] = ()) -> Any:
    made = subprocess.run(
        [*command, "hook", "--print-settings", *flags],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.startswith('{\n  "hooks": {\n    "SessionStart"')
    return json.loads(made.stdout)


def test_settings_call_the_installed_program(tmp_path: Path) -> None:
    """They call it by name if $PATH leads to it, else by its path. Only the status line's command is for a shell."""
    folder = tmp_path / "with space"
    folder.mkdir()
    link = folder / "fluxbudgetctl"
    link.symlink_to(SCRIPT)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(SCRIPT, other / "fluxbudgetctl")
    by_path = str(SCRIPT.resolve())
    for command, path, expected in (
        (str(SCRIPT), str(SCRIPT.parent), "fluxbudgetctl"),
        (str(link), str(SCRIPT.parent), "fluxbudgetctl"),
        (str(SCRIPT), "/nowhere", by_path),
        (str(SCRIPT), str(other), by_path),
        (str(link), "/nowhere", by_path),
    ):
        found = settings(command, path=path)
        line = {"type": "command", "command": f"{shlex.quote(expected)} statusline", "refreshInterval": 10}
        assert found["statusLine"] == line, (command, path)
        end = {"type": "command", "command": expected, "args": ["hook"], "timeout": 1, "async": True}
        assert found["hooks"]["SessionEnd"] == [{"hooks": [end]}]
    found = settings(*CTL)
    assert found["statusLine"]["command"] == shlex.join([*CTL, "statusline"])
    (end,) = found["hooks"]["SessionEnd"][0]["hooks"]
    assert [end["command"], *end["args"]] == [*CTL, "hook"]


def test_hooks_that_are_installed() -> None:
    """A launch has more time, because it may wait for a transcript's line; nothing waits for an end."""
    hooks = settings(str(SCRIPT))["hooks"]
    assert list(hooks) == [
        *("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolBatch", "SubagentStart", "SubagentStop"),
        *("Stop", "StopFailure", "SessionEnd"),
    ]
    assert {event for event in hooks if hooks[event][0]["hooks"][0].get("async")} == {"SubagentStop", "SessionEnd"}
    assert {event for event in hooks if "matcher" in hooks[event][0]} == {"PreToolUse"}
    assert hooks["PreToolUse"][0]["matcher"] == "Agent|Task|Workflow|SendMessage"
    assert hooks["PreToolUse"][0]["hooks"][0]["args"] == ["hook", "--timeout", "0.5"]


def test_guard_asks_before_limits_and_their_files_are_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "CLAUDE_CONFIG_DIR", "FLUXBUDGET_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    plain, guarded = settings(str(SCRIPT)), settings(str(SCRIPT), flags=("--guard",))
    assert {**guarded, "permissions": None} == {**plain, "permissions": None}
    program = shlex.quote(str(SCRIPT.resolve()))
    verbs, home, runtime = ("run", "allow", "service"), f"/{tmp_path}/HOME", f"/{tmp_path}/XDG_RUNTIME_DIR"
    assert guarded["permissions"] == {
        "ask": [
            *(f"Bash({name} {verb}:*)" for name in ("fluxbudgetctl", program) for verb in verbs),
            f"Edit({home}/.config/fluxbudget/**)",
            f"Edit({home}/.local/state/fluxbudget/**)",
            f"Edit({runtime}/fluxbudget/hard/**)",
            f"Edit({runtime}/fluxbudget/state/**)",
            f"Edit({home}/.claude/settings*.json)",
            "Edit(.claude/settings*.json)",
            "Edit(.claude/flux-drive-budget.yaml)",
        ]
    }
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", "/one, /two")
    monkeypatch.setenv("FLUXBUDGET_SOCKET", "/run/mine/s")
    rules = settings(str(SCRIPT), path=str(SCRIPT.parent), flags=("--guard",))["permissions"]["ask"]
    assert rules[:4] == [*(f"Bash(fluxbudgetctl {verb}:*)" for verb in verbs), "Edit(//c/fluxbudget/**)"]
    assert rules[4:8] == [
        f"Edit({home}/.local/state/fluxbudget/**)",
        "Edit(//run/mine/hard/**)",
        "Edit(//run/mine/state/**)",
        "Edit(//one/settings*.json)",
    ]


def test_guard_belongs_to_the_settings() -> None:
    result = subprocess.run([SCRIPT, "hook", "--guard"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (64, "")
    assert "--guard belongs to --print-settings" in result.stderr


def test_documented_settings_are_those_that_are_printed() -> None:
    shown = json.loads(blocks("json")[0])
    assert shown == settings(str(SCRIPT), path=str(SCRIPT.parent))


def blocks(kind: str) -> list[str]:
    """Return the document's code blocks of this kind."""
    pieces = (ROOT / "docs" / "hooks.md").read_text().split("```")[1::2]
    return [piece.removeprefix(kind + "\n") for piece in pieces if piece.startswith(kind + "\n")]


needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="the document's commands need jq")


class ClaudesSettings:
    """Claude Code's settings in a temporary home directory, and the commands of docs/hooks.md that change them."""

    def __init__(self, home: Path) -> None:
        self.place = home / ".claude" / "settings.json"
        self.environ = {**os.environ, "HOME": str(home), "PATH": f"{SCRIPT.parent}:/usr/bin:/bin"}
        self.ours = settings(str(SCRIPT), path=str(SCRIPT.parent))
        self._install, self._remove, self.older, self.strict = blocks("bash")[:4]

    def write(self, value: object) -> None:
        self.place.parent.mkdir(exist_ok=True)
        self.place.write_text(json.dumps(value))

    def install(self, flag: str = "--print-settings") -> Any:
        return self._run(self._install.replace("--print-settings", flag))

    def remove(self) -> Any:
        return self._run(self._remove)

    def _run(self, script: str) -> Any:
        subprocess.run(["bash", "-e", "-c", script], env=self.environ, check=True)
        return json.loads(self.place.read_text())


@needs_jq
def test_documented_install_and_removal(tmp_path: Path) -> None:
    """Installing twice changes nothing; other settings stay in their order; removing restores the original."""
    claudes = ClaudesSettings(tmp_path)
    mine = {"hooks": [{"type": "command", "command": "mine"}]}
    bash = {"matcher": "Bash", **mine}
    before = {"model": "m", "hooks": {"PreToolUse": [bash], "Notification": [mine]}}
    claudes.write(before)
    installed = claudes.install()
    ours = claudes.ours
    assert installed["model"] == "m"
    assert installed["statusLine"] == ours["statusLine"]
    assert installed["hooks"]["Notification"] == [mine]
    assert installed["hooks"]["PreToolUse"] == [bash, *ours["hooks"]["PreToolUse"]]
    assert installed["hooks"]["SessionEnd"] == ours["hooks"]["SessionEnd"]
    assert claudes.install() == installed
    assert claudes.remove() == before
    claudes.place.unlink()
    assert claudes.install() == ours
    assert claudes.remove() == {}


@needs_jq
@pytest.mark.parametrize("is_in_shell", [True, False])
@pytest.mark.parametrize(
    "words", [["/old/bin/fluxbudgetctl"], ["/old path/fluxbudgetctl"], ["/usr/bin/python3", "-m", "fluxbudgetctl"]]
)
def test_earlier_installation_is_replaced_and_removed(tmp_path: Path, words: list[str], is_in_shell: bool) -> None:
    """Its path and events do not matter. Other hooks stay."""
    claudes = ClaudesSettings(tmp_path)
    mine = {"type": "command", "command": "echo fluxbudgetctl hook; mine"}
    old = json.loads(json.dumps(hook_settings.settings(words)))
    if is_in_shell:  # as before 0.2.0
        for (entry,) in old["hooks"].values():
            entry["hooks"] = [{"type": "command", "command": f"{shlex.join(words)} hook", "timeout": 2}]
    old["hooks"]["Notification"] = old["hooks"]["SubagentStop"]
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
def test_documented_installation_with_a_guard(tmp_path: Path) -> None:
    """Rules that are there already are not added again; removing leaves the others."""
    claudes = ClaudesSettings(tmp_path)
    before = {"permissions": {"ask": ["Bash(mine)"], "deny": ["Read(x)"]}}
    claudes.write(before)
    installed = claudes.install("--print-settings --guard")
    assert installed["permissions"]["deny"] == ["Read(x)"]
    first, *rules = installed["permissions"]["ask"]
    assert (first, rules[0], len(rules)) == ("Bash(mine)", "Bash(fluxbudgetctl run:*)", 10)
    assert claudes.install("--print-settings --guard") == installed
    assert claudes.remove() == before
    claudes.write({})
    claudes.install("--print-settings --guard")
    assert claudes.remove() == {}


@needs_jq
def test_documented_settings_for_older_versions(tmp_path: Path) -> None:
    """Older versions do not know `args`. Installing the usual settings replaces these."""
    claudes = ClaudesSettings(tmp_path)
    made = subprocess.run(["bash", "-e", "-c", claudes.older], env=claudes.environ, capture_output=True, check=True)
    older = json.loads(made.stdout)
    (launch,) = older["hooks"]["PreToolUse"][0]["hooks"]
    assert launch == {"type": "command", "command": "fluxbudgetctl hook --timeout 0.5", "timeout": 2}
    claudes.write(older)
    assert claudes.install() == claudes.ours


@needs_jq
def test_documented_settings_that_block_without_the_program(tmp_path: Path) -> None:
    claudes = ClaudesSettings(tmp_path)
    made = subprocess.run(["bash", "-e", "-c", claudes.strict], env=claudes.environ, capture_output=True, check=True)
    hooks = json.loads(made.stdout)["hooks"]
    blocking = {event for event in hooks if hooks[event][0]["hooks"][0].get("onFailure") == "block"}
    assert blocking == {"UserPromptSubmit", "PreToolUse", "PostToolBatch"}
    for event in blocking:
        del hooks[event][0]["hooks"][0]["onFailure"]
    assert hooks == claudes.ours["hooks"]


@needs_jq
@pytest.mark.parametrize(
    "command",
    ["mine", "mine; fluxbudgetctl statusline", "'/my' x; /bin/fluxbudgetctl statusline", "my-fluxbudgetctl statusline"],
)
def test_other_status_line_stays(tmp_path: Path, command: str) -> None:
    """This includes one that calls ours for a part of its line."""
    claudes = ClaudesSettings(tmp_path)
    mine = {"statusLine": {"type": "command", "command": command}}
    claudes.write(mine)
    assert claudes.install()["statusLine"] == mine["statusLine"]
    assert claudes.remove() == mine

"""What `hook --print-settings --guard` and the recipe for `onFailure` do in the real Claude Code."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.claude_code.script import bash, says, tool
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude


def merge(stage: Stage, **changes: Any) -> None:
    """Change Claude Code's settings."""
    place = stage.claude.directory / "settings.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def guarded(stage: Stage) -> Any:
    """Return the permission rules."""
    printed = subprocess.run(
        ["fluxbudgetctl", "hook", "--print-settings", "--guard"],
        env=stage.claude.environ,
        capture_output=True,
        check=True,
    )
    return json.loads(printed.stdout)["permissions"]


def are_refused(stage: Stage, calls: int) -> list[bool]:
    """Return whether each of the last tool calls was refused."""
    contents = [message["content"] for message in stage.api.responses[-1].request["messages"]]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return [bool(block.get("is_error")) for block in blocks if block["type"] == "tool_result"][-calls:]


def test_guard_asks_before_limits_are_changed(stage: Stage) -> None:
    """In print mode no one is there to answer, so these commands are refused. Other commands are not.

    The rules are no boundary: another program may run the commands.
    """
    merge(stage, permissions=guarded(stage))
    calls = (f"run set --run {stage.run} --budget 5", "allow", "service uninstall", "run finish", "remaining", "status")
    commands = [f"fluxbudgetctl {call}" for call in calls]
    commands += [f"cd / && {commands[0]}", f"bash -c 'fluxbudgetctl run set --run {stage.run} --budget 9000000'"]
    stage.play(stage.script.add("lifts", says("Lifts.", *map(bash, commands)), says("Done.")))
    assert are_refused(stage, len(commands)) == [True, True, True, True, False, False, True, False]
    assert stage.home.spend(stage.run).budget == 9_000_000


def test_guard_asks_before_files_are_changed(stage: Stage) -> None:
    """It asks for both Edit and Write, even where edits need no permission."""
    merge(stage, permissions=guarded(stage))
    project, claude = stage.home.project, stage.claude.directory
    forbidden = [
        stage.home.root / ".config" / "fluxbudget" / "config.toml",
        stage.home.socket.parent / "state" / "scopes" / "x",
        stage.home.socket.parent / "hard" / "x",
        claude / "settings.json",
        project / ".claude" / "settings.local.json",
        project / ".claude" / "flux-drive-budget.yaml",
    ]
    allowed = project / "notes.txt"
    for path in (*forbidden, allowed):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("old")
    before = {path: path.read_text() for path in forbidden}
    paths = [*forbidden, allowed]
    reads = [tool("Read", file_path=str(path)) for path in paths]
    writes = [tool("Write", file_path=str(path), content="new") for path in paths]
    edits = [tool("Edit", file_path=str(path), old_string=_first_line(path), new_string="new") for path in forbidden]
    stage.play(
        stage.script.add("edits", says("Reads.", *reads), says("Edits.", *edits, *writes), says("Done.")),
        *("--permission-mode", "acceptEdits", "--allowedTools", "Read", "--add-dir", str(stage.home.root)),
    )
    assert are_refused(stage, 2 * len(forbidden) + 1) == [True] * (2 * len(forbidden)) + [False]
    assert {path: path.read_text() for path in forbidden} == before
    assert allowed.read_text() == "new"


def _first_line(path: Path) -> str:
    return path.read_text().splitlines()[0]


def test_hook_that_cannot_run_blocks_if_it_is_asked_to(stage: Stage) -> None:
    """The recipe of docs/hooks.md. Without it, Claude Code goes on."""
    hooks = json.loads((stage.claude.directory / "settings.json").read_text())["hooks"]
    missing = {event: json.loads(json.dumps(entries)) for event, entries in hooks.items()}
    for (entry,) in missing.values():
        entry["hooks"][0]["command"] = str(stage.home.root / "missing")
    merge(stage, hooks=missing)
    prompt = stage.script.add("hello", says("Hello."))
    stage.claude.run(prompt)
    assert len(stage.api.responses) == 1
    missing["UserPromptSubmit"][0]["hooks"][0]["onFailure"] = "block"
    merge(stage, hooks=missing)
    stage.claude.run(prompt)
    assert len(stage.api.responses) == 1

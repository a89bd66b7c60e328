"""Which run a directory means, at a real daemon: the nearest; a worktree's main checkout; what happens in a tie."""

import json
from pathlib import Path
from typing import Any

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home
from harness.hooks import SILENT, Claude, HookOutput, attached_sessions, launch_input, write_usage
from harness.worktrees import add_worktree

STATUS_LINE = ("statusline", "--timeout", "20")


def start(home: Home, name: str, directory: Path, **fields: Any) -> None:
    answer = home.ask(messages.RunStart(project_dir=str(directory), id=name, wait_ms=30_000, **fields))
    assert isinstance(answer, messages.RunAnswer), answer


def made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def run_at(home: Home, directory: Path) -> str:
    """Return the run that `remaining` answers for in a directory; "" if there is none."""
    answer = home.ask(messages.Remaining(hints=messages.Hints(cwd=str(directory))))
    if isinstance(answer, messages.ErrorAnswer):
        assert answer.error.code == "no_run", answer
        return ""
    assert isinstance(answer, messages.RemainingAnswer), answer
    return answer.run


# --- the nearest directory


def test_nearest_run_applies(home: Home, daemon: Daemon) -> None:
    """When it ends, the next one above does."""
    deep = made(home.project / "a" / "b" / "c")
    start(home, "outer", home.project, enforcement="hard")
    start(home, "inner", home.project / "a" / "b")
    found = [run_at(home, place) for place in (deep, deep.parent, deep.parent.parent, home.project, home.root)]
    assert found == ["inner", "inner", "outer", "outer", ""]
    assert "tied" not in home.json("remaining", "--run", "inner")
    home.ok("run", "finish", "--run", "inner")
    assert run_at(home, deep) == "outer"


def test_run_with_a_scope_is_skipped_if_a_bead_is_set(home: Home, daemon: Daemon) -> None:
    """A sprint without a run must not get the numbers of another sprint, but those of a run above."""
    start(home, "outer", home.project)
    start(home, "inner", made(home.project / "a"), scope="b-1")
    hints = messages.Hints(cwd=str(home.project / "a"), scope="b-2")
    answer = home.ask(messages.Remaining(hints=hints))
    assert isinstance(answer, messages.RemainingAnswer), answer
    assert answer.run == "outer"


def test_worktree_belongs_to_its_main_checkout(home: Home, daemon: Daemon) -> None:
    """This holds for commands, hooks and the status line. A run of the worktree itself is nearer."""
    made(home.project / "src")
    tree = add_worktree(made(home.project / ".git"), home.root / "trees" / "x")
    start(home, "main", home.project)
    assert run_at(home, made(tree / "src" / "deep")) == "main"
    assert "run main," in Claude(home, cwd=tree / "src").run("SessionStart", source="startup").context
    line = home.ctl(*STATUS_LINE, stdin=json.dumps({"session_id": "unknown", "cwd": str(tree)}), cwd=home.root)
    assert (line.returncode, line.stdout[:10]) == (0, "brainstorm"), line
    start(home, "part", home.project / "src")
    assert run_at(home, tree / "src" / "deep") == "part"
    start(home, "own", tree)
    assert [run_at(home, place) for place in (tree / "src", tree, home.project)] == ["own", "own", "main"]


def test_hostile_git_file_concerns_no_other_directory(home: Home, daemon: Daemon) -> None:
    start(home, "main", home.project)
    for number, target in enumerate(("/dev/zero", "/proc/kmsg", "loop")):
        (made(home.project / f"p{number}") / ".git").symlink_to(target)
        (home.project / f"p{number}" / "loop").symlink_to("loop")
        assert run_at(home, home.project / f"p{number}") == "main"
    assert daemon.status("VmRSS") < 200_000


# --- ties


def tie(home: Home, *, hard: int) -> None:
    """Start three runs in the project, of which some are hard; the first has the most left."""
    for number, name in enumerate(("a", "b", "c")):
        enforcement = "hard" if number < hard else "soft"
        start(home, name, home.project, token_budget=1000 - 100 * number, enforcement=enforcement)


def test_hard_run_with_the_least_left_is_enforced(home: Home, daemon: Daemon) -> None:
    """`check`, `remaining`, `env` and `triage` say so on stderr, and in JSON."""
    tie(home, hard=2)
    note = (
        "fluxbudgetctl: 3 active runs have this directory as their project (a, b, c);"
        " the hard one with the least left applies: b\n"
    )
    for command, output in (("remaining", "900\n"), ("check", "ok\n"), ("env", "export FLUX_BUDGET_REMAINING=900\n")):
        result = home.ctl(command)
        assert (result.returncode, result.stdout, result.stderr) == (0, output, note), command
    for command in ("remaining", "check"):
        found = home.json(command)
        assert (found["run"], found["tied"]) == ("b", ["a", "b", "c"])
    result = home.ctl("triage", stdin=json.dumps({"agents": []}))
    assert (result.returncode, json.loads(result.stdout)["sprint_remaining"]) == (0, 900), result
    assert "least left applies: b" in result.stderr
    home.ok("run", "attach", "--run", "a", "--session", "s1")
    write_usage(home, 950)
    assert home.ctl("remaining").stdout == "50\n"
    write_usage(home, 50, message="m2")
    result = home.ctl("check")
    assert (result.returncode, result.stdout) == (1, "budget_exceeded|brainstorm|1000/1000 billing tokens\n")
    assert home.ok("env") == "export FLUX_BUDGET_REMAINING=1"


def test_soft_runs_in_a_tie_are_not_chosen(home: Home, daemon: Daemon) -> None:
    tie(home, hard=0)
    for command in ("remaining", "check", "env"):
        result = home.ctl(command)
        assert result.returncode == 3, result
        assert f"3 active runs have {home.project} as their project: a, b, c" in result.stderr
    assert home.ctl("check", "--require").returncode == 1
    assert home.ctl("triage", stdin=json.dumps({"agents": []})).returncode == 3
    assert home.ok("remaining", environ={"FLUXBUDGET_RUN": "c"}) == "800"


def test_no_run_of_a_tie_is_changed(home: Home, daemon: Daemon) -> None:
    """A hard run is enforced, but what changes or shows one run needs its name."""
    tie(home, hard=1)
    for words in (
        ("run", "set", "--budget", "5"),
        ("run", "finish"),
        ("run", "show"),
        ("advance", "--from", "brainstorm"),
    ):
        result = home.ctl(*words)
        assert (result.returncode, result.stdout) == (3, ""), words
        assert "3 active runs have" in result.stderr, words


def test_tie_is_shown_where_it_begins_and_where_it_lasts(home: Home, daemon: Daemon) -> None:
    """`run start`, `status`, `doctor` and the status line show it."""
    assert home.ctl("run", "start", "--id", "a").stderr == ""
    result = home.ctl("run", "start", "--id", "b")
    assert (result.returncode, result.stdout) == (0, "b\n")
    assert "2 active runs now have this directory as their project (a, b)" in result.stderr
    assert home.ctl("run", "start", "--id", "b").stderr == ""
    assert home.json("run", "start", "--id", "c")["tied"] == ["a", "b", "c"]
    assert f"ambiguous: {home.project} is the project of 3 runs" in home.ok("status")
    doctor = home.ctl("doctor")
    assert doctor.returncode == 1
    assert f"3 active runs have {home.project} as their project: a, b, c" in doctor.stdout
    assert home.ok(*STATUS_LINE) == "no run: 3 runs here: a, b, c"
    assert home.ok(*STATUS_LINE, "--width", "15") == "no run: 3 runs "
    home.ok("run", "set", "--run", "b", "--enforcement", "hard")
    assert home.ok(*STATUS_LINE, "--no-colour") == "brainstorm ░░░░░░░░ 0/250k 0% (1 of 3 runs here)"
    for name in ("a", "b"):
        home.ok("run", "finish", "--run", name)
    assert home.ok(*STATUS_LINE, "--no-colour") == "brainstorm ░░░░░░░░ 0/250k 0%"
    assert "active runs have" not in home.ctl("doctor").stdout
    assert "ambiguous" not in home.ok("status")


def test_session_in_a_tie_joins_the_hard_run(home: Home, daemon: Daemon) -> None:
    """Its first answer says so: to the person with the way out, to the model without it."""
    tie(home, hard=1)
    claude = Claude(home)
    output = claude.call("UserPromptSubmit", prompt="hello")
    assert "3 active runs have this directory as their project (a, b, c)" in output.context
    assert "applies: a" in output.context
    assert "fluxbudgetctl" not in output.context
    assert "fluxbudgetctl run attach --run ID --session s1" in output.message
    assert claude.call("UserPromptSubmit", prompt="hello") == SILENT
    assert attached_sessions(home, "a") == {"s1": True}
    output = Claude(home, "s2").call("SessionStart", source="startup")
    assert output.context.startswith("fluxbudget: run a, phase brainstorm: spent 0 of 1 000 billing tokens (0 %)")
    assert "applies: a" in output.context
    write_usage(home, 1000)
    third = Claude(home, "s3").call("PreToolUse", tool_name="Agent", tool_input=launch_input("fd-quality"))
    assert (third.decision, third.context) == ("deny", "")
    assert "run attach" in third.message
    assert "run attach" not in third.reason


def test_session_in_a_tie_without_a_hard_run_joins_none(home: Home, daemon: Daemon) -> None:
    """It is told at its start, or once with a prompt, and again when other runs are tied."""
    tie(home, hard=0)
    claude = Claude(home)
    for event in ("SessionStart", "SessionStart"):
        output = claude.call(event, source="startup")
        assert f"3 active runs have {home.project} as their project (a, b, c)" in output.context
        assert "fluxbudgetctl" not in output.context
        assert "fluxbudgetctl run attach --run ID --session s1" in output.message
    assert claude.call("UserPromptSubmit") == claude.call("PostToolBatch") == SILENT
    other = Claude(home, "s2")
    assert "3 active runs" in other.call("PostToolBatch").context
    assert other.call("PostToolBatch") == other.call("PostToolBatch", agent_id="a1") == SILENT
    home.ok("run", "finish", "--run", "c")
    assert "2 active runs" in other.call("UserPromptSubmit").context
    assert other.call("PreToolUse", tool_name="Agent", tool_input=launch_input("fd-quality")) == SILENT
    home.ok("run", "finish", "--run", "b")
    assert other.call("UserPromptSubmit") == SILENT
    assert attached_sessions(home, "a") == {"s2": True}


def test_session_without_a_run_gets_one_line_once(home: Home, daemon: Daemon) -> None:
    claude = Claude(home)
    output = claude.call("SessionStart", source="startup")
    expected = (
        f"fluxbudget: no active run has {home.project} or a parent of it as its project, so this session has no budget."
        " To start one: fluxbudgetctl run start --budget N"
    )
    assert output == HookOutput(context=expected, message=expected)
    for source in ("compact", "resume", "clear", "startup"):
        assert claude.call("SessionStart", source=source) == SILENT, source
    assert claude.call("UserPromptSubmit") == SILENT
    output = Claude(home, "s2").call("SessionStart", source="startup", hints=messages.Hints(run="gone"))
    assert "there is no run with id ($FLUXBUDGET_RUN) 'gone'" in output.message

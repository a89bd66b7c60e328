"""Claude Code's hooks at a real daemon: sessions find their runs, and nothing breaks a session."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame
from harness.daemon import Daemon, Home, started
from harness.hooks import (
    EVENTS,
    LAUNCH,
    SILENT,
    WARNING_EVENTS,
    Claude,
    HookOutput,
    attached_sessions,
    is_warning,
    launch_input,
    parse_output,
    timestamp,
    write_usage,
)
from harness.interstat import Interstat
from harness.suspend import suspend
from harness.transcripts import Transcript

# --- a session begins


@pytest.mark.parametrize("source", ["startup", "resume", "clear", "compact"])
def test_session_is_attached_to_the_run_of_its_directory(home: Home, daemon: Daemon, source: str) -> None:
    """A subdirectory works, too. The model gets one line, and Bash commands get the run's variable."""
    run = started(home, token_budget=1000)
    deeper = home.project / "src" / "deep"
    deeper.mkdir(parents=True)
    write_usage(home, 300)
    place = home.root / "env"
    place.write_text("export A=1")
    claude = Claude(home, cwd=deeper)
    output = claude.run("SessionStart", environ={"CLAUDE_ENV_FILE": str(place)}, source=source)
    expected = f"fluxbudget: run {run}, phase brainstorm: spent 300 of 1 000 billing tokens (30 %), 700 left"
    assert output == HookOutput(context=expected)
    assert place.read_text() == f"export A=1\nexport FLUXBUDGET_RUN={run}\nexport INTERSTAT_TOKEN_BUDGET=1000\n"
    assert attached_sessions(home, run) == {"s1": True}


@pytest.mark.parametrize("cwd_is_a_link", [False, True])
def test_project_directory_may_be_a_symlink(home: Home, daemon: Daemon, cwd_is_a_link: bool) -> None:
    """Claude Code may report the link's path, while the hook runs in the target."""
    run = started(home)
    link = home.root / "link"
    link.symlink_to(home.project)
    claude = Claude(home, cwd=link if cwd_is_a_link else home.project)
    assert f"run {run}" in claude.run("SessionStart", source="startup").context


def test_environment_takes_precedence_over_the_directory(home: Home, daemon: Daemon) -> None:
    """The order is: the run's variable, the bead's variable, the run that the session belongs to, the directory."""
    here = started(home, id="here")
    for name, scope in (("named", None), ("bead", "b-1"), ("own", None)):
        answer = home.ask(messages.RunStart(project_dir="/elsewhere", id=name, scope=scope, wait_ms=30_000))
        assert isinstance(answer, messages.RunAnswer)
    home.ok("run", "attach", "--run", "own", "--session", "s4")
    for session, environ, run in (
        ("s1", {"FLUXBUDGET_RUN": "named", "CLAVAIN_BEAD_ID": "b-1"}, "named"),
        ("s2", {"CLAVAIN_BEAD_ID": "b-1"}, "bead"),
        ("s3", {"CLAVAIN_BEAD_ID": "b-unknown"}, here),
        ("s4", {}, "own"),
        ("s5", {}, here),
        ("s4", {"FLUXBUDGET_RUN": "named"}, "named"),
    ):
        output = Claude(home, session).run("SessionStart", environ=environ, source="startup")
        assert f"run {run}," in output.context, (session, output)
        assert attached_sessions(home, run)[session], session
    assert attached_sessions(home, "own") == {"s4": False}


def test_session_without_a_run_is_not_attached(home: Home, daemon: Daemon) -> None:
    """The cases: no run, an unknown name, an ended run, two runs in the directory. test_choosing.py tests the words."""
    place = home.root / "env"
    environ = {"CLAUDE_ENV_FILE": str(place)}
    claude = Claude(home)
    assert "no active run" in claude.run("SessionStart", environ=environ, source="startup").message
    run = started(home, token_budget=10)
    assert claude.run("SessionStart", environ={**environ, "FLUXBUDGET_RUN": "no-such"}, source="startup") == SILENT
    home.ok("run", "finish", "--run", run)
    assert claude.run("SessionStart", environ=environ, source="startup") == SILENT
    assert claude.run("SessionStart", environ={**environ, "FLUXBUDGET_RUN": run}, source="startup") == SILENT
    one, two = started(home, id="one"), started(home, id="two")
    write_usage(home, 10)
    assert "2 active runs" in claude.run("SessionStart", environ=environ, source="startup").message
    for event in WARNING_EVENTS:
        assert claude.call(event) == SILENT
    assert claude.launch() == SILENT
    assert attached_sessions(home, one) == attached_sessions(home, two) == attached_sessions(home, run) == {}
    assert not place.exists()


def test_directory_with_the_projects_name_as_prefix_is_outside(home: Home, daemon: Daemon) -> None:
    run = started(home)
    beside = home.root / "project2"
    beside.mkdir()
    assert "no active run" in Claude(home, cwd=beside).call("SessionStart", source="startup").message
    assert attached_sessions(home, run) == {}


def test_transcript_is_followed_under_any_name(home: Home, daemon: Daemon) -> None:
    run = started(home, token_budget=1000)
    claude = Claude(home)
    claude.transcript = home.root / "claude" / "projects" / "-elsewhere" / "another-name.jsonl"
    Transcript(Path(), "s1", path=claude.transcript).response("m1", tokens=(250, 0, 0, 0), sidechain=False)
    assert "250 of 1 000" in claude.run("SessionStart", source="resume").context
    Transcript(Path(), "s1", path=claude.transcript).response("m2", tokens=(100, 0, 0, 0), sidechain=False)
    assert home.spend(run).spent == 350


@pytest.mark.parametrize("path", ["relative.jsonl", "nul\0.jsonl", "", "/etc/passwd", "/dev/null.jsonl", 7])
def test_path_that_is_no_transcripts_is_not_followed(home: Home, daemon: Daemon, path: object) -> None:
    """The session is attached all the same."""
    run = started(home, token_budget=1000)
    claude = Claude(home)
    assert "0 of 1 000" in claude.call("SessionStart", source="startup", transcript_path=path).context
    assert home.spend(run).spent == 0
    assert attached_sessions(home, run) == {"s1": True}
    write_usage(home, 20)
    assert home.spend(run).spent == 20


def test_session_is_attached_at_its_first_prompt(home: Home, daemon: Daemon) -> None:
    """This covers sessions without a SessionStart hook. A detached session is not attached again."""
    run = started(home, token_budget=1000)
    claude = Claude(home)
    assert claude.call("UserPromptSubmit", prompt="hello") == SILENT
    assert attached_sessions(home, run) == {"s1": True}
    home.ok("run", "detach", "--session", "s1")
    assert claude.call("UserPromptSubmit", prompt="hello") == SILENT
    assert attached_sessions(home, run) == {"s1": False}


@pytest.mark.parametrize("environ", [None, "r1"])
def test_detached_session_is_left_alone(home: Home, daemon: Daemon, environ: str | None) -> None:
    """No hook warns it, refuses anything, reserves tokens or attaches it again, whatever its environment says."""
    run = started(home, id="r1", token_budget=1000, enforcement="hard")
    hints = messages.Hints(cwd=str(home.project), run=environ)
    for session in ("s1", "s2"):
        Claude(home, session).call("SessionStart", source="startup")
    write_usage(home, 990)
    home.ok("run", "detach", "--session", "s2")
    claude = Claude(home, "s2")
    for source in ("startup", "resume", "clear", "compact"):
        assert claude.call("SessionStart", hints=hints, source=source) == SILENT, source
    for event in WARNING_EVENTS:
        assert claude.call(event, hints=hints, agent_id="a1", agent_type="fd-quality") == SILENT, event
    assert claude.call("PreToolUse", hints=hints, **LAUNCH) == SILENT
    assert home.spend(run).reserved == 0
    assert attached_sessions(home, run) == {"s1": True, "s2": False}
    told = Claude(home).call("UserPromptSubmit", hints=hints)
    assert "80 %" in told.context
    assert "session s2 detached" in told.message
    assert Claude(home).call("PreToolUse", hints=hints, **LAUNCH).decision == "deny"


def test_moved_session_stays_in_its_new_run(home: Home, daemon: Daemon) -> None:
    """Its environment still names the first run, but that counts only for a new session."""
    started(home, id="a", token_budget=1_000_000, enforcement="hard")
    answer = home.ask(
        messages.RunStart(project_dir="/b", id="b", token_budget=50_000, enforcement="hard", wait_ms=30_000)
    )
    assert isinstance(answer, messages.RunAnswer)
    claude = Claude(home)
    hints = messages.Hints(cwd=str(home.project), run="a")
    assert "run a," in claude.call("SessionStart", hints=hints, source="startup").context
    home.ok("run", "attach", "--session", "s1", "--run", "b")
    write_usage(home, 50_000, at=timestamp())
    assert "run b " in claude.call("PreToolUse", hints=hints, **LAUNCH).reason
    assert "run b " in claude.call("UserPromptSubmit", hints=hints).reason
    assert {run: (home.spend(run).spent, home.spend(run).reserved) for run in "ab"} == {"a": (0, 0), "b": (50_000, 0)}
    for source in ("compact", "clear", "resume", "fork"):
        assert "run b," in claude.call("SessionStart", hints=hints, source=source).context
        assert (attached_sessions(home, "a"), attached_sessions(home, "b")) == ({"s1": False}, {"s1": True})
    assert "run b," in claude.call("SessionStart", hints=hints, source="startup").context, "it is hard"
    home.ok("run", "set", "--run", "b", "--enforcement", "soft")
    assert "run a," in claude.call("SessionStart", hints=hints, source="startup").context
    assert attached_sessions(home, "a") == {"s1": True}


def test_variable_of_an_ended_run_means_the_sessions_next_run(home: Home, daemon: Daemon) -> None:
    """A session keeps the variable that it was started with. Without a session, the variable means the ended run."""
    run = started(home, id="old", token_budget=100_000)
    Claude(home).call("SessionStart", source="startup")
    write_usage(home, 10_000)
    assert home.spend(run).spent == 10_000
    home.ok("run", "finish", "--run", run)
    variable = {"FLUXBUDGET_RUN": run}
    mine = {**variable, "CLAUDE_CODE_SESSION_ID": "s1"}
    assert home.ok("remaining", environ=mine) == "90000"
    started(home, id="next", token_budget=500_000)
    assert home.ok("remaining", environ=mine) == "90000"  # the session has not moved to it yet
    assert Claude(home).call("UserPromptSubmit") == SILENT
    write_usage(home, 50_000, message="m2", at=timestamp())
    assert home.ok("remaining", environ=mine) == "450000"
    assert home.ok("check", environ=mine) == "ok"
    for environ in (variable, {**variable, "CLAUDE_CODE_SESSION_ID": "s9"}):
        assert home.ok("remaining", environ=environ) == "90000"
    home.ok("run", "finish", "--run", "next")
    assert home.ok("remaining", environ=mine) == "90000"


def test_session_joins_the_nearest_run(home: Home, daemon: Daemon) -> None:
    """It is nearest to the directory in the input, not to the hook's own: the input says where the session is."""
    deeper = home.project / "sub"
    deeper.mkdir()
    outer = started(home, id="outer", token_budget=1000, enforcement="hard")
    answer = home.ask(messages.RunStart(project_dir=str(deeper), id="inner", token_budget=1000, wait_ms=30_000))
    assert isinstance(answer, messages.RunAnswer)
    hints = messages.Hints(cwd=str(home.project))
    assert "run inner," in Claude(home, cwd=deeper).call("SessionStart", hints=hints, source="startup").context
    assert (attached_sessions(home, outer), attached_sessions(home, "inner")) == ({}, {"s1": True})


# --- unexpected input


def test_unknown_events_and_fields_are_ignored(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    for event in EVENTS:
        output = claude.call(
            event, reason=["x"], source={"a": 1}, new_field={"deep": [1, {"er": None}]}, tool_name="Read"
        )
        assert (output == SILENT) == (event != "SessionStart"), event


#: Values that Claude Code does not send today.
ODD: tuple[Any, ...] = (None, True, 7, 1.5, [], ["s1"], {}, {"session_id": "s1"}, "", "x" * 10_000, "\0", "ü\n'\"")


@pytest.mark.parametrize("event", ["SessionStart", "UserPromptSubmit", "PreToolUse", "SubagentStart", "SubagentStop"])
def test_fields_may_have_any_type(home: Home, daemon: Daemon, event: str) -> None:
    """The output is empty or right, and the daemon's log stays clean."""
    started(home, session="s1", token_budget=1000, enforcement="hard")
    claude = Claude(home)
    names = (*claude.hook_input(event), "tool_name", "tool_input", "agent_id", "agent_type", "source")
    for name in names:
        for value in ODD:
            fields = {"tool_name": "Agent", "tool_input": launch_input("fd-quality"), "agent_id": "a", name: value}
            raw = json.dumps({**claude.hook_input(event), **fields}).encode()
            output = parse_output(event if name != "hook_event_name" else str(value), claude.answer(raw).output)
            assert output.decision in ("", "deny"), (name, value)
            if event == "PreToolUse" and name in ("permission_mode", "transcript_path", "agent_id", "source"):
                assert output.decision == "deny", (name, value)


INVALID = (
    b"", b" ", b"null", b"[]", b'"SessionStart"', b"{", b'{"session_id": "s1"', b"\0", b"\0" * 1000, b"\xff\xfe",
    b'{"session_id": "\xff", "hook_event_name": "SessionStart"}',
    b'{"session_id": "s1", "hook_event_name": "PreToolUse", "tool_name": "Agent", "agent_type": "\xff"}',
    b'{"session_id": "s1", "hook_event_name": "PreToolUse", "tool_input": {"subagent_type": "\xff"}}',
    b"[" * 100_000, b'{"a":' * 50_000, b'{"hook_event_name": "SessionStart", "session_id": ' + b"[" * 100_000,
    b'{"session_id": "s1", "hook_event_name": "SessionStart", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"session_id": 1e999999, "hook_event_name": "SessionStart"}',
)  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
def test_invalid_input_gets_no_output(home: Home, daemon: Daemon, whole: bool) -> None:
    started(home)
    claude = Claude(home)
    for raw in INVALID:
        found = parse_output("SessionStart", claude.answer(raw, whole=whole).output)
        assert found == SILENT or not whole, raw[:60]


def test_process_prints_nothing_for_invalid_input(home: Home, daemon: Daemon) -> None:
    started(home)
    claude = Claude(home)
    for raw in INVALID:
        assert claude.run_raw(raw) == "", raw[:60]


@pytest.mark.parametrize("session", ['it\'s "mine"', "two\nlines", "\x1b[2J\r", "-x", "ü" * 80])
def test_session_ids_may_have_odd_characters(home: Home, daemon: Daemon, session: str) -> None:
    run = started(home, token_budget=1000)
    claude = Claude(home, session)
    claude.transcript = home.root / "claude" / "projects" / "p" / "t.jsonl"
    Transcript(Path(), session, path=claude.transcript).response("m1", tokens=(820, 0, 0, 0))
    assert f"run {run}" in claude.run("SessionStart", source="startup").context
    assert is_warning(claude.call("UserPromptSubmit"), "80 %")
    assert claude.launch() == SILENT
    assert "80 %" in claude.starts("a'\n\0").context
    assert claude.stops("a'\n\0") == claude.call("SessionEnd") == SILENT
    assert attached_sessions(home, run) == {session: True}
    assert home.ctl("run", "show", "--run", run).returncode == 0


@pytest.mark.parametrize("session", ["nul\0nul", "../../etc", "..", "/", "x" * 512])
def test_session_ids_that_cannot_be_file_names(home: Home, interstat: Interstat, daemon: Daemon, session: str) -> None:
    """Such a session has no transcripts, but its rows count."""
    run = started(home, token_budget=1000)
    claude = Claude(home, session)
    for event in EVENTS:
        claude.call(
            event, transcript_path="", tool_name="Agent", tool_input=launch_input("x"), agent_id="a", agent_type="x"
        )
    assert attached_sessions(home, run) == {session: True}
    assert home.ctl("run", "show", "--run", run).returncode == 0
    interstat.insert(session, input_tokens=820, output_tokens=0)
    assert is_warning(claude.run("UserPromptSubmit"), "80 %")


@pytest.mark.parametrize("session", ["x" * 513, "x" * 10_000, ""])
def test_invalid_session_ids_are_ignored(home: Home, daemon: Daemon, session: str) -> None:
    run = started(home)
    for event in EVENTS:
        assert Claude(home, session).call(event, transcript_path="", tool_name="Agent") == SILENT
    assert attached_sessions(home, run) == {}


def test_input_of_five_megabytes(home: Home, daemon: Daemon) -> None:
    """Fields before the cut count. Fields after it are lost."""
    started(home, session="s1", token_budget=1000, enforcement="hard")
    write_usage(home, 820)
    claude = Claude(home)
    huge = {"tool_response": {"stdout": 'x"\n\\ü' * 700_000}}
    fields = claude.hook_input("PostToolBatch")
    assert claude.run_raw(json.dumps({**huge, **fields}).encode()) == ""
    assert is_warning(parse_output("PostToolBatch", claude.run_raw(json.dumps({**fields, **huge}).encode())), "80 %")
    launch = {**claude.hook_input("PreToolUse"), "tool_name": "Agent"}
    long = {"tool_input": {"prompt": "p" * 5_000_000, "subagent_type": "fd-quality"}}
    denied = parse_output("PreToolUse", claude.run_raw(json.dumps({**launch, **long}).encode()))
    assert denied.decision == "deny"
    assert "general-purpose" in denied.reason  # the agent's type was after the cut


def test_lone_surrogate_in_a_prompt_does_not_prevent_the_decision(home: Home, daemon: Daemon) -> None:
    """JavaScript may cut a string inside a surrogate pair, and then escapes the remaining half."""
    started(home, session="s1", token_budget=1000, enforcement="hard")
    claude = Claude(home)
    tool_input = {**launch_input("fd-quality"), "prompt": "cut \ud83d"}
    assert claude.call("PreToolUse", tool_name="Agent", tool_input=tool_input).decision == "deny"


# --- without an answer


@pytest.mark.parametrize("how", ["away", "stopped"])
def test_hook_without_a_daemon(home: Home, interstat: Interstat, how: str) -> None:
    """It prints nothing and exits with 0. Only launches of sub-agents are denied, and only if the user wants that."""
    daemon = home.start()
    started(home, session="s1", token_budget=1000)
    write_usage(home, 5000)
    if how == "away":
        daemon.stop()
    else:
        suspend(daemon.process.pid)
    claude = Claude(home)
    closed = {"FLUXBUDGET_FAIL_CLOSED": "1"}
    for event in ("SessionStart", "UserPromptSubmit", "PreToolUse", "SubagentStop"):
        raw = json.dumps(claude.hook_input(event, **LAUNCH)).encode()
        assert claude.run_raw(raw, seconds="0.3") == ""
        output = parse_output(event, claude.run_raw(raw, seconds="0.3", environ=closed))
        assert output.decision == ("deny" if event == "PreToolUse" else "")
    for tool, decision in (("Task", "deny"), ("Bash", ""), ("AgentX", "")):
        raw = json.dumps(claude.hook_input("PreToolUse", tool_name=tool)).encode()
        assert parse_output("PreToolUse", claude.run_raw(raw, seconds="0.3", environ=closed)).decision == decision


def test_warning_whose_hook_gave_up_is_shown_the_next_time(home: Home, daemon: Daemon) -> None:
    """A hook that disconnected before the answer was ready has shown nothing."""
    started(home, session="s1", token_budget=1000)
    claude = Claude(home)
    assert claude.call("UserPromptSubmit") == SILENT
    write_usage(home, 820)
    suspend(daemon.process.pid)
    assert claude.run_raw(json.dumps(claude.hook_input("UserPromptSubmit")).encode(), seconds="0.3") == ""
    daemon.signal(signal.SIGCONT)
    assert is_warning(claude.run("UserPromptSubmit"), "80 %")


def test_killed_hooks_do_no_harm(home: Home, daemon: Daemon) -> None:
    """Some are killed in the middle of the request, some before the answer."""
    started(home, session="s1", token_budget=1000)
    write_usage(home, 820)
    claude = Claude(home)
    for event in EVENTS:
        raw = json.dumps(claude.hook_input(event, tool_name="Agent", agent_id=event, reason="other")).encode()
        frame = encode_frame(messages.encode(messages.Hook(input=raw)))
        for length in (len(frame), len(frame) // 2):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(home.socket))
                peer.sendall(frame[:length])
    assert "820 of 1 000" in claude.call("SessionStart").context

"""Command lines that the daemon carries out: exit code, stdout and stderr of every verb."""

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import fold
from harness.commands import Outcome, carried_out, is_mine, outcome
from harness.daemon import Daemon, Home
from harness.hooks import Claude, launch_input
from harness.interstat import Interstat

REFUSAL = "budget_exceeded|brainstorm|250/100 billing tokens"


@pytest.fixture
def runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Start runs in every state of their budget, each with the session `s-RUN`; `ok` belongs to the project."""
    for name, fields in (
        ("ok", {"token_budget": 1000, "scope": "b-ok"}),
        ("soft", {"token_budget": 100}),
        ("hard", {"token_budget": 100, "enforcement": "hard"}),
        ("unlimited", {"token_budget": "none"}),
    ):
        project = str(home.project if name == "ok" else home.root / name)
        request = messages.RunStart(id=name, session=f"s-{name}", project_dir=project, wait_ms=60_000, **fields)
        assert isinstance(home.ask(request), messages.RunAnswer)
        interstat.insert(f"s-{name}", input_tokens=150, output_tokens=100)


def reason(home: Home, request: messages.AnyRequest) -> str:
    """Return the lines on stderr for the error that a typed request gets."""
    answer = home.ask(request)
    assert isinstance(answer, messages.ErrorAnswer), answer
    return f"fluxbudgetctl: {answer.error.message}\nhint: {answer.error.hint}\n"


def no_budget(run: str) -> str:
    hint = f"set one with 'fluxbudgetctl run set --run {run} --budget N'"
    return f"fluxbudgetctl: run {run} has no budget\nhint: {hint}\n"


def test_remaining(home: Home, runs: None) -> None:
    unknown = reason(home, messages.Remaining(run="no-such"))
    assert outcome(home, "remaining", "--run", "ok") == Outcome(0, "750\n")
    assert outcome(home, "remaining", "--run=ok", "--default=7") == Outcome(0, "750\n")
    assert outcome(home, "remaining", "--run", "soft") == Outcome(0, "0\n")
    assert outcome(home, "remaining", "--run", "unlimited") == Outcome(3, "0\n", no_budget("unlimited"))
    assert outcome(home, "remaining", "--run", "unlimited", "--default", "7").out == "7\n"
    assert outcome(home, "remaining", "--run", "no-such") == Outcome(3, "0\n", unknown)
    assert outcome(home, "remaining", "--default", "7", "--run", "no-such") == Outcome(3, "7\n", unknown)
    shown = outcome(home, "remaining", "--run", "ok", "--json")
    assert json.loads(shown.out) == {"run": "ok", "phase": "brainstorm", **_spend(home, "ok")}
    assert json.loads(outcome(home, "remaining", "--run", "no-such", "--json", "--default", "7").out)["remaining"] == 7


def test_env(home: Home, runs: None) -> None:
    unset = "unset FLUX_BUDGET_REMAINING\n"
    assert outcome(home, "env", "--run", "ok") == Outcome(0, "export FLUX_BUDGET_REMAINING=750\n")
    assert outcome(home, "env", "--run", "hard") == Outcome(0, "export FLUX_BUDGET_REMAINING=1\n")
    assert outcome(home, "env", "--run", "unlimited") == Outcome(3, unset, no_budget("unlimited"))
    unknown = reason(home, messages.Remaining(run="no-such"))
    assert outcome(home, "env", "--run", "no-such") == Outcome(3, unset, unknown)


def test_check(home: Home, runs: None) -> None:
    assert outcome(home, "check", "--run", "ok") == Outcome(0, "ok\n")
    assert outcome(home, "check", "--run", "unlimited", "--require") == Outcome(0, "ok\n")
    for _ in range(2):
        assert outcome(home, "check", "--run", "soft") == Outcome(1, f"{REFUSAL}\n")
    overridden = "fluxbudgetctl: the budget is exceeded; overridden: it must\\nend\n"
    assert outcome(home, "check", "--run", "soft", "--override", "it must\nend") == Outcome(0, "ok\n", overridden)
    skip = {"CLAVAIN_SKIP_BUDGET": "it must\nend"}
    assert outcome(home, "check", "--run", "soft", env=skip) == Outcome(0, "ok\n", overridden)
    assert outcome(home, "check", "--run", "soft", env={"CLAVAIN_SKIP_BUDGET": ""}).exit == 1
    refused = outcome(home, "check", "--run", "hard", env=skip)
    assert (refused.exit, refused.out) == (1, f"{REFUSAL}\n")
    assert refused.err.startswith("fluxbudgetctl: ")
    unknown = reason(home, messages.Check(run="no-such"))
    assert outcome(home, "check", "--run", "no-such") == Outcome(3, "", unknown)
    assert outcome(home, "check", "--run", "no-such", "--require") == Outcome(1, "", unknown)
    shown = json.loads(outcome(home, "check", "--run", "hard", "--json").out)
    plain = {"run": "hard", "phase": "brainstorm", "allowed": False, "refusal": REFUSAL, "overridden": None, "note": ""}
    assert shown == {**plain, "choices": ["continue", "stop", "adjust"], **_spend(home, "hard")}


def test_advance(home: Home, runs: None) -> None:
    line = "advanced|brainstorm|brainstorm-reviewed\n"
    assert outcome(home, "advance", "--run", "ok", "--from", "brainstorm") == Outcome(0, line)
    stale = "stale_phase|brainstorm|Phase already advanced to brainstorm-reviewed\n"
    assert outcome(home, "advance", "--run", "ok", "--from=brainstorm") == Outcome(1, stale)
    here = ("advance", "--run", "soft", "--from", "brainstorm")
    assert outcome(home, *here) == Outcome(1, f"{REFUSAL}\n")
    overridden = outcome(home, *here, "--to", "planned", "--override", "why")
    assert overridden == Outcome(
        0, "advanced|brainstorm|planned\n", "fluxbudgetctl: the budget is exceeded; overridden: why\n"
    )
    assert home.details("soft").run.phase == "planned"
    shown = outcome(home, "advance", "--run", "unlimited", "--from", "brainstorm", "--json")
    fields = json.loads(shown.out)
    assert (shown.exit, fields["line"], fields["completed"]["name"]) == (0, line.rstrip(), "brainstorm")
    assert fields["spend"] == _spend(home, "unlimited")
    bad = reason(home, messages.Advance(run="ok", from_phase="brainstorm-reviewed", to_phase="no-such"))
    wrong = ("advance", "--run", "ok", "--from", "brainstorm-reviewed", "--to", "no-such")
    assert outcome(home, *wrong) == Outcome(65, "", bad)
    unknown = reason(home, messages.Advance(run="no-such", from_phase="x"))
    assert outcome(home, "advance", "--run", "no-such", "--from", "x") == Outcome(3, "", unknown)


def test_ping(home: Home, daemon: Daemon) -> None:
    begun = time.monotonic_ns()
    shown = outcome(home, "ping", started_ns=begun - 5_000_000_000)
    found = re.fullmatch(rf"fluxbudgetd \S+ \(pid {daemon.process.pid}\) answered in (\d+\.\d\d) ms\n", shown.out)
    assert found is not None, shown
    assert 5000 <= float(found[1]) <= 5000 + (time.monotonic_ns() - begun) / 1e6
    assert json.loads(outcome(home, "ping", "--json", started_ns=begun).out)["pid"] == daemon.process.pid
    for unknown in (0, time.monotonic_ns() + 10**15, -1):
        assert outcome(home, "ping", started_ns=unknown).out.endswith(f"(pid {daemon.process.pid}) answered\n")
        assert json.loads(outcome(home, "ping", "--json", started_ns=unknown).out)["round_trip_ms"] is None


def test_hook(home: Home, runs: None) -> None:
    """The answer is that of the typed request; it ends in a newline, and so do the exports."""
    begin = json.dumps(Claude(home, "s-ok").hook_input("SessionStart", source="startup")).encode()
    answer = Claude(home, "s-ok").answer(begin)
    assert answer.output
    exports = "export FLUXBUDGET_RUN=ok\nexport INTERSTAT_TOKEN_BUDGET=1000\n"
    assert outcome(home, "hook", stdin=begin) == Outcome(0, f"{answer.output}\n", "", exports)
    launch = Claude(home, "s-hard").hook_input("PreToolUse", tool_name="Agent", tool_input=launch_input("fd-quality"))
    denied = outcome(home, "hook", stdin=json.dumps(launch).encode())
    assert json.loads(denied.out)["hookSpecificOutput"]["permissionDecision"] == "deny"
    named = outcome(home, "hook", "--run", "soft", stdin=begin.replace(b"s-ok", b"s-new"))
    assert "run soft," in named.out
    for silent in (b"", b" \n", b"{}", b"[]", b"no JSON", b'{"hook_event_name": "Stop", "session_id": "s-ok"}'):
        assert outcome(home, "hook", stdin=silent) == Outcome(0), silent


def test_status_line(home: Home, runs: None) -> None:
    def line(**fields: Any) -> str:
        answer = home.ask(messages.StatusLine(run="ok", wait_ms=60_000, **fields))
        assert isinstance(answer, messages.StatusLineAnswer)
        return f"{answer.line}\n"

    assert "\x1b[" in line(colour=True)
    for words, env, expected in (
        (("--run", "ok"), {}, line(colour=True)),
        (("--run", "ok", "--width", "12"), {"COLUMNS": "30"}, line(colour=True, width=12)),
        ((), {"COLUMNS": "20", "TERM": "xterm"}, line(colour=True, width=20)),
        ((), {"COLUMNS": "0"}, line(colour=True)),
        ((), {"COLUMNS": b"\xff" * 9000, "NO_COLOR": ""}, line(colour=True)),
        ((), {"NO_COLOR": "1"}, line()),
        ((), {"TERM": "dumb"}, line()),
        (("--no-colour",), {}, line()),
        (("--no-color",), {}, line()),
    ):
        found = outcome(home, "statusline", *words, env=env)
        assert found == Outcome(0, expected), (words, env)
    unknown = reason(home, messages.StatusLine(run="no-such"))
    assert outcome(home, "statusline", "--run", "no-such") == Outcome(3, "", unknown)


def test_stale_numbers_are_reported(home: Home, interstat: Interstat, runs: None) -> None:
    assert outcome(home, "remaining", "--run", "ok") == Outcome(0, "750\n")
    interstat.close()
    home.interstat.rename(home.root / "away.db")
    stale = outcome(home, "remaining", "--run", "ok")
    assert (stale.exit, stale.out) == (0, "750\n")
    assert re.fullmatch(r"fluxbudgetctl: last known numbers: .+\n", stale.err)
    for words in (("check",), ("env",), ("statusline",), ("advance", "--from", "brainstorm")):
        found = outcome(home, *words, "--run", "ok")
        assert (found.exit, found.err) == (0, stale.err), found


@pytest.mark.parametrize(
    ("env", "run"),
    [
        ({"FLUXBUDGET_RUN": "soft", "CLAVAIN_BEAD_ID": "b-ok"}, "soft"),
        ({"FLUXBUDGET_RUN": "", "CLAVAIN_BEAD_ID": "b-ok", "CLAUDE_SESSION_ID": "s-hard"}, "ok"),
        ({"CLAUDE_CODE_SESSION_ID": "s-soft", "CLAUDE_SESSION_ID": "s-hard"}, "soft"),
        ({"CLAUDE_CODE_SESSION_ID": b"\xff\xfe", "CLAUDE_SESSION_ID": "s-hard"}, "hard"),
        ({"OTHER": "x", "COLUMNS": "80"}, "ok"),
    ],
)
def test_run_is_found_by_the_environment(home: Home, runs: None, env: Mapping[str, str | bytes], run: str) -> None:
    assert json.loads(outcome(home, "remaining", "--json", env=env).out)["run"] == run


def test_run_is_found_by_a_flag_or_the_directory(home: Home, runs: None) -> None:
    def found(*words: str, **more: Any) -> str | None:
        name: str | None = json.loads(outcome(home, "remaining", "--json", *words, **more).out)["run"]
        return name

    assert found("--scope", "b-ok", env={"FLUXBUDGET_RUN": "soft"}) == "ok"
    assert found("--session=s-hard") == "hard"
    assert found(cwd=home.project / "src" / "deeper") == "ok"
    assert found(cwd=home.root) is None


def test_words_and_variables_may_be_any_bytes(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    odd = b"caf\xe9 \xff\x1b"
    home.ok("run", "start", "--id", "r1", "--budget", "1000")
    assert home.ctl("run", "attach", "--run", "r1", "--session", odd).returncode == 0
    interstat.insert("plain", input_tokens=1, output_tokens=1)
    for words, env in ((("--session", odd), {}), ((b"--session=" + odd,), {}), ((), {"CLAUDE_SESSION_ID": odd})):
        assert outcome(home, "remaining", *words, env=env, cwd=home.root) == Outcome(0, "1000\n")
    unknown = outcome(home, "remaining", "--run", odd)
    assert unknown == Outcome(3, "0\n", reason(home, messages.Remaining(run=fold(odd))))
    assert outcome(home, "remaining", cwd=b"/\xff/x").exit == 3


def test_deleted_directory_names_no_run(home: Home, runs: None) -> None:
    request = messages.Command(words=(b"remaining",), wait_ms=60_000)
    assert carried_out(home.ask(request)).exit == 3


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("",),
        ("status",),
        ("--version",),
        ("remaining", "--help"),
        ("remaining", "-h"),
        ("remaining", "ok"),
        ("remaining", "--"),
        ("remaining", "--def", "5"),
        ("remaining", "--default"),
        ("remaining", "--default", "many"),
        ("remaining", "--default", "-5"),
        ("remaining", "--run"),
        ("remaining", "--run", ""),
        ("remaining", "--run="),
        ("remaining", "--run", "-x"),
        ("remaining", "--run", "a", "--run", "b"),
        ("remaining", "--run", "a", "--scope", "b"),
        ("remaining", "--json=yes"),
        ("remaining", "--json", "--json"),
        ("remaining", "--override", "x"),
        ("remaining", "--require"),
        ("remaining", "--timeout", "0"),
        ("remaining", "--timeout", "nan"),
        ("remaining", "--timeout", "3601"),
        ("remaining", "--timeout", "soon"),
        ("remaining", "--timeout", "1", "--timeout", "1"),
        ("env", "--json"),
        ("check", "--default", "5"),
        ("advance",),
        ("advance", "--to", "x"),
        ("ping", "--run", "a"),
        ("hook", "--print-settings"),
        ("statusline", "--width", "0"),
        ("statusline", "--width", "100000"),
        ("statusline", "--width", "+5"),
        (b"remaining\xff",),
        (b"remaining", b"--default", b"5\xff"),
        ("remaining", "--run", "x" * 5000),
        ("remaining", *["--json"] * 10_000),
        tuple(f"word{number}" for number in range(10_000)),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_unusual_command_line_is_left_to_the_client(home: Home, daemon: Daemon, words: tuple[str | bytes, ...]) -> None:
    assert not is_mine(home, *words)


def test_long_variable_or_directory_is_left_to_the_client(home: Home, daemon: Daemon) -> None:
    for name in ("FLUXBUDGET_RUN", "CLAVAIN_BEAD_ID", "CLAUDE_SESSION_ID", "CLAVAIN_SKIP_BUDGET"):
        assert not is_mine(home, "check", env={name: "x" * 5000})
    assert not is_mine(home, "check", cwd=b"/" + b"x" * 5000)
    assert is_mine(home, "check", "--timeout", "2.5", env={"OTHER": "x" * 5000})


def _spend(home: Home, run: str) -> dict[str, object]:
    spend = home.spend(run)
    return {name: getattr(spend, name) for name in spend.__struct_fields__}

"""`fluxbudgetctl statusline` with a real daemon: which run it shows, its width, and its use in another line."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import CTL, Daemon, Home, started
from harness.hooks import Claude
from harness.interstat import Interstat
from harness.transcripts import Transcript

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def statusline(
    home: Home,
    *arguments: str,
    given: object = b"",
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run it as Claude Code does, with bytes or a JSON value on stdin."""
    return subprocess.run(
        [*CTL, "statusline", "--timeout", "20", *arguments],
        env={**home.environ, **(environ or {})},
        cwd=cwd or home.root,
        input=given if isinstance(given, bytes) else json.dumps(given).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def line(home: Home, *arguments: str, **more: object) -> str:
    """Return the line that it prints; require exactly one line."""
    result = statusline(home, *arguments, **more)  # type: ignore[arg-type]
    assert (result.returncode, result.stderr) == (0, b""), result
    text = result.stdout.decode()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return COLOUR.sub("", text.removesuffix("\n"))


def elsewhere(home: Home, **fields: object) -> str:
    """Start a run of another project, in a phase with the run's name."""
    name = str(fields["id"])
    answer = home.ask(messages.RunStart(project_dir="/elsewhere", phases=(name, "done"), wait_ms=30_000, **fields))  # type: ignore[arg-type]
    assert isinstance(answer, messages.RunAnswer), answer
    return answer.run.id


def test_line_is_fresh_and_has_reservations(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", whole=True, token_budget=250_000)
    writer = Transcript(home.root / "claude", "s1")
    long_ago = "2026-02-20T17:05:55.000Z"  # too old for a forecast
    assert line(home, given={"session_id": "s1"}) == "brainstorm ░░░░░░░░ 0/250k 0%"
    writer.response("m1", tokens=(208_000, 0, 0, 0), at=long_ago)
    assert line(home, given={"session_id": "s1"}) == "brainstorm ██████▋░ 208k/250k 83%"
    Claude(home).launch()
    assert line(home, given={"session_id": "s1"}) == "brainstorm ██████▋░ 208k/250k 83% (+40k reserved)"
    writer.response("m2", tokens=(50_000, 0, 0, 0), at=long_ago)
    assert line(home, given={"session_id": "s1"}).endswith("100% (+40k reserved) · over by 8k") is False
    assert line(home, given={"session_id": "s1"}).endswith("103% (+40k reserved) · over by 8k")


def test_run_is_chosen_by_name_environment_session_or_directory(home: Home, daemon: Daemon) -> None:
    """This is the order; the directory is that in the JSON, or the present one."""
    started(home, id="here", phases=("here", "done"))
    for name in ("by-flag", "by-run", "by-bead", "by-session", "by-own"):
        elsewhere(home, id=name, scope=f"bead-{name}", session=f"s-{name}")
    deeper = home.project / "src"
    deeper.mkdir()
    session = {"session_id": "s-by-session", "cwd": str(deeper)}
    beads = {"CLAVAIN_BEAD_ID": "bead-by-bead"}
    for arguments, given, environ, cwd, phase in (
        (("--run", "by-flag"), session, {"FLUXBUDGET_RUN": "by-run"}, home.root, "by-flag"),
        ((), session, {"FLUXBUDGET_RUN": "by-run", **beads}, home.root, "by-run"),
        ((), session, beads, home.root, "by-bead"),
        ((), session, {"CLAUDE_CODE_SESSION_ID": "s-by-own"}, home.root, "by-session"),
        ((), {"cwd": str(deeper)}, {"CLAUDE_CODE_SESSION_ID": "s-by-own"}, home.root, "by-own"),
        ((), {"session_id": "unknown", "cwd": str(deeper)}, {}, home.root, "here"),
        ((), b"", {}, deeper, "here"),
        ((), {"session_id": 5, "cwd": ["x"]}, {}, deeper, "here"),
    ):
        found = line(home, *arguments, given=given, environ=environ, cwd=cwd)
        assert found.split()[0] == phase, (given, environ)


def test_directory_may_be_a_link(home: Home, daemon: Daemon) -> None:
    """Claude Code may pass the link's name, but the command runs in the link's target."""
    started(home)
    link = home.root / "link"
    link.symlink_to(home.project)
    assert line(home, given={"session_id": "unknown", "cwd": str(link)}, cwd=link).startswith("brainstorm")


def test_without_a_run_it_prints_nothing(home: Home, daemon: Daemon) -> None:
    """It exits with 3 without a run, and with an unknown one."""
    given = {"session_id": "s1", "cwd": str(home.project)}
    for environ in ({}, {"FLUXBUDGET_RUN": "no-such"}):
        result = statusline(home, given=given, environ=environ, cwd=home.project)
        assert (result.returncode, result.stdout) == (3, b""), environ
        assert result.stderr.startswith(b"fluxbudgetctl: ")
        started(home)


def test_ended_run_of_the_session_is_shown(home: Home, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    home.ok("run", "finish", "--run", run)
    assert line(home, given={"session_id": "s1"}) == "done ░░░░░░░░ 0/1k 0%"


@pytest.mark.parametrize(
    ("environ", "arguments", "coloured"),
    [
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({"NO_COLOR": ""}, (), True),
        ({"TERM": "dumb"}, (), False),
        ({}, ("--no-color",), False),
    ],
)
def test_colour(
    home: Home, daemon: Daemon, environ: Mapping[str, str], arguments: tuple[str, ...], coloured: bool
) -> None:
    """It is on by default, although stdout is not a terminal; NO_COLOR and other usual settings disable it."""
    started(home, session="s1", token_budget=1000)
    result = statusline(home, *arguments, given={"session_id": "s1"}, environ=environ)
    assert result.returncode == 0, result
    assert (b"\x1b[32m" in result.stdout) == coloured
    assert (b"\x1b" in result.stdout) == coloured


def test_line_fits_any_width(home: Home, daemon: Daemon) -> None:
    """The percentage stays."""
    run = started(home, session="s1", token_budget=250_000, phases=("a-phase-with-quite-a-long-name", "done"))
    Transcript(home.root / "claude", "s1").response("m1", tokens=(208_000, 0, 0, 0))
    Claude(home).launch()
    lengths = []
    for width in range(10, 201):
        answer = home.ask(messages.StatusLine(run=run, width=width, colour=True, wait_ms=30_000))
        assert isinstance(answer, messages.StatusLineAnswer), answer
        plain = COLOUR.sub("", answer.line)
        assert len(plain) <= width, (width, plain)
        assert "83%" in plain
        assert plain.isprintable()
        lengths.append(len(plain))
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3
    for width in (10, 25, 200):
        assert len(line(home, "--width", str(width), given={"session_id": "s1"})) == lengths[width - 10]
        assert len(line(home, given={"session_id": "s1"}, environ={"COLUMNS": str(width)})) == lengths[width - 10]


@pytest.mark.parametrize(
    "given",
    [
        b"", b"\0\xff", b"{", b"[]", b"null", b"[" * 100_000, b'{"session_id": "\xff"}', rb'{"session_id": "\ud83d"}',
        b'{"session_id": "' + b"x" * 10_000 + b'"}', b'{"cwd": 5}', b" " * 1_000_000,
    ],
    ids=lambda given: repr(given[:18]),
)  # fmt: skip
def test_invalid_input_is_ignored(home: Home, daemon: Daemon, given: bytes) -> None:
    """The run is found by the present directory."""
    started(home)
    assert line(home, given=given, cwd=home.project).startswith("brainstorm")


def test_stale_numbers_are_marked(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=500, output_tokens=0)
    assert home.spend(run).spent == 500
    interstat.close()
    home.interstat.rename(home.root / "away.db")
    result = statusline(home, given={"session_id": "s1"}, environ={"NO_COLOR": "1"})
    assert result.returncode == 0
    assert result.stdout.decode().endswith(" (stale)\n")
    assert result.stderr.startswith(b"fluxbudgetctl: last known numbers: ")


def test_line_as_a_part_of_another(home: Home, daemon: Daemon) -> None:
    """In a shell it reads no stdin, and prints nothing without a run."""
    script = 'segment=$("$@" statusline --timeout 20 </dev/null 2>/dev/null); echo "[$segment]$?"; cat'

    def shown() -> str:
        return subprocess.run(
            ["bash", "-c", script, "-", *CTL],
            env={**home.environ, "NO_COLOR": "1"},
            cwd=home.project,
            input="the rest",
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert shown() == "[]3\nthe rest"
    started(home, token_budget=1000)
    assert shown() == "[brainstorm ░░░░░░░░ 0/1k 0%]0\nthe rest"


def test_no_daemon(home: Home) -> None:
    result = statusline(home, given={"session_id": "s1"})
    assert (result.returncode != 0, result.stdout) == (True, b"")

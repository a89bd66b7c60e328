"""Reports about counters of Claude Code's tokens, ours or others', with the right number for each."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.daemon import CTL, DAEMON, PATIENCE, Home, killed, started, wait_for
from harness.hooks import Claude
from harness.live import transcript
from harness.transcripts import Transcript, assistant_line, encoded, encoded_without

ADVISOR = [
    {"type": "message", "input_tokens": 1, "output_tokens": 45},
    {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 159_419, "output_tokens": 7805},
    {"type": "message", "input_tokens": 1, "output_tokens": 446},
]


def line(message: str | None, *tokens: int, final: bool = True, **more: Any) -> bytes:
    """Return a line of session s1. Its request id goes with the message id."""
    spent, produced, read, created = (*tokens, 0, 0)[:4]
    made = assistant_line("s1", message, tokens=(spent, produced, read, created), **{"request": f"r-{message}", **more})
    made["message"]["stop_reason"] = "end_turn" if final else None
    return encoded(made)


class Written(NamedTuple):
    """Bytes that are appended to a file of session s1, and what its run has then spent in all."""

    raw: bytes
    spent: int
    path: str = "s1.jsonl"


REPORTS = {
    "an advisor's tokens are only in the iterations (ccusage/ccusage#1115)": [
        Written(line("m1", 2, 491, iterations=ADVISOR), 167_717),
    ],
    "two records on one line (anthropics/claude-code#52387)": [
        Written(line("m1", 1000, 500), 1500),
        Written(line("m2", 100, 0)[:-1] + line("m3", 200, 0), 1800),
    ],
    "NULs before a record (anthropics/claude-code#49876)": [
        Written(line("m1", 1000, 500), 1500),
        Written(bytes(4096) + line("m2", 400, 0), 1900),
    ],
    "a whole record after half of one (anthropics/claude-code#81843)": [
        Written(line("m1", 1000, 500), 1500),
        Written(b'{"type":"user","sessionId":"s1","message":{"content":"half of a te' + line("m2", 800, 0), 2300),
    ],
    "the agents of a workflow, the first copy of whose response is partial (junhoyeo/tokscale#837)": [
        Written(line("m1", 1000, 500), 1500),
        Written(
            line("m2", 3, 1, final=False, sidechain=True) + line("m2", 3, 812, sidechain=True),
            2315,
            "s1/subagents/workflows/wf_1/agent-1.jsonl",
        ),
        Written(
            b'{"type":"result","agentId":"1","usage":{"input_tokens":5}}\n',
            2315,
            "s1/subagents/workflows/wf_1/journal.jsonl",
        ),
    ],
    "zeros first, then the response (ClaudeCodeUsage/ClaudeCodeUsage#18)": [
        Written(line("m1", 0, 0), 0),
        Written(line("m1", 271, 5774), 6045),
    ],
    "zeros after the response (anthropics/claude-code#95555)": [
        Written(line("m1", 2, 5175), 5177),
        Written(line("m1", 0, 0), 5177),
    ],
    "a message with the keys of an array (anthropics/claude-code#24663)": [
        Written(line("m1", 1, 1), 2),
        Written(b'{"type":"assistant","sessionId":"s1","message":{"0":"{","1":"u","usage":null,"content":[]}}\n', 2),
        Written(b'{"type":"assistant","sessionId":"s1","message":"\\"usage\\" in a text"}\n', 2),
        Written(line("m2", 7, 1, cache_creation=None, server_tool_use={"web_search_requests": 2})[:-1] + b"\r\n", 10),
    ],
    "a fork's sub-agent repeats the conversation of its parent (anthropics/claude-code#94408)": [
        Written(line("m1", 1000, 500), 1500),
        Written(
            line("m1", 1000, 500, sidechain=True) + line("m2", 20, 2, sidechain=True),
            1522,
            "s1/subagents/agent-f1.jsonl",
        ),
    ],
    "times in other forms, and none": [
        Written(encoded_without(assistant_line("s1", "m1", request="r1", tokens=(100, 0, 0, 0)), "timestamp"), 100),
        Written(line("m2", 100, 0, at="2026-11-28T04:00:00.123+02:00"), 200),
        Written(line("m3", 100, 0, at=1_795_838_400_000), 300),
        Written(line("m4", 100, 0, at=None), 400),
    ],
    "a line of 12 MB": [
        Written(line("m1", 1000, 500), 1500),
        Written(b'{"type":"user","message":{"content":"' + b"x" * 12_000_000 + b'"}}\n' + line("m2", 5, 0), 1505),
    ],
    "the history is appended again (anthropics/claude-code#92089)": [
        Written((both := line("m1", 1000, 500) + line("m2", 100, 50)), 1650),
        Written(both + both, 1650),
    ],
    "the first record has the whole prompt as input, the last one has it split (maximhq/bifrost#6439)": [
        Written(line("m1", 173_306, 0, 5000, final=False), 173_306),
        Written(line("m1", 250, 166, 173_056), 416),
    ],
    "a relay with one message id and no request ids (ccusage/ccusage#1175)": [
        Written(b"".join(line("m1", 100 * n, n, request=None) for n in range(1, 2001)), 202_101_000),
    ],
}


@pytest.mark.parametrize("report", REPORTS)
def test_reported_transcripts(home: Home, report: str) -> None:
    home.start()
    run = started(home, session="s1", whole=True, token_budget="none")
    for raw, spent, name in REPORTS[report]:
        Transcript(Path(), "s1", path=transcript(home).path.parent / name).line(raw)
        assert home.spent(run) == spent


def test_fork_repeats_its_parents_history(home: Home) -> None:
    """`--fork-session` copies the lines into a new session's file, where only the session id differs.

    anthropics/claude-code#4926
    """
    home.start()
    run = started(home, session="s1")
    old, fork = transcript(home), transcript(home, "s2")
    old.line(line("m1", 1000, 500) + line("m2", 2000, 500))
    assert home.spent(run) == 4000
    fork.line(old.path.read_bytes().replace(b'"sessionId":"s1"', b'"sessionId":"s2"'))
    fork.response("m3", request="r-m3", tokens=(100, 50, 0, 0))
    Claude(home, "s2").call("SessionStart", source="resume")
    assert home.spent(run) == 4150


def test_directories_that_are_symbolic_links(home: Home) -> None:
    """People keep a project's directory, or all of them, elsewhere. anthropics/claude-code#60965, #71473"""
    home.start()
    run = started(home, session="s1")
    projects, elsewhere = home.root / "claude" / "projects", home.root / "dotfiles"
    (elsewhere / "-home-me-work").mkdir(parents=True)
    projects.mkdir()
    (projects / "-home-me-work").symlink_to(elsewhere / "-home-me-work")
    transcript(home).line(line("m1", 1000, 500))
    assert home.spent(run) == 1500
    shutil.rmtree(projects)
    projects.symlink_to(elsewhere)
    transcript(home, "s2").response("m2", request="r2", tokens=(10, 5, 0, 0))
    home.ok("run", "attach", "--run", run, "--session", "s2")
    assert home.spent(run) == 1515
    Claude(home, "s3").call("SessionStart", source="startup")
    transcript(home, "s3").response("m3", request="r3", tokens=(100, 50, 0, 0))
    assert home.spent(run) == 1665


def test_session_moves_to_the_project_of_its_worktree(home: Home) -> None:
    """A hook may name a path that does not exist, and the file may move. anthropics/claude-code#77565"""
    daemon = home.start()
    run = started(home)
    here, there = transcript(home), transcript(home, project="-home-me-work--claude-worktrees-x")
    claude = Claude(home)
    claude.transcript = there.path
    claude.call("SessionStart", source="startup")
    here.line(line("m1", 1000, 500))
    assert home.spent(run) == 1500
    there.path.parent.mkdir(parents=True)
    here.path.rename(there.path)
    here.agent("1").line(line("m2", 7, 0, sidechain=True))
    there.line(line("m3", 100, 0))
    assert home.spent(run) == 1607
    shutil.copy(there.path, here.path)
    there.path.unlink()
    here.line(line("m4", 10, 0))
    assert home.spent(run) == 1617
    daemon.stop()
    home.start()
    assert home.spent(run) == 1617


def test_session_of_another_claude_directory(home: Home) -> None:
    """People with two accounts have two directories. hamed-elfayome/Claude-Usage-Tracker#144"""
    home.start()
    run = started(home, token_budget=1000, enforcement="hard")
    claude = Claude(home)
    claude.transcript = home.root / "claude-work" / "projects" / "-home-me-work" / "s1.jsonl"
    claude.transcript.parent.mkdir(parents=True)
    claude.call("SessionStart", source="startup")
    Transcript(Path(), "s1", path=claude.transcript).line(line("m1", 1000, 500))
    assert home.spent(run) == 1500


def test_main_file_is_deleted_and_begins_again(home: Home) -> None:
    """A failed compaction deletes it; what was billed stays billed. anthropics/claude-code#63187, #40352"""
    daemon = home.start()
    run = started(home, session="s1")
    main = transcript(home)
    main.line(line("m1", 1000, 500) + line("m2", 100, 50))
    assert home.spent(run) == 1650
    main.agent("acompact-1").line(line("m3", 7, 0, sidechain=True))
    main.path.unlink()
    assert home.spent(run) == 1657
    main.line(line("m4", 40, 2))
    assert home.spent(run) == 1699
    os.truncate(main.path, 0)
    assert home.spent(run) == 1699
    daemon.stop()
    home.start()
    assert home.spent(run) == 1699


def test_session_is_resumed_in_the_next_run(home: Home) -> None:
    """Only what is new belongs to the next run. ccusage/ccusage#1175"""
    home.start()
    claude = Claude(home)
    first = started(home)
    claude.call("SessionStart", source="startup")
    transcript(home).line(line("m1", 1000, 500))
    assert home.spent(first) == 1500
    home.ok("run", "finish", "--run", first)
    second = started(home)
    claude.call("SessionStart", source="resume")
    transcript(home).line(line("m2", 10, 5))
    assert (home.spent(first), home.spent(second)) == (1500, 15)


@contextmanager
def daemon_in(directory: Path, environ: dict[str, str]) -> Iterator[None]:
    """Run a daemon from a working directory, with the state directory that the environment gives it."""
    directory.mkdir(exist_ok=True)
    log = directory / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            DAEMON, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
    with killed(process):
        wait_for(lambda: '"event": "ready"' in log.read_text(), "the daemon to be ready")
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0


def test_relative_state_directory_is_ignored(home: Home) -> None:
    """A relative path in an XDG variable is invalid: it would mean another place for each working directory.

    tox-dev/platformdirs#539, atuinsh/atuin#3833
    """
    environ = {**home.environ, "XDG_STATE_HOME": "state"}

    def runs() -> list[str]:
        command = [*CTL, "run", "list", "--json", "--timeout", "60"]
        answer = subprocess.run(command, env=environ, capture_output=True, check=True, cwd=home.project)
        return [each["run"]["id"] for each in json.loads(answer.stdout)["runs"]]

    with daemon_in(home.root / "one", environ):
        run = started(home)
    with daemon_in(home.root / "two", environ):
        assert runs() == [run]

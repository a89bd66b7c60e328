"""Transcripts that are cut, deleted, unreadable or damaged, or named by a hook, through the real daemon."""

import os
import shutil
from pathlib import Path

import pytest

from harness.daemon import Daemon, Home, project_of, started, wait_for
from harness.interstat import Interstat
from harness.live import by_agent, offsets, transcript
from harness.privilege import OBEDIENT
from harness.transcripts import assistant_line, encoded


def test_reading_continues_after_a_restart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """What was already counted is not read again, and what was written in the meantime is read."""
    run = started(home, session="s1")
    writer = transcript(home)
    for number in range(50):
        writer.response(f"m{number}", tokens=(100, 0, 0, 0))
    assert home.spent(run) == 5000
    wait_for(lambda: offsets(home) == {writer.path.stat().st_size}, "the position in the ledger")
    daemon.kill()
    raw = writer.path.read_bytes()
    writer.path.write_bytes(raw.replace(b'"input_tokens":100', b'"input_tokens":999', 1))  # well before the position
    os.utime(writer.path)
    home.start()
    assert home.spent(run) == 5000
    writer.response("m0", tokens=(100, 0, 0, 0))
    writer.response("new", tokens=(7, 0, 0, 0))
    assert home.spent(run) == 5007


def test_changed_file_still_counts(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """What it had keeps counting, whether it was cut, replaced or rewritten, even while the daemon was stopped."""
    run = started(home, session="s1")
    writer = transcript(home)
    agent = writer.agent("a")
    for number in range(10):
        writer.response(f"m{number}", tokens=(10, 0, 0, 0))
    agent.response("x", tokens=(5000, 0, 0, 0))
    assert home.spent(run) == 5100
    raw = writer.path.read_bytes()
    writer.path.write_bytes(b"".join(raw.splitlines(keepends=True)[:3]))
    assert home.spent(run) == 5100
    other = writer.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line("s1", "other", tokens=(1, 0, 0, 0))))
    other.rename(writer.path)
    assert home.spent(run) == 5101
    wait_for(lambda: writer.path.stat().st_size in offsets(home), "the position in the ledger")
    daemon.kill()
    writer.path.write_bytes(b"".join(raw.splitlines(keepends=True)[:6]))
    home.start()
    assert home.spent(run) == 5101
    writer.response("m10", tokens=(30, 0, 0, 0))
    assert home.spent(run) == 5131


def test_deleted_transcripts_still_count(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Claude Code deletes them after a month. The totals stay and are not stale, even after a restart."""
    run = started(home, session="s1")
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    writer.agent("a").response("m2", tokens=(60, 0, 0, 0))
    assert home.spent(run) == 560
    interstat.insert("s1", input_tokens=9, output_tokens=0)
    wait_for(lambda: len(offsets(home)) == 2, "the positions in the ledger")
    shutil.rmtree(writer.path.parent)
    assert home.spent(run) == 560
    daemon.kill()
    home.start()
    assert home.spent(run) == 560
    assert by_agent(home, run) == {"main-session": 500, "agent-a": 60}


def test_totals_of_an_unreadable_transcript_are_stale(home: Home, interstat: Interstat) -> None:
    """`doctor` names the file; other runs are not affected; the totals recover without a restart."""
    home.start(prefix=OBEDIENT)
    run, other = started(home, session="s1"), started(home, session="s2", project=project_of(home, "s2"))
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    assert home.spent(run) == 500
    with writer.path.open("ab") as file:  # opened while that is still possible
        writer.path.chmod(0)
        file.write(encoded(assistant_line(writer.session, "m2", tokens=(60, 0, 0, 0))))
    spend = home.spend(run)
    assert (spend.spent, spend.stale) == (500, True)
    assert "transcripts: unreadable" in str(spend.stale_why)
    transcript(home, "s2").response("m3", tokens=(7, 0, 0, 0))
    assert home.spent(other) == 7
    doctor = home.ctl("doctor")
    assert doctor.returncode == 1
    assert str(writer.path) in doctor.stdout
    writer.path.chmod(0o644)
    assert home.spent(run) == 560
    assert home.ctl("doctor").returncode == 0


def test_unreadable_lines_are_skipped(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The lines around them count, `doctor` names the files, and other runs are not affected."""
    run, other = started(home, session="s1"), started(home, session="s2", project=project_of(home, "s2"))
    writer = transcript(home)
    odd = (
        b'{"type":"assistant","message":{"usage":\xff\xfe}}\n',
        b"\x00" * 50 + b'"usage"\n',
        b'{"type":"assistant","message":{"usage":' + b"[" * 100_000 + b"\n",
        b'{"type":"assistant","message":{"usage":"' + b"x" * (50 << 20) + b'"}}\n',
    )
    for number, line in enumerate(odd):
        writer.line(line)
        writer.response(f"m{number}", tokens=(10, 0, 0, 0))
    writer.agent("dir").path.mkdir(parents=True)
    loop = writer.subagents / "loop"
    loop.symlink_to(writer.subagents)
    (writer.subagents / "agent-x.jsonl").symlink_to("agent-x.jsonl")
    spend = home.spend(run)
    assert spend.spent == 40
    transcript(home, "s2").response("m", tokens=(7, 0, 0, 0))
    assert home.spent(other) == 7
    doctor = home.ctl("doctor").stdout
    assert "agent-dir.jsonl" in doctor
    assert daemon.status("VmHWM") < 150_000  # kB, with the blocking-call detector


def test_named_path_must_be_a_transcripts(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Another file is refused, and nothing is attached; a transcript may have any name and be anywhere."""
    run = started(home)
    inside = home.root / "claude" / "projects" / "p" / "another-name.jsonl"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(encoded(assistant_line("s1", "m1", tokens=(500, 0, 0, 0))))
    for path in (home.root / "claude" / "settings.json", Path("/etc/passwd")):
        result = home.ctl("run", "attach", "--run", run, "--session", "s1", "--transcript", str(path))
        assert (result.returncode, result.stdout) == (65, ""), result
    assert home.details(run).attachments == ()
    outside = home.root / "elsewhere.jsonl"
    outside.write_bytes(encoded(assistant_line("s2", "m2", request="req_2", tokens=(7, 0, 0, 0))))
    home.ok("run", "attach", "--run", run, "--session", "s1", "--transcript", str(inside))
    home.ok("run", "attach", "--run", run, "--session", "s2", "--transcript", str(outside))
    assert home.spent(run) == 507


@pytest.mark.parametrize("session", ["../s1", "a/b", ".", "..", "s'1", "s*", "[s]1", "ü"])
def test_session_id_never_leads_out_of_the_directory(
    home: Home, interstat: Interstat, daemon: Daemon, session: str
) -> None:
    """The id is the name of a file, never a pattern."""
    run = started(home, session=session)
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    (home.root / "claude" / "projects" / "s1.jsonl").write_bytes(writer.path.read_bytes())
    assert home.spent(run) == 0
    if "/" not in session and session not in (".", ".."):
        transcript(home, session).response("m1", tokens=(7, 0, 0, 0))
        assert home.spent(run) == 7


def test_emptied_transcript_still_counts(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Its session does not fall back to interstat's rows."""
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=240, output_tokens=0)
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    assert home.spent(run) == 500
    writer.path.write_bytes(b"")
    assert home.spent(run) == 500
    writer.response("m2", tokens=(70, 0, 0, 0))
    assert home.spent(run) == 570


def test_named_path_is_remembered_before_the_file_exists(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Claude Code names it at the start of a session. It survives a restart."""
    run = started(home)
    path = home.root / "claude" / "projects" / "p" / "odd-name.jsonl"
    path.parent.mkdir(parents=True)
    home.ok("run", "attach", "--run", run, "--session", "s1", "--transcript", str(path))
    assert home.spent(run) == 0
    wait_for(lambda: 0 in offsets(home), "the path in the ledger")
    daemon.kill()
    home.start()
    path.write_bytes(encoded(assistant_line("s1", "m1", tokens=(77, 0, 0, 0))))
    assert home.spent(run) == 77


def test_named_path_is_kept_beside_other_files(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The session has other files, older and newer, and Claude's directory is reached through a link."""
    link = home.root / "link"
    link.symlink_to(home.root / "claude")
    run = started(home, session="s1")
    writer = transcript(home)
    writer.agent("a").response("m1", tokens=(5, 0, 0, 0))
    assert home.spent(run) == 5
    path = link / "projects" / "p" / "odd-name.jsonl"
    path.parent.mkdir(parents=True)
    other = started(home)
    home.ok("run", "attach", "--run", other, "--session", "s1", "--transcript", str(path))
    for name in ("b", "c"):
        writer.agent(name).response(f"m-{name}", tokens=(10, 0, 0, 0))
        assert home.spent(other) in (10, 20)
    wait_for(lambda: len(offsets(home)) == 3, "all four files in the ledger")  # b and c have the same size
    daemon.kill()
    home.start()
    path.write_bytes(encoded(assistant_line("s1", "m9", tokens=(1000, 0, 0, 0))))
    assert (home.spent(run), home.spent(other)) == (5, 1020)

"""Sessions' transcripts as a source: live totals through the real daemon."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxbudgetd.engine import Engine
from fluxbudgetd.engine import live as live_module
from fluxbudgetd.errors import LedgerError, RequestTimeoutError
from fluxbudgetd.ledger import Ledger, TranscriptChanges, open_ledger
from fluxbudgetd.model import TranscriptFile
from fluxbudgetd.sources.transcripts import look as look_module
from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started, wait_for
from harness.interstat import Interstat
from harness.privilege import OBEDIENT
from harness.transcripts import Transcript, assistant_line, encoded, recount
from test_hangs import engine_over, within


def transcript(home: Home, session: str = "s1", project: str = "-home-me-work") -> Transcript:
    return Transcript(home.root / "claude", session, project)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def show(home: Home, run: str) -> messages.RunShowAnswer:
    answer = home.ask(messages.RunShow(run=run, wait_ms=30_000))
    assert isinstance(answer, messages.RunShowAnswer), answer
    return answer


def spent(home: Home, run: str) -> int:
    spend = home.spend(run)
    assert not spend.stale, spend
    return spend.spent


def by_agent(home: Home, run: str) -> dict[str, int]:
    return {line.name: line.billing for line in show(home, run).by_agent}


def test_tokens_count_while_the_session_runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every complete line that was there before the question is in the answer; half a line is not, until it is."""
    run = started(home, session="s1", token_budget=10_000)
    writer = transcript(home)
    assert spent(home, run) == 0
    writer.response("m1", tokens=(100, 10, 5000, 70))
    assert home.ok("remaining", "--run", run) == "9890"
    writer.half("m2", tokens=(1000, 0, 0, 0))
    assert spent(home, run) == 110
    writer.rest()
    assert spent(home, run) == 1110
    assert show(home, run).totals.total == 6180
    assert show(home, run).sources[0].counts == "transcripts"


def test_response_counts_once(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Its lines repeat its usage, partly or wholly; the largest counts, also when it comes later, from another file."""
    run = started(home, session="s1")
    writer = transcript(home)
    for output, largest in ((1, 1), (8, 8), (300, 300), (8, 300)):
        writer.response("m1", tokens=(50, output, 0, 0))
        assert spent(home, run) == 50 + largest
    writer.agent("a").response("m1", request="other", tokens=(9000, 0, 0, 0))  # a sidechain's copy of it
    assert spent(home, run) == 350
    writer.agent("a").response("m2", request=None, tokens=(1, 1, 0, 0))
    assert spent(home, run) == 352


def test_subagents_come_and_have_names(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Without a restart, at any depth; the name is the companion's, when there is one."""
    run = started(home, session="s1")
    writer = transcript(home)
    writer.response("m1", tokens=(1, 0, 0, 0))
    assert spent(home, run) == 1
    first = writer.agent("one")
    first.response("m2", tokens=(20, 0, 0, 0))
    assert by_agent(home, run) == {"agent-one": 20, "main-session": 1}
    first.meta(agentType="interflux:fd-quality", description="review")
    writer.agent("two", "deep", "er").response("m3", tokens=(300, 0, 0, 0))
    assert by_agent(home, run) == {"agent-two": 300, "fd-quality": 20, "main-session": 1}
    first.response("m4", tokens=(4000, 0, 0, 0))
    assert by_agent(home, run) == {"fd-quality": 4020, "agent-two": 300, "main-session": 1}


def test_transcripts_count_and_both_figures_are_shown(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Never both: interstat's rows count for a session without transcripts; where it over-counts, words say so."""
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    interstat.insert("s1", input_tokens=240, output_tokens=0)
    interstat.insert("s2", input_tokens=7, output_tokens=0)
    assert spent(home, run) == 247
    transcript(home).response("m1", tokens=(100, 0, 0, 0))
    assert spent(home, run) == 107
    one, two = show(home, run).sources
    assert (one.session, one.counts, one.transcripts_billing, one.interstat_billing) == ("s1", "transcripts", 100, 240)
    assert one.ratio == 2.4
    assert "interstat counts 2.4 times what the transcripts say" in one.words
    assert (two.session, two.counts, two.ratio, two.words) == ("s2", "interstat", None, "")
    assert "interstat counts 2.4 times" in home.ok("doctor")
    assert "2.4" in home.ok("run", "show", "--run", run)
    assert json.loads(home.ok("doctor", "--json"))["daemon"]["sessions"][0]["session"] == "s1"


def test_transcripts_without_tokens_do_not_count(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A transcript that holds no usage leaves interstat's rows as they are."""
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=240, output_tokens=0)
    writer = transcript(home)
    writer.line(b'{"type":"user","message":{"content":"hello"}}\n')
    writer.response("m1", model="<synthetic>", tokens=(0, 0, 0, 0))
    assert spent(home, run) == 240


def test_bead_brings_its_sessions_transcripts(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A row with the run's bead attaches the session; from then on its transcripts count."""
    run = started(home, scope="b1")
    transcript(home).response("m1", tokens=(500, 0, 0, 0))
    assert spent(home, run) == 0
    interstat.insert("s1", "fd-quality", bead_id="b1")
    assert spent(home, run) == 500


def test_without_interstat(home: Home) -> None:
    """Somebody who has no interstat at all has live totals, and nothing is called stale."""
    home.start()
    run = started(home, session="s1", scope="b1")
    transcript(home).response("m1", tokens=(500, 0, 0, 0))
    assert spent(home, run) == 500


def test_two_runs_and_two_phases_in_one_session(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Each response belongs to the run, and the phase, that its time falls into."""
    first = started(home, session="s1", phases=("a", "b"))
    second = started(home)
    writer = transcript(home)
    writer.response("m0", tokens=(1, 0, 0, 0), at="2020-01-01T00:00:00.000Z")  # before it was attached: reaches back
    writer.response("m1", tokens=(20, 0, 0, 0), at=now())
    assert spent(home, first) == 21
    time.sleep(0.002)  # a transcript's times have milliseconds
    home.ok("advance", "--run", first, "--from", "a")
    time.sleep(0.002)
    writer.response("m2", tokens=(300, 0, 0, 0), at=now())
    time.sleep(0.002)
    home.ok("run", "attach", "--run", second, "--session", "s1")
    time.sleep(0.002)
    writer.response("m3", tokens=(4000, 0, 0, 0), at=now())
    assert [line.billing for line in show(home, first).by_phase] == [21, 300]
    assert (spent(home, first), spent(home, second)) == (321, 4000)
    home.ok("run", "attach", "--run", first, "--session", "s1")
    assert (spent(home, first), spent(home, second)) == (321, 4000)
    # A larger copy of an old response is still the old response's.
    writer.response("m1", tokens=(25, 0, 0, 0), at="2020-01-01T00:00:00.000Z")
    assert [line.billing for line in show(home, first).by_phase] == [26, 300]


def test_restart_goes_on_where_it_was(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """What was counted is not read again, and never counted twice; what came meanwhile is."""
    run = started(home, session="s1")
    writer = transcript(home)
    for number in range(50):
        writer.response(f"m{number}", tokens=(100, 0, 0, 0))
    assert spent(home, run) == 5000
    wait_for(lambda: offsets(home) == {writer.path.stat().st_size}, "the position to be kept")
    daemon.kill()
    raw = writer.path.read_bytes()
    writer.path.write_bytes(raw.replace(b'"input_tokens":100', b'"input_tokens":999', 1))  # long before the position
    os.utime(writer.path)
    home.start()
    assert spent(home, run) == 5000
    writer.response("m0", tokens=(100, 0, 0, 0))
    writer.response("new", tokens=(7, 0, 0, 0))
    assert spent(home, run) == 5007


def offsets(home: Home) -> set[int]:
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        return {offset for (offset,) in connection.execute("SELECT offset FROM transcripts")}
    finally:
        connection.close()


def test_file_that_is_another_one_now(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Cut, replaced, rewritten: what is there now counts, whether the daemon saw it happen or not."""
    run = started(home, session="s1")
    writer = transcript(home)
    agent = writer.agent("a")
    for number in range(10):
        writer.response(f"m{number}", tokens=(10, 0, 0, 0))
    agent.response("x", tokens=(5000, 0, 0, 0))
    assert spent(home, run) == 5100
    raw = writer.path.read_bytes()
    writer.path.write_bytes(b"".join(raw.splitlines(keepends=True)[:3]))
    assert spent(home, run) == 5030
    other = writer.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line("s1", "other", tokens=(1, 0, 0, 0))))
    other.rename(writer.path)
    assert spent(home, run) == 5001
    daemon.kill()
    writer.path.write_bytes(b"".join(raw.splitlines(keepends=True)[:6]))
    home.start()
    assert spent(home, run) == 5060


def test_deleted_transcripts_keep_their_numbers(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """They are deleted after a month; the last numbers stay, across a restart, too, and nothing is called stale."""
    run = started(home, session="s1")
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    writer.agent("a").response("m2", tokens=(60, 0, 0, 0))
    assert spent(home, run) == 560
    interstat.insert("s1", input_tokens=9, output_tokens=0)
    wait_for(lambda: len(offsets(home)) == 2, "the positions to be kept")
    shutil.rmtree(writer.path.parent)
    assert spent(home, run) == 560
    daemon.kill()
    home.start()
    assert spent(home, run) == 560
    assert by_agent(home, run) == {"main-session": 500, "agent-a": 60}


def test_unreadable_transcript_is_stale(home: Home, interstat: Interstat) -> None:
    """The last known numbers, called that; doctor names the file; others go on; it recovers by itself."""
    home.start(prefix=OBEDIENT)
    run, other = started(home, session="s1"), started(home, session="s2")
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    assert spent(home, run) == 500
    with writer.path.open("ab") as file:  # opened while it still could be
        writer.path.chmod(0)
        file.write(encoded(assistant_line(writer.session, "m2", tokens=(60, 0, 0, 0))))
    spend = home.spend(run)
    assert (spend.spent, spend.stale) == (500, True)
    assert "transcripts: unreadable" in str(spend.stale_why)
    transcript(home, "s2").response("m3", tokens=(7, 0, 0, 0))
    assert spent(home, other) == 7
    doctor = home.ctl("doctor")
    assert doctor.returncode == 1
    assert str(writer.path) in doctor.stdout
    writer.path.chmod(0o644)
    assert spent(home, run) == 560
    assert home.ctl("doctor").returncode == 0


def test_what_cannot_be_understood_is_skipped(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Counted, and named by doctor; what stands around it counts, and nobody else is disturbed."""
    run, other = started(home, session="s1"), started(home, session="s2")
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
    assert spent(home, other) == 7
    doctor = home.ctl("doctor").stdout
    assert "agent-dir.jsonl" in doctor
    assert daemon.status("VmHWM") < 150_000  # kB; the detector and the test's own imports are in it


def test_path_that_a_hook_gives(home: Home, interstat: Interstat, daemon: Daemon, tmp_path: Path) -> None:
    """Taken inside Claude's directory, refused outside, also through a symlink; nothing is attached then."""
    run = started(home)
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(encoded(assistant_line("s1", "m1", tokens=(500, 0, 0, 0))))
    link = home.root / "claude" / "projects" / "p" / "link.jsonl"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    up = home.root / "claude" / "projects" / ".." / ".." / "outside.jsonl"
    for path in (outside, link, up, home.root / "claude" / "settings.json", Path("/etc/passwd")):
        result = home.ctl("run", "attach", "--run", run, "--session", "s1", "--transcript", str(path))
        assert (result.returncode, result.stdout) == (65, ""), result
    assert show(home, run).attachments == ()
    inside = home.root / "claude" / "projects" / "p" / "another-name.jsonl"
    shutil.copy(outside, inside)
    home.ok("run", "attach", "--run", run, "--session", "s1", "--transcript", str(inside))
    assert spent(home, run) == 500


@pytest.mark.parametrize("session", ["../s1", "a/b", ".", "..", "s'1", "s*", "[s]1", "ü"])
def test_session_ids_are_foreign(home: Home, interstat: Interstat, daemon: Daemon, session: str) -> None:
    """They name a file or nothing: no pattern, no way out of the directory."""
    run = started(home, session=session)
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    (home.root / "claude" / "projects" / "s1.jsonl").write_bytes(writer.path.read_bytes())
    assert spent(home, run) == 0
    if "/" not in session and session not in (".", ".."):
        transcript(home, session).response("m1", tokens=(7, 0, 0, 0))
        assert spent(home, run) == 7


def test_ended_run_still_counts_late_lines(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "finish", "--run", run)
    transcript(home).response("m1", tokens=(7, 0, 0, 0))
    assert spent(home, run) == 7


def test_growing_transcripts_are_noticed_unasked(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A threshold is told without anybody's question, from a main file and from a new sub-agent's."""

    def told() -> list[int]:
        connection = sqlite3.connect(home.state / "ledger.db")
        try:
            rows = connection.execute("SELECT data FROM events WHERE kind = 'budget.threshold' ORDER BY seq").fetchall()
        finally:
            connection.close()
        return [json.loads(data)["threshold"] for (data,) in rows]

    writer = transcript(home)
    writer.response("m0", tokens=(1, 0, 0, 0))
    run = started(home, session="s1", token_budget=1000)
    assert spent(home, run) == 1
    writer.response("m1", tokens=(600, 0, 0, 0))
    wait_for(lambda: told() == [50], "50 % to be told")
    writer.agent("new").response("m2", tokens=(250, 0, 0, 0))
    wait_for(lambda: told() == [50, 80], "80 % to be told")


def test_report_has_live_actuals(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A review's sub-agents are measured while the session goes on."""
    started(home, session="s1")
    writer = transcript(home)
    old = writer.agent("old")
    old.meta(agentType="interflux:fd-safety")
    old.response("m0", tokens=(1000, 0, 0, 0), at="2020-01-01T00:00:00.000Z")
    agents = {"agents": [{"name": "fd-safety", "score": 1, "stage": 1}]}
    decided = home.ctl("triage", stdin=json.dumps(agents), environ={"CLAUDE_CODE_SESSION_ID": "s1"})
    name = json.loads(decided.stdout)["triage_id"]
    assert home.json("report", "--triage", name)["actual_billing"] == "pending"
    time.sleep(0.002)
    agent = writer.agent("new")
    agent.meta(agentType="interflux:fd-safety")
    agent.response("m1", tokens=(50_000, 0, 0, 0), at=now())
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000


def test_transcript_that_holds_nothing_any_more(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Emptied, it holds no usage: interstat's rows count again."""
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=240, output_tokens=0)
    writer = transcript(home)
    writer.response("m1", tokens=(500, 0, 0, 0))
    assert spent(home, run) == 500
    writer.path.write_bytes(b"")
    assert spent(home, run) == 240
    writer.response("m1", tokens=(70, 0, 0, 0))
    assert spent(home, run) == 70


def test_path_that_is_given_before_the_file_is_there(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A hook is asked at the session's start; the path is remembered across a restart, too."""
    run = started(home)
    path = home.root / "claude" / "projects" / "p" / "odd-name.jsonl"
    path.parent.mkdir(parents=True)
    home.ok("run", "attach", "--run", run, "--session", "s1", "--transcript", str(path))
    assert spent(home, run) == 0
    wait_for(lambda: 0 in offsets(home), "the path to be kept")
    daemon.kill()
    home.start()
    path.write_bytes(encoded(assistant_line("s1", "m1", tokens=(77, 0, 0, 0))))
    assert spent(home, run) == 77


def test_named_path_is_kept_whatever_else_comes(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Other files of the session come, before and after; Claude's directory is reached by a link."""
    link = home.root / "link"
    link.symlink_to(home.root / "claude")
    run = started(home, session="s1")
    writer = transcript(home)
    writer.agent("a").response("m1", tokens=(5, 0, 0, 0))
    assert spent(home, run) == 5
    path = link / "projects" / "p" / "odd-name.jsonl"
    path.parent.mkdir(parents=True)
    other = started(home)
    home.ok("run", "attach", "--run", other, "--session", "s1", "--transcript", str(path))
    for name in ("b", "c"):
        writer.agent(name).response(f"m-{name}", tokens=(10, 0, 0, 0))
        assert spent(home, run) in (15, 25)
    wait_for(lambda: len(offsets(home)) == 3, "all four to be kept")  # b and c are of one size
    daemon.kill()
    home.start()
    path.write_bytes(encoded(assistant_line("s1", "m9", tokens=(1000, 0, 0, 0))))
    assert spent(home, run) == 1025


def test_report_right_after_a_restart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Of an ended run, whose sessions nobody has asked for yet: the transcripts' figures, not interstat's."""
    run = started(home, session="s1")
    agents = {"agents": [{"name": "fd-safety", "score": 1, "stage": 1}]}
    decided = home.ctl("triage", stdin=json.dumps(agents), environ={"CLAUDE_CODE_SESSION_ID": "s1"})
    name = json.loads(decided.stdout)["triage_id"]
    time.sleep(0.002)
    agent = transcript(home).agent("x")
    agent.meta(agentType="interflux:fd-safety")
    agent.response("m1", tokens=(50_000, 0, 0, 0), at=now())
    interstat.insert("s1", "fd-safety", input_tokens=120_000, output_tokens=0)
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000
    wait_for(lambda: offsets(home), "the position to be kept")
    home.ok("run", "finish", "--run", run)
    daemon.kill()
    home.start()
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000


def test_killed_between_rows_and_transcripts(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The ledger has a session's transcripts and not yet its rows: it is still the transcripts that count."""
    run = started(home, scope="b1")
    interstat.insert("s1", bead_id="b1", input_tokens=240, output_tokens=0)
    transcript(home).response("m1", tokens=(100, 0, 0, 0))
    assert spent(home, run) == 100
    wait_for(lambda: offsets(home), "the position to be kept")
    daemon.kill()
    connection = sqlite3.connect(home.state / "ledger.db")
    connection.execute("DELETE FROM usage")
    connection.commit()
    connection.close()
    home.start()
    assert spent(home, run) == 100


# --- what real files and processes do not do often enough: in one process, over real files


def append(directory: Path, session: str, first: int, count: int, tokens: int = 1) -> None:
    writer = Transcript(directory, session)
    for number in range(first, first + count):
        writer.response(f"m{number}", tokens=(tokens, 0, 0, 0))


def test_changes_while_a_transcript_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session is read in many looks; it is moved, and its run goes on, between them: nothing twice, nothing lost."""
    monkeypatch.setattr(look_module, "LOOK_BYTES", 3000)

    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        async with engine_over(tmp_path) as (engine, _):
            first, _ = await engine.changes.start(
                messages.RunStart(project_dir="/p", session="s1", phases=tuple("abcdefgh")), within(10)
            )
            second, _ = await engine.changes.start(messages.RunStart(project_dir="/q"), within(10))
            one, two = engine.book.runs[first.id], engine.book.runs[second.id]
            append(tmp_path, "s1", 0, 5)
            await engine.standing(one, within(10))
            append(tmp_path, "s1", 5, 300)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.standing, one, within(20))
                for phase in "abcde":
                    await anyio.sleep(0.01)
                    await engine.gate.advance(one, phase, None, None)
                    await engine.changes.attach("s1", two, within(10))
                    await engine.changes.attach("s1", one, within(10))
            standings = await engine.standings([one, two], within(10))
            assert [standing.balance.measured for standing in standings] == [305, 0]
            assert all(standing.stale_why is None for standing in standings)
            Transcript(tmp_path, "s1").path.write_bytes(b"")
            append(tmp_path, "s1", 0, 200, tokens=10)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.standing, one, within(20))
                await anyio.sleep(0.005)
                await engine.changes.detach("s1", None, within(10))
            assert (await engine.standing(one, within(10))).balance.measured == 2000

    anyio.run(body)


@pytest.mark.parametrize("restarted", [False, True])
def test_ledger_that_cannot_be_read_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool) -> None:
    """What has come is not added to nothing: stale, or no answer, until the ledger is back, and right then."""
    monkeypatch.setattr(live_module, "_MOST_COPIES", 0)
    failing = False
    real = Ledger.responses

    async def responses(ledger: Ledger, session: str) -> Any:
        if failing:  # a disk that fails for once cannot be had here
            raise LedgerError("disk I/O error")
        return await real(ledger, session)

    monkeypatch.setattr(Ledger, "responses", responses)

    async def ask(engine: Engine, run: str) -> tuple[int | None, bool]:
        try:
            standing = await engine.standing(engine.book.runs[run], within(2))
        except RequestTimeoutError:
            return None, True
        return standing.balance.measured, standing.stale_why is not None

    async def body() -> None:
        nonlocal failing
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", input_tokens=9, output_tokens=0)
        async with engine_over(tmp_path) as (engine, _):
            for session in ("s1", "s2"):
                run, _ = await engine.changes.start(
                    messages.RunStart(project_dir="/p", id=f"r-{session}", session=session), within(10)
                )
                append(tmp_path, session, 0, 50)
                assert await ask(engine, run.id) == (50, False)
            if not restarted:
                append(tmp_path, "s1", 50, 7)
                failing = True
                assert (await ask(engine, "r-s1"))[1]
                failing = False
                assert await ask(engine, "r-s1") == (57, False)
        if restarted:
            async with engine_over(tmp_path) as (engine, _):
                failing = True
                assert await ask(engine, "r-s1") == (None, True)
                failing = False
                assert await ask(engine, "r-s1") == (50, False)
        interstat.close()

    anyio.run(body)


def test_session_that_goes_on_in_another_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for anew every few seconds."""
    monkeypatch.setattr(live_module, "_SURVEY_SECONDS", 0.05)

    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        other = Transcript(tmp_path, "s1", "-another")
        other.path.parent.mkdir(parents=True)
        async with engine_over(tmp_path) as (engine, _):
            run, _ = await engine.changes.start(messages.RunStart(project_dir="/p", session="s1"), within(10))
            append(tmp_path, "s1", 0, 5)
            assert (await engine.standing(engine.book.runs[run.id], within(5))).balance.measured == 5
            other.response("elsewhere", tokens=(30, 0, 0, 0))
            await anyio.sleep(0.06)
            assert (await engine.standing(engine.book.runs[run.id], within(5))).balance.measured == 35

    anyio.run(body)


def test_inodes_are_unsigned(tmp_path: Path) -> None:
    """Some file systems give numbers that SQLite's integers do not hold."""

    async def body() -> None:
        ledger, _ = await open_ledger(str(tmp_path))
        file = TranscriptFile(1, "/p", 2**64 - 1, 2**63, 5, b"mark", "main-session")
        await ledger.save_transcripts([TranscriptChanges(session="s", gone=(), new=(), files=(file,))])
        assert await ledger.transcript_files("s") == (file,)
        await ledger.close()

    anyio.run(body)


def test_old_sessions_are_forgotten(tmp_path: Path) -> None:
    """What no followed run needs any more is let go of, with whatever was wrong with it."""

    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        async with engine_over(tmp_path) as (engine, _):
            run, _ = await engine.changes.start(messages.RunStart(project_dir="/p", session="s1"), within(10))
            append(tmp_path, "s1", 0, 5)
            Transcript(tmp_path, "s1").agent("x").path.mkdir(parents=True)
            state = engine.book.runs[run.id]
            assert "is a directory" in str((await engine.standing(state, within(5))).stale_why)
            await engine.changes.end(state, "done", within(5))
            ended = msgspec.structs.replace(state.run, ended_at=1)  # long ago
            engine.book.put_run(ended)
            with anyio.fail_after(30):
                while engine.live.files or engine.live.status.state != "ok":
                    engine.forget_old_transcripts()
                    await anyio.sleep(0.01)  # a look that had begun before may bring it back once

    anyio.run(body)


# --- against a recount

SERIAL = count()
message_ids = st.sampled_from(("m1", "m2", "m3", "m4"))
requests = st.sampled_from(("r1", "r2", None))
counts = st.tuples(*[st.integers(0, 50)] * 4)
lines = st.lists(
    st.one_of(
        st.tuples(st.just("response"), st.sampled_from((0, 1, 2)), message_ids, requests, st.booleans(), counts),
        st.tuples(st.just("raw"), st.sampled_from((0, 1)), st.sampled_from((b"{}\n", b"\xff\n", b'{"type":"user"}\n'))),
    ),
    min_size=1,
    max_size=40,
)

WRITER = """
import random, sys, time
chance = random.Random(int(sys.argv[1]))
ahead = [(path, open(path + ".ahead", "rb").read()) for path in sys.argv[2:]]
rest = {path: raw for path, raw in ahead}
while any(rest.values()):
    path = chance.choice([path for path, raw in rest.items() if raw])
    size = chance.randrange(1, 2500)
    with open(path, "ab") as file:
        file.write(rest[path][:size])
    rest[path] = rest[path][size:]
    time.sleep(chance.random() * 0.004)
"""


def total(files: dict[int, tuple[bytes, str]]) -> int:
    return sum(sum(one.tokens[:2]) for one in recount(files))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=lines, seed=st.integers(0, 1000))
def test_totals_equal_a_recount(live_home: Home, lines: list[tuple[Any, ...]], seed: int) -> None:
    """Another process appends in random pieces meanwhile.

    Every answer is the recount of what was there at some moment between question and answer; at rest, of everything.
    """
    session = f"s-{next(SERIAL)}"  # hypothesis makes random numbers the same again
    writer = transcript(live_home, session)
    writers = [writer, writer.agent("a"), writer.agent("b", "deeper")]
    raws = [b"", b"", b""]
    for what, which, *rest in lines:
        if what == "raw":
            raws[which] += rest[0]
        else:
            message, request, sidechain, tokens = rest
            fields = {"request": request, "tokens": tokens, "sidechain": sidechain or which > 0}
            raws[which] += encoded(assistant_line(session, message, **fields))
    for one, raw in zip(writers, raws, strict=True):
        one.path.parent.mkdir(parents=True, exist_ok=True)
        one.path.with_name(one.path.name + ".ahead").write_bytes(raw)
    run = started(live_home, session=session, token_budget="none")
    command = [sys.executable, "-c", WRITER, str(seed), *(str(one.path) for one in writers)]
    process = subprocess.Popen(command)
    agents = ("main-session", "agent-a", "agent-b")

    def sizes() -> list[int]:
        return [one.path.stat().st_size if one.path.exists() else 0 for one in writers]

    def complete(raw: bytes, size: int) -> int:
        return raw[:size].count(b"\n")

    with Wire(live_home.socket) as wire:
        while process.poll() is None:
            before = sizes()
            answer = wire.ask(messages.Remaining(run=run, wait_ms=30_000))
            after = sizes()
            assert isinstance(answer, messages.RemainingAnswer)
            possible = {
                total(
                    {
                        number: (
                            b"\n".join(raw.split(b"\n")[:complete_lines]) + b"\n" if complete_lines else b"",
                            agent,
                        )
                        for number, (raw, complete_lines, agent) in enumerate(zip(raws, (x, y, z), agents, strict=True))
                    }
                )
                for x in range(complete(raws[0], before[0]), complete(raws[0], after[0]) + 1)
                for y in range(complete(raws[1], before[1]), complete(raws[1], after[1]) + 1)
                for z in range(complete(raws[2], before[2]), complete(raws[2], after[2]) + 1)
            }
            assert answer.spend.spent in possible
    assert process.returncode == 0
    whole = {number: (raw, agent) for number, (raw, agent) in enumerate(zip(raws, agents, strict=True))}
    assert spent(live_home, run) == total(whole)
    live_home.ok("run", "finish", "--run", run)


@pytest.fixture(scope="module")
def live_home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = Home(tmp_path_factory.mktemp("live"))
    interstat = Interstat(home.interstat)
    home.start()
    yield home
    interstat.close()
    home.stop_all()


@pytest.mark.soak
def test_killed_while_appending(home: Home, interstat: Interstat) -> None:
    """Kill -9 under load, twenty times: after each restart the totals are those of a recount, and at the end, too."""
    sessions = [f"s{number}" for number in range(4)]
    daemon = home.start()
    run = started(home, token_budget="none")
    for session in sessions:
        home.ok("run", "attach", "--run", run, "--session", session)
    chance = random.Random(7)
    raws = {}
    for session in sessions:
        raw = b"".join(
            encoded(assistant_line(session, f"m{chance.randrange(300)}", tokens=(chance.randrange(99), n, 0, 0)))
            for n in range(1500)
        )
        path = transcript(home, session).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".ahead").write_bytes(raw)
        raws[session] = raw
    command = [sys.executable, "-c", WRITER, "3", *(str(transcript(home, session).path) for session in sessions)]
    process = subprocess.Popen(command)
    try:
        for _ in range(20):
            time.sleep(chance.random() * 0.2)
            home.ask(messages.Remaining(run=run, wait_ms=30_000))
            daemon.kill()
            daemon = home.start()
        process.wait(timeout=60)
    finally:
        process.send_signal(signal.SIGKILL)
    expected = sum(total({0: (raw, "main-session")}) for raw in raws.values())
    assert spent(home, run) == expected
    daemon.kill()
    home.start()
    assert spent(home, run) == expected

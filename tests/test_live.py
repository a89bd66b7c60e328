"""Live totals from sessions' transcripts, through the real daemon."""

import json
import sqlite3
import time

from harness.daemon import Daemon, Home, started, wait_for
from harness.interstat import Interstat
from harness.live import by_agent, offsets, transcript
from harness.transcripts import timestamp


def test_tokens_count_while_the_session_runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every complete line that was written before the request is in the answer; an incomplete line is not."""
    run = started(home, session="s1", token_budget=10_000)
    writer = transcript(home)
    assert home.spent(run) == 0
    writer.response("m1", tokens=(100, 10, 5000, 70))
    assert home.ok("remaining", "--run", run) == "9890"
    writer.incomplete("m2", tokens=(1000, 0, 0, 0))
    assert home.spent(run) == 110
    writer.rest()
    assert home.spent(run) == 1110
    assert home.details(run).totals.total == 6180
    assert home.details(run).sources[0].counts == "transcripts"


def test_response_counts_once(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Its lines repeat its usage, in part or in full, and a sidechain may replay it. The largest own line counts."""
    run = started(home, session="s1")
    writer = transcript(home)
    for output, largest in ((1, 1), (8, 8), (300, 300), (8, 300)):
        writer.response("m1", tokens=(50, output, 0, 0))
        assert home.spent(run) == 50 + largest
    writer.agent("a").response("m1", request="other", tokens=(50, 900, 0, 0))
    assert home.spent(run) == 350
    writer.agent("a").response("m2", request=None, tokens=(1, 1, 0, 0))
    assert home.spent(run) == 352


def test_new_sub_agents_count_under_their_names(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """No restart is needed, and the depth does not matter. A file beside the transcript has the name."""
    run = started(home, session="s1")
    writer = transcript(home)
    writer.response("m1", tokens=(1, 0, 0, 0))
    assert home.spent(run) == 1
    first = writer.agent("one")
    first.response("m2", tokens=(20, 0, 0, 0))
    assert by_agent(home, run) == {"agent-one": 20, "main-session": 1}
    first.meta(agentType="interflux:fd-quality", description="review")
    writer.agent("two", "deep", "er").response("m3", tokens=(300, 0, 0, 0))
    assert by_agent(home, run) == {"agent-two": 300, "fd-quality": 20, "main-session": 1}
    first.response("m4", tokens=(4000, 0, 0, 0))
    assert by_agent(home, run) == {"fd-quality": 4020, "agent-two": 300, "main-session": 1}


def test_transcripts_count_instead_of_interstat_and_both_are_shown(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """Interstat's rows count only for a session without transcripts. A higher figure from interstat is explained."""
    run = started(home, session="s1")
    home.ok("run", "attach", "--run", run, "--session", "s2")
    interstat.insert("s1", input_tokens=240, output_tokens=0)
    interstat.insert("s2", input_tokens=7, output_tokens=0)
    assert home.spent(run) == 247
    transcript(home).response("m1", tokens=(100, 0, 0, 0))
    assert home.spent(run) == 107
    one, two = home.details(run).sources
    assert (one.session, one.counts, one.transcripts_billing, one.interstat_billing) == ("s1", "transcripts", 100, 240)
    assert one.ratio == 2.4
    assert "interstat counts 2.4 times what the transcripts say" in one.words
    assert (two.session, two.counts, two.ratio, two.words) == ("s2", "interstat", None, "")
    assert "interstat counts 2.4 times" in home.ok("doctor")
    assert "2.4" in home.ok("run", "show", "--run", run)
    assert json.loads(home.ok("doctor", "--json"))["daemon"]["sessions"][0]["session"] == "s1"


def test_interstat_counts_for_a_transcript_without_usage(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=240, output_tokens=0)
    writer = transcript(home)
    writer.line(b'{"type":"user","message":{"content":"hello"}}\n')
    writer.response("m1", model="<synthetic>", tokens=(0, 0, 0, 0))
    assert home.spent(run) == 240


def test_transcripts_of_a_session_attached_by_its_bead_count(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, scope="b1")
    transcript(home).response("m1", tokens=(500, 0, 0, 0))
    assert home.spent(run) == 0
    interstat.insert("s1", "fd-quality", bead_id="b1")
    assert home.spent(run) == 500


def test_totals_without_interstat(home: Home) -> None:
    """They are not stale."""
    home.start()
    run = started(home, session="s1", scope="b1")
    transcript(home).response("m1", tokens=(500, 0, 0, 0))
    assert home.spent(run) == 500


def test_response_belongs_to_the_run_and_phase_of_its_time(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    first = started(home, session="s1", whole=True, phases=("a", "b"))
    second = started(home)
    writer = transcript(home)
    writer.response("m0", tokens=(1, 0, 0, 0), at="2020-01-01T00:00:00.000Z")  # before the attachment
    writer.response("m1", tokens=(20, 0, 0, 0), at=timestamp())
    assert home.spent(first) == 21
    time.sleep(0.002)  # a transcript's times have milliseconds
    home.ok("advance", "--run", first, "--from", "a")
    time.sleep(0.002)
    writer.response("m2", tokens=(300, 0, 0, 0), at=timestamp())
    time.sleep(0.002)
    home.ok("run", "attach", "--run", second, "--session", "s1")
    time.sleep(0.002)
    writer.response("m3", tokens=(4000, 0, 0, 0), at=timestamp())
    assert [line.billing for line in home.details(first).by_phase] == [21, 300]
    assert (home.spent(first), home.spent(second)) == (321, 4000)
    home.ok("run", "attach", "--run", first, "--session", "s1")
    assert (home.spent(first), home.spent(second)) == (321, 4000)
    # A larger copy of a response counts at the time of the first one.
    writer.response("m1", tokens=(25, 0, 0, 0), at="2020-01-01T00:00:00.000Z")
    assert [line.billing for line in home.details(first).by_phase] == [26, 300]


def test_ended_run_still_counts_late_lines(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    home.ok("run", "finish", "--run", run)
    transcript(home).response("m1", tokens=(7, 0, 0, 0))
    assert home.spent(run) == 7


def test_growing_transcripts_pass_thresholds_without_a_request(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """A main transcript and that of a new sub-agent each pass one."""

    def thresholds() -> list[int]:
        connection = sqlite3.connect(home.state / "ledger.db")
        try:
            rows = connection.execute("SELECT data FROM events WHERE kind = 'budget.threshold' ORDER BY seq").fetchall()
        finally:
            connection.close()
        return [json.loads(data)["threshold"] for (data,) in rows]

    writer = transcript(home)
    writer.response("m0", tokens=(1, 0, 0, 0))
    run = started(home, session="s1", whole=True, token_budget=1000)
    assert home.spent(run) == 1
    writer.response("m1", tokens=(600, 0, 0, 0))
    wait_for(lambda: thresholds() == [50], "the event of 50 %")
    writer.agent("new").response("m2", tokens=(250, 0, 0, 0))
    wait_for(lambda: thresholds() == [50, 80], "the event of 80 %")


def test_report_has_live_actuals(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A review's sub-agents are measured while the session continues."""
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
    agent.response("m1", tokens=(50_000, 0, 0, 0), at=timestamp())
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000


def test_report_right_after_a_restart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The transcripts count, not interstat, even though no request has named the ended run's sessions."""
    run = started(home, session="s1")
    agents = {"agents": [{"name": "fd-safety", "score": 1, "stage": 1}]}
    decided = home.ctl("triage", stdin=json.dumps(agents), environ={"CLAUDE_CODE_SESSION_ID": "s1"})
    name = json.loads(decided.stdout)["triage_id"]
    time.sleep(0.002)
    agent = transcript(home).agent("x")
    agent.meta(agentType="interflux:fd-safety")
    agent.response("m1", tokens=(50_000, 0, 0, 0), at=timestamp())
    interstat.insert("s1", "fd-safety", input_tokens=120_000, output_tokens=0)
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000
    wait_for(lambda: offsets(home), "the position in the ledger")
    home.ok("run", "finish", "--run", run)
    daemon.kill()
    home.start()
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000


def test_kill_between_saving_transcripts_and_rows(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """If the ledger has a session's transcripts but not its rows, the transcripts count."""
    run = started(home, scope="b1")
    interstat.insert("s1", bead_id="b1", input_tokens=240, output_tokens=0)
    transcript(home).response("m1", tokens=(100, 0, 0, 0))
    assert home.spent(run) == 100
    wait_for(lambda: offsets(home), "the position in the ledger")
    daemon.kill()
    connection = sqlite3.connect(home.state / "ledger.db")
    connection.execute("DELETE FROM usage")
    connection.commit()
    connection.close()
    home.start()
    assert home.spent(run) == 100

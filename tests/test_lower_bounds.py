"""`run show`, `status` and `doctor` report what could not be read, followed or found again."""

import json
import shutil

from harness.daemon import Daemon, Home, project_of, started
from harness.interstat import Interstat
from harness.live import transcript
from harness.privilege import OBEDIENT
from harness.terminal import InTerminal
from harness.transcripts import assistant_line, encoded

UNREADABLE = b'{"type":"assistant","message":{"usage":\xff\xfe}}\n'


def findings(home: Home) -> list[str]:
    return [finding["what"] for finding in json.loads(home.ctl("doctor", "--json").stdout)["findings"]]


def test_lines_that_could_not_be_read_make_a_lower_bound(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every command says so, with the file, for this run only, and again after a restart."""
    run, other = started(home, session="s1", id="lossy"), started(home, session="s2", project=project_of(home, "s2"))
    writer = transcript(home)
    transcript(home, "s2").response("m9", request="r9", tokens=(1, 0, 0, 0))
    for number in range(3):
        writer.response(f"m{number}", request=f"r{number}", tokens=(10, 0, 0, 0))
        writer.line(UNREADABLE)
    reason = f"{writer.path}: 3 lines could not be read"
    for _ in range(2):
        assert home.spent(run) == 30  # not stale
        shown = home.details(run)
        assert (shown.lower_bound, shown.lower_bound_why) == (True, (reason,))
        (source,) = shown.sources
        assert (source.lower_bound, source.lower_bound_why) == (True, (reason,))
        assert f"lower bound: {reason}" in home.ok("run", "show", "--run", run)
        assert (home.details(other).lower_bound, home.details(other).sources[0].lower_bound) == (False, False)
        status = home.json("status")
        assert {line["run"]["id"]: line["lower_bound"] for line in status["runs"]} == {run: True, other: False}
        lines = home.ok("status").splitlines()
        assert f"lower bound: {run}: {reason}" in lines
        assert [line.split()[7] for line in lines if line.startswith((run, other))].count("ok,lower_bound") == 1
        assert findings(home) == [f"the total of session s1 is a lower bound: {reason}"]
        daemon.kill()
        daemon = home.start()


def test_table_marks_a_lower_bound(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    started(home, session="s1", id="lossy")
    transcript(home).response("m1", tokens=(10, 0, 0, 0))
    transcript(home).line(UNREADABLE)
    for width in (50, 80, 120):
        with InTerminal(home, "status", size=(width, 24)) as terminal:
            header, row, *_ = terminal.wait_for("lower bound: ")
            assert (header.split()[0], "≥10 / 250 000" in row) == ("RUN", True), row
            assert terminal.process.wait(timeout=60) == 0


def test_placeholder_outputs_make_a_lower_bound(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Versions before 2.1.97 wrote them, on lines without a stop reason."""
    run = started(home, session="s1")
    for number, version in enumerate(("2.1.96", "2.0.14", "2.1.97", "2.1.197", "not a version")):
        line = assistant_line("s1", f"m{number}", request=f"r{number}", tokens=(10, 1, 0, 0))
        line["version"] = version
        transcript(home).line(encoded(line))
    assert home.spent(run) == 55
    (found,) = findings(home)
    assert found.startswith("the total of session s1 is a lower bound: ")
    assert "2.1.96" in found
    assert home.details(run).lower_bound


def test_rows_that_count_are_no_lower_bound(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A session without readable usage in its transcripts counts by interstat, which has parsed them itself."""
    run = started(home, session="s1")
    transcript(home).line(UNREADABLE)
    assert home.spent(run) == 0
    assert home.details(run).lower_bound
    interstat.insert("s1", input_tokens=7, output_tokens=0)
    assert home.spent(run) == 7
    assert not home.details(run).lower_bound
    assert findings(home) == []


def test_transcript_that_cannot_be_followed(home: Home, interstat: Interstat) -> None:
    """The run is stale with the reason, until it can be followed; other runs are not."""
    home.start(prefix=OBEDIENT)
    run, other = started(home, session="s1"), started(home, session="s2", project=project_of(home, "s2"))
    writer = transcript(home)
    writer.response("m1", request="r1", tokens=(10, 0, 0, 0))
    transcript(home, "s2").response("m2", request="r2", tokens=(1, 0, 0, 0))
    agent = writer.agent("a")
    agent.response("m3", request="r3", tokens=(100, 0, 0, 0))
    agent.path.chmod(0)
    spend = home.spend(run)
    assert (spend.spent, spend.stale) == (10, True)
    assert str(agent.path) in str(spend.stale_why)
    assert home.spent(other) == 1
    (found,) = findings(home)
    assert found.startswith(f"not counted: {agent.path}: ")
    assert found.endswith("(session s1)")
    agent.path.chmod(0o600)
    assert home.spent(run) == 110
    assert findings(home) == []


def test_responses_of_a_file_that_is_gone_are_kept(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """`doctor` names the file and how many they are; no total falls; a restart changes nothing."""
    run = started(home, session="s1")
    writer = transcript(home)
    for number in range(3):
        writer.response(f"m{number}", request=f"r{number}", tokens=(10, 0, 0, 0))
    writer.agent("a").response("m9", request="r9", tokens=(100, 0, 0, 0))
    assert home.spent(run) == 130
    writer.path.write_bytes(encoded(assistant_line("s1", "m5", request="r5", tokens=(1, 0, 0, 0))))
    shutil.rmtree(writer.subagents)
    for _ in range(2):
        assert home.spent(run) == 131
        assert sorted(findings(home)) == [
            f"session s1: 1 response is kept from {writer.subagents / 'agent-a.jsonl'}, which was deleted",
            f"session s1: 3 responses are kept from {writer.path}, which was truncated or replaced",
        ]
        daemon.kill()
        daemon = home.start()


def test_claude_codes_own_sums_are_a_third_figure(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """They are shown beside ours and interstat's, and nothing counts them."""
    run = started(home, session="s1")
    transcript(home).response("m1", tokens=(10, 5, 100, 0))
    interstat.insert("s1", input_tokens=10, output_tokens=5, cache_read_tokens=100)
    usage = {"inputTokens": 12, "outputTokens": 6, "cacheReadInputTokens": 100, "cacheCreationInputTokens": 3}
    stated = {"type": "cost-state", "sessionId": "s1", "modelUsage": {"claude-opus-4-6": usage}}
    transcript(home).line(encoded(stated))
    assert home.spent(run) == 15
    (source,) = home.details(run).sources
    assert (source.transcripts_total, source.interstat_total, source.stated_total) == (115, 115, 121)
    assert (source.stated_billing, source.words) == (18, "")
    shown = home.ok("doctor")
    assert "session   s1: 115 in the transcripts, 115 in interstat, 121 by Claude Code's own count, ratio 1" in shown


def rows_and_responses(home: Home, interstat: Interstat, rows: int, responses: int) -> str:
    run = started(home, session="s1")
    transcript(home).response("m1", tokens=(responses, 0, 0, 0))
    interstat.insert("s1", input_tokens=rows, output_tokens=0)
    home.spent(run)
    (source,) = home.details(run).sources
    return source.words


def test_sources_that_differ_are_explained_by_their_rules(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Neither is called wrong."""
    assert rows_and_responses(home, interstat, 240, 100) == (
        "interstat counts 2.4 times what the transcripts say: it adds up every line of a response, while here a"
        " response counts once"
    )


def test_interstat_with_less_is_explained(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    assert rows_and_responses(home, interstat, 50, 100).startswith(
        "interstat counts 0.5 times what the transcripts say: its rows are written after a session or sub-agent ends"
    )


def test_similar_sources_are_not_explained(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    assert rows_and_responses(home, interstat, 102, 100) == ""

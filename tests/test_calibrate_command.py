"""`calibrate` with a real daemon and client."""

import json

from harness.daemon import Daemon, Home, started
from harness.interstat import Interstat
from harness.reviews import MODEL, agent, past, project_file, triage
from harness.transcripts import Transcript


def spend_in_phase(home: Home, interstat: Interstat, number: int, tokens: int) -> None:
    run = started(home, scope=f"b{number}", phases=("build", "end"))
    interstat.insert(
        f"s{number}", "worker", input_tokens=tokens, output_tokens=0, total_tokens=tokens, bead_id=f"b{number}"
    )
    home.ok("advance", "--run", run, "--from", "build")
    home.ok("run", "finish", "--run", run)


def test_calibration_of_phases(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """From the third measured run on, `advance` uses their mean, and `run show` names its source."""
    for number, tokens in enumerate((1000, 2000)):
        spend_in_phase(home, interstat, number, tokens)
    home.ok("calibrate", "--write")
    run = started(home, scope="new", phases=("build", "end"))
    assert home.json("run", "show", "--run", run)["by_phase"][0]["estimate"] == 30_000
    spend_in_phase(home, interstat, 3, 6001)
    file = home.root / ".config" / "fluxbudget" / "calibration.json"
    before = file.read_bytes()
    shown = home.json("calibrate")
    assert file.read_bytes() == before
    assert shown["phases"]["build"]["billing"] == {"mean": 3000, "p50": 2000, "p90": 6001}
    assert shown["phases"]["build"]["sample_size"] == 3
    assert shown["agents"]["worker"]["sample_size"] == 3
    assert shown["provenance"]["runs"] == 3
    assert home.json("calibrate", "--write") == json.loads(file.read_text()) | {
        "provenance": json.loads(file.read_text())["provenance"]
    }
    line = home.json("run", "show", "--run", run)["by_phase"][0]
    assert (line["estimate"], line["estimate_source"], line["sample_size"]) == (3000, "calibration", 3)
    home.ok("advance", "--run", run, "--from", "build")
    assert home.spend(run).provisional == 3000


def sliced_review(home: Home, interstat: Interstat, number: int, billing: int = 800) -> None:
    """Review a document with an agent that gets a slice of it, and costs this much."""
    session = f"review-{number}"
    triage(home, [agent("fd-people")], "--slicing", environ={"CLAUDE_CODE_SESSION_ID": session})
    interstat.insert(session, "fd-people", input_tokens=billing, output_tokens=0, total_tokens=billing, model=MODEL)


def test_calibration_of_slicing(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Ten sliced reviews at 0.8 of the full cost propose 0.8. Once that is written, triage uses it."""
    past(interstat, "fd-people", 1000)
    for number in range(10):
        proposed = home.json("calibrate")["slicing"]
        assert (proposed["multiplier"], proposed["sliced_reviews"]) == (None, number)
        sliced_review(home, interstat, number)
    slicing = home.json("calibrate", "--write")["slicing"]
    assert slicing == {
        "multiplier": 0.8, "median": 0.8, "sliced_reviews": 10, "sliced_runs": 10, "full_runs": 3, "was": 0.5,
    }  # fmt: skip
    assert home.json("estimates", "--slicing")["slicing_multiplier"] == 0.8
    project_file(home, "slicing_multiplier: 0.25\n")
    assert home.json("estimates", "--slicing")["slicing_multiplier"] == 0.25
    # It compares with the default, not with its own last proposal: the same data give the same result.
    assert home.json("calibrate", "--write")["slicing"] == slicing


NEWS = (
    "a new slicing multiplier is available: 0.8 instead of 0.5 (10 reviews); "
    "apply it with 'fluxbudgetctl calibrate --write'"
)


def test_new_multiplier_is_announced_once(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """`report` or `doctor` says it, whichever comes first, and not again after a restart."""
    past(interstat, "fd-people", 1000)
    run = started(home)
    for number in range(9):
        sliced_review(home, interstat, number)
    assert home.ctl("report", "--run", run).stderr == ""
    assert home.json("doctor")["daemon"]["news"] == ""
    sliced_review(home, interstat, 9)
    reported = home.ctl("report", "--run", run)
    assert reported.stderr == f"fluxbudgetctl: {NEWS}\n"
    assert json.loads(reported.stdout)["news"] == NEWS
    assert home.ctl("report", "--run", run).stderr == ""
    daemon.stop()
    home.start()
    assert "news" not in home.ok("doctor")
    # The tenth review made it 0.8. Once that is in use, a change is news again: ten more reviews cost half as much.
    home.ok("calibrate", "--write")
    for number in range(10, 32):
        sliced_review(home, interstat, number, 400)
    shown = home.ctl("doctor")
    assert "news      a new slicing multiplier is available: 0.5 instead of 0.8 (32 reviews)" in shown.stdout
    assert shown.returncode == 0
    assert "news" not in home.ok("doctor")


def test_estimates_stay_when_the_multiplier_is_written(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """An agent that costs 40 000 tokens, and 10 000 with a slice, is estimated so before and after."""
    past(interstat, "fd-people", 40_000)
    for number in range(10):
        sliced_review(home, interstat, number, 10_000)

    def estimated(*arguments: str) -> tuple[int, str, int]:
        (line,) = triage(home, [agent("fd-people")], *arguments)["agents"]
        return line["est_tokens"], line["source"], line["sample_size"]

    for _ in ("before", "after"):
        assert estimated() == (40_000, "interstat", 3)
        assert estimated("--slicing") == (10_000, "interstat", 10)
        assert home.json("calibrate", "--write")["slicing"]["multiplier"] == 0.25
        assert home.json("estimates", "--slicing")["slicing_multiplier"] == 0.25


def test_feedback_about_reviews(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Each input type has the cost of its reviews against their budgets, and what became of the cut's decisions."""
    assert home.json("calibrate")["reviews"] == {}
    assert "reviews: nothing measured yet" in home.ok("calibrate")
    project_file(home, "budgets: {plan: 80000}\nmin_agents: 0\n")
    agents = [agent("fd-quality", 5), agent("fd-people", 4), agent("fd-systems", 3)]
    for session, *more in (("s1",), ("s2", "--override", "all of them")):
        environ = {"CLAUDE_CODE_SESSION_ID": session}
        triage(home, agents, "--input-type", "plan", *more, environ=environ)
        for name in ("fd-quality", "fd-people", "fd-systems"):
            interstat.insert(session, name, input_tokens=20_000, output_tokens=0, total_tokens=100_000)
    assert home.json("calibrate")["reviews"] == {
        "plan": {
            "reviews": 2, "measured": 2, "median_billing": 60_000, "median_pct": 75, "deferred": 1, "ran_anyway": 1,
            "overridden": 1,
        },
    }  # fmt: skip
    shown = home.ok("calibrate").splitlines()
    assert max(map(len, shown)) <= 80
    header, line = [line.split() for line in shown if "OVERRIDDEN" in line or "plan" in line]
    assert header[0] == "REVIEWS"
    assert line == ["plan", "2", "60000", "75", "%", "1", "1", "1"]


def test_broken_calibration_file(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The defaults count, or the last valid calibration, and `doctor` says so."""
    for number in range(3):
        spend_in_phase(home, interstat, number, 700)
    home.ok("calibrate", "--write")
    file = home.root / ".config" / "fluxbudget" / "calibration.json"
    run = started(home, phases=("build", "end"))
    assert home.json("run", "show", "--run", run)["by_phase"][0]["estimate"] == 700
    file.write_text('{"v": 1')
    assert home.json("run", "show", "--run", run)["by_phase"][0]["estimate"] == 700
    doctor = home.ctl("doctor")
    assert doctor.returncode == 1
    assert "calibration.json" in doctor.stdout
    file.unlink()
    assert home.json("run", "show", "--run", run)["by_phase"][0]["estimate"] == 30_000
    assert home.ctl("doctor").returncode == 0


def test_calibration_that_cannot_be_written(home: Home, daemon: Daemon) -> None:
    (home.root / ".config").write_text("in the way")
    result = home.ctl("calibrate", "--write")
    assert (result.returncode, result.stdout) == (70, "")
    assert "cannot be written" in result.stderr


def test_calibration_outlives_its_sources(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """What was collected is in the ledger, so the calibration is the same without interstat."""
    past(interstat, "fd-quality", 100)
    home.ok("calibrate", "--write")
    file = home.root / ".config" / "fluxbudget" / "calibration.json"
    before = json.loads(file.read_text())
    assert before["agents"]["fd-quality"]["sample_size"] == 3
    daemon.kill()
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.start()
    home.ok("calibrate", "--write")
    assert json.loads(file.read_text()) == before | {"provenance": json.loads(file.read_text())["provenance"]}


def test_calibration_is_not_written_while_its_source_cannot_be_read(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    past(interstat, "fd-quality", 100)
    home.ok("calibrate", "--write")
    file = home.root / ".config" / "fluxbudget" / "calibration.json"
    before = file.read_bytes()
    daemon.kill()
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.interstat.write_bytes(b"no database" * 1000)
    home.start()
    result = home.ctl("calibrate", "--write")
    assert (result.returncode, result.stdout) == (1, "")
    assert "not written: interstat: not_a_database" in result.stderr
    assert file.read_bytes() == before


def test_calibration_from_transcripts_alone(home: Home, daemon: Daemon) -> None:
    """Without interstat, the costs of twelve finished sub-agents of one name are written."""
    started(home, session="s", whole=True)
    for number in range(12):
        transcript = Transcript(home.root / "claude", "s").agent(f"a{number}")
        transcript.meta(None, agentType="interflux:fd-quality")
        transcript.response(f"m{number}", tokens=(10 * number, 10, 0, 0), stop="end_turn", request=f"r{number}")
    home.ok("calibrate", "--write")
    found = json.loads((home.root / ".config" / "fluxbudget" / "calibration.json").read_text())
    assert found["agents"]["fd-quality"] == {
        "billing": {"mean": 65, "p50": 60, "p90": 110}, "total": {"mean": 65, "p50": 60, "p90": 110}, "sample_size": 12,
    }  # fmt: skip

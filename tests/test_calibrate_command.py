"""`calibrate` with a real daemon and client."""

import json

from harness.daemon import Daemon, Home, started
from harness.interstat import Interstat
from harness.reviews import agent, past, project_file, triage


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


def test_calibration_of_slicing(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Ten sliced runs at 0.8 of the full cost propose 0.8. Once that is written, triage uses it."""
    past(interstat, "fd-people", 1000)
    for number in range(10):
        proposed = home.json("calibrate")["slicing"]
        assert (proposed["multiplier"], proposed["sliced_runs"]) == (None, number)
        session = f"review-{number}"
        triage(home, [agent("fd-people")], "--slicing", environ={"CLAUDE_CODE_SESSION_ID": session})
        interstat.insert(session, "fd-people", input_tokens=800, output_tokens=0, total_tokens=800)
    slicing = home.json("calibrate", "--write")["slicing"]
    assert slicing == {"multiplier": 0.8, "median": 0.8, "sliced_runs": 10, "full_runs": 3, "was": 0.5}
    assert home.json("estimates", "--slicing")["slicing_multiplier"] == 0.8
    project_file(home, "slicing_multiplier: 0.25\n")
    assert home.json("estimates", "--slicing")["slicing_multiplier"] == 0.25
    # It compares with the default, not with its own last proposal: the same data give the same result.
    assert home.json("calibrate", "--write")["slicing"] == slicing


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


def test_calibration_is_not_written_without_its_source(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """An existing calibration is not overwritten by an empty one."""
    past(interstat, "fd-quality", 100)
    home.ok("calibrate", "--write")
    file = home.root / ".config" / "fluxbudget" / "calibration.json"
    before = file.read_bytes()
    daemon.kill()
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.start()
    result = home.ctl("calibrate", "--write")
    assert (result.returncode, result.stdout) == (1, "")
    assert "not written: interstat: absent" in result.stderr
    assert file.read_bytes() == before

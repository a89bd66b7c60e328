"""`sync`, and the shell function that calls it: afterwards, a run's usage is in intercore's database."""

import json

import pytest

from harness.daemon import Home, started, wait_for
from harness.intercore import IcProject
from harness.interstat import Interstat
from harness.shells import Shell

BEAD = "b-1"


@pytest.fixture
def project(home: Home, interstat: Interstat) -> IcProject:
    """Start a daemon that has adopted a run of intercore, which a session works for."""
    made = IcProject(home.project)
    made.run_create(scope=BEAD, budget=1_000_000)
    interstat.insert("s1", bead_id=BEAD, phase="executing", input_tokens=100, output_tokens=20, cache_read_tokens=3)
    home.start()
    # A request waits only briefly for intercore's database.
    wait_for(lambda: home.ctl("remaining", "--scope", BEAD).stdout == "999880\n", "the run to be adopted")
    return made


def rows(project: IcProject) -> list[tuple[int, int]]:
    found = project.query("SELECT * FROM dispatches WHERE agent_type = 'fluxbudget'")
    return [(row["input_tokens"], row["output_tokens"]) for row in found]


def test_sync(home: Home, project: IcProject, interstat: Interstat) -> None:
    """Nothing is printed, and everything is written. For a run of our own, there is nothing to do."""
    interstat.insert("s1", bead_id=BEAD, phase="executing", input_tokens=7, output_tokens=1)
    result = home.ctl("sync", "--scope", BEAD, "--timeout", "60")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert rows(project) == [(107, 21)]
    run = project.rows("runs")[0]["id"]
    assert json.loads(home.ok("sync", "--json", "--timeout", "60")) == {"runs": [run], "faults": []}
    by_hand = started(home, id="by-hand", project=home.root)
    assert json.loads(home.ok("sync", "--json", "--run", by_hand, "--timeout", "60")) == {"runs": [], "faults": []}
    assert home.ctl("sync", "--run", "unknown", "--timeout", "60").returncode == 3


def test_sync_that_fails(home: Home, project: IcProject, interstat: Interstat) -> None:
    """Each reason is a line on stderr, with its hint."""
    project.execute("CREATE TRIGGER counts AFTER INSERT ON dispatches BEGIN DELETE FROM runs; END")
    interstat.insert("s1", bead_id=BEAD, phase="executing", input_tokens=7, output_tokens=1)
    result = home.ctl("sync", "--timeout", "60")
    assert (result.returncode, result.stdout) == (1, "")
    what, hint = result.stderr.splitlines()
    assert what.startswith("fluxbudgetctl: ")
    assert "has a trigger, counts" in what
    assert hint.startswith("hint: ")
    (fault,) = json.loads(home.ctl("sync", "--json", "--timeout", "60").stdout)["faults"]
    assert f"fluxbudgetctl: {fault['what']}" == what


def test_sync_without_a_daemon(home: Home) -> None:
    result = home.ctl("sync", "--timeout", "60")
    assert (result.returncode, result.stdout) == (69, "")


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_recording_a_phase_writes_its_tokens(
    home: Home, project: IcProject, interstat: Interstat, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Clavain's own function counts a session again at each phase; ours writes what was measured."""
    shell = Shell(home, name, tmp_path_factory)
    assert shell.lines(f"sprint_record_phase_tokens {BEAD} executing") == []
    assert rows(project) == [(100, 20)]
    interstat.insert("s1", bead_id=BEAD, phase="executing", input_tokens=7, output_tokens=1)
    assert shell.lines(f"clavain-cli sprint-record-phase-tokens {BEAD} executing") == []
    assert rows(project) == [(107, 21)]

"""A running daemon applies changes of config.toml, on SIGHUP or by itself, and keeps the last valid one."""

import itertools
import json
import signal
import sqlite3

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started, wait_for
from harness.interstat import Interstat


def configure(home: Home, text: str) -> None:
    file = home.root / ".config" / "fluxbudget" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


#: Each run has a project of its own; several runs of one would be a problem for `doctor`.
numbers = itertools.count()


def budget_of_a_new_run(home: Home) -> int | None:
    answer = home.ask(messages.RunStart(project_dir=f"/projects/{next(numbers)}", wait_ms=30_000))
    assert isinstance(answer, messages.RunAnswer), answer
    return answer.run.token_budget


def test_new_runs_use_the_configuration(home: Home, daemon: Daemon) -> None:
    """Changes apply from the next request on. A request's options take precedence, and existing runs do not change."""
    configure(
        home,
        '[runs]\ncomplexity = 1\nwarn_pct = 60\nenforcement = "hard"\ncost_basis = "total"\nphases = ["a", "b"]\n'
        "[runs.budgets]\n1 = 77\n",
    )
    home.ok("run", "start", "--id", "r1", "--scope", "s")
    run = home.json("run", "show", "--run", "r1")["run"]
    assert (run["token_budget"], run["complexity"], run["warn_pct"]) == (77, 1, 60)
    assert (run["enforcement"], run["cost_basis"], run["phases"]) == ("hard", "total", ["a", "b"])
    home.ok("run", "start", "--id", "r2", "--budget", "5", "--complexity", "2", "--enforcement", "soft")
    run = home.json("run", "show", "--run", "r2")["run"]
    assert (run["token_budget"], run["enforcement"]) == (5, "soft")
    configure(home, "")
    assert budget_of_a_new_run(home) == 250_000
    assert home.ok("run", "start", "--scope", "s") == "r1"


def test_broken_file_is_reported_and_not_used(home: Home, daemon: Daemon) -> None:
    """The last valid configuration stays in use, `doctor` names file and key, and correcting the file is enough."""
    configure(home, "[runs.budgets]\n3 = 1234\n")
    assert budget_of_a_new_run(home) == 1234
    configure(home, "[runs.budgets]\n3 = 5\n[runs]\nwarn_pct = 120\n")
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: "configuration broken" in daemon.log, "the daemon to say that the configuration is broken")
    assert budget_of_a_new_run(home) == 1234
    doctor = home.ctl("doctor")
    assert doctor.returncode == 1
    assert f"{home.root}/.config/fluxbudget/config.toml: runs.warn_pct is 120; allowed: 1 to 99" in doctor.stdout
    configure(home, "[runs.budgets]\n3 = 4321\n")
    assert budget_of_a_new_run(home) == 4321
    assert home.ctl("doctor").returncode == 0


def test_broken_file_prevents_the_start(home: Home, interstat: Interstat) -> None:
    """Exit 78, a line with file and key, and no state files."""
    configure(home, "[runs]\nwarnpct = 50\n")
    daemon = home.start(wait=False)
    assert daemon.process.wait(timeout=60) == 78
    assert "config.toml: runs.warnpct is not a key" in daemon.log
    assert "runs.warn_pct" in daemon.log
    assert "Traceback" not in daemon.log
    assert not home.socket.exists()


def test_phases_stages_and_thresholds_as_configured(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    configure(
        home,
        "[phases]\ndefault = 11\n[phases.estimates]\nbrainstorm = 22\n[stages.build]\nshare = 0\nfloor = 7\n"
        "[warnings]\nthresholds = [10, 20]\n",
    )
    run = started(home, session="s1", token_budget=1000, phases=("brainstorm", "party", "executing"))
    shown = home.json("run", "show", "--run", run)
    assert [line["estimate"] for line in shown["by_phase"]] == [22, 11, 150_000]
    assert {line["name"]: line["allocated"] for line in shown["by_stage"]}["build"] == 0  # floors scaled to the budget
    home.ok("advance", "--run", run, "--from", "brainstorm")
    interstat.insert("s1", input_tokens=850, output_tokens=0)
    home.spend(run)

    def thresholds() -> list[tuple[str, int]]:
        connection = sqlite3.connect(home.state / "ledger.db")
        try:
            rows = connection.execute(
                "SELECT kind, data FROM events WHERE kind LIKE 'budget.%' ORDER BY seq"
            ).fetchall()
        finally:
            connection.close()
        return [(kind, json.loads(data)["threshold"]) for kind, data in rows]

    expected = [("budget.threshold", 10), ("budget.threshold", 20), ("budget.warning", 80)]
    wait_for(lambda: thresholds() == expected, "10 and 20 % as configured, and the run's own warning")

"""Intercore runs, with a real daemon: found by hooks and requests, followed without them, restarted."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, wait_for
from harness.events import configure
from harness.hooks import Claude, write_usage
from harness.intercore import IcProject
from harness.worktrees import add_worktree


@pytest.fixture
def project(home: Home) -> IcProject:
    """Give the home's project an intercore database."""
    return IcProject(home.project)


def events(home: Home, run: str, kind: str) -> list[dict[str, Any]]:
    """Return the data of the ledger's events of a run, without asking the daemon."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as ledger:
        rows = ledger.execute("SELECT data FROM events WHERE run = ? AND kind = ? ORDER BY seq", (run, kind)).fetchall()
    return [json.loads(data) for (data,) in rows]


def remains(home: Home, tokens: int, *arguments: str) -> None:
    """Wait until this much is left: under load, the database may not be read in time for an answer."""
    wait_for(lambda: home.ok("remaining", *arguments) == str(tokens), f"{tokens} remaining tokens")


def spent(home: Home, run: str) -> int:
    """Return a run's spend once an answer is up to date."""
    return int(wait_for(lambda: (found := home.spend(run)).stale_why is None and found, "fresh numbers").spent)


def database(home: Home) -> dict[str, Any]:
    """Return what `status` says about the one database."""
    (found,) = home.json("status")["databases"]
    return dict(found)


def problems(home: Home) -> list[str]:
    """Return doctor's findings about intercore."""
    answer = home.ask(messages.Doctor())
    assert isinstance(answer, messages.DoctorAnswer), answer
    return [finding.what for finding in answer.findings if finding.what.startswith("intercore: ")]


def test_hook_finds_the_run_of_its_directory(home: Home, daemon: Daemon, project: IcProject) -> None:
    """Without any `run start`, the session is attached, its usage counts, and a hard limit stops it."""
    run = project.run_create(scope="b-1", budget=1000, enforce=True)
    claude = Claude(home)
    claude.call("SessionStart", source="startup")
    write_usage(home, 400)
    assert home.ok("remaining") == "600"
    assert spent(home, run) == 400
    write_usage(home, 1600, message="m2")
    assert claude.call("UserPromptSubmit").decision == "block"


def test_session_outlives_its_run(home: Home, daemon: Daemon, project: IcProject) -> None:
    """When intercore ends the run and starts the next one, the session's next prompt joins that."""
    first = project.run_create(budget=1000)
    claude = Claude(home)
    claude.call("SessionStart", source="startup")
    project.complete(first)
    second = project.run_create(budget=2000)
    claude.call("UserPromptSubmit")
    write_usage(home, 10)
    assert (spent(home, first), spent(home, second)) == (0, 10)
    assert home.details(first).run.status == "done"


@pytest.mark.parametrize("where", ["deep", "worktree"])
def test_request_below_the_project(home: Home, daemon: Daemon, project: IcProject, where: str) -> None:
    """The nearest database above the directory is used; that of a worktree is its main checkout's."""
    project.run_create(budget=1000)
    directory = home.project / "a" / "b"
    if where == "deep":
        directory.mkdir(parents=True)
    else:
        directory = home.root / "tree"
        add_worktree(home.project, directory)
    assert home.ok("remaining", cwd=directory) == "1000"


@pytest.mark.parametrize("command", [("status",), ("run", "list"), ("doctor",)])
def test_lists_look_at_their_directory(
    home: Home, daemon: Daemon, project: IcProject, command: tuple[str, ...]
) -> None:
    """Even if the first command in a project names no run, its answer has the project's sprints."""
    run = project.run_create(budget=1000)
    home.ctl(*command)
    wait_for(lambda: events(home, run, "run.started"), "the run")


def test_every_answer_shows_what_intercore_says_now(home: Home, daemon: Daemon, project: IcProject) -> None:
    """A change of the row is in the next answer, if the database can be read in time."""
    run = project.run_create(budget=1000)
    assert home.ok("remaining") == "1000"
    for budget in (900, 800, 700):
        project.set(run, token_budget=budget)
        remains(home, budget, "--run", run)
        assert home.ok("remaining") == str(budget)
    project.advance(run)
    wait_for(lambda: "brainstorm-reviewed" in home.ok("status"), "the new phase")


def test_changes_arrive_without_a_request(home: Home, daemon: Daemon, project: IcProject) -> None:
    """While a run is followed, its phase, its end and new runs of the database are noticed."""
    run = project.run_create(budget=1000)
    assert home.ok("remaining") == "1000"
    project.advance(run)
    wait_for(lambda: events(home, run, "phase.advanced"), "the phase")
    second = project.run_create(budget=2000)
    wait_for(lambda: events(home, second, "run.started"), "the new run")
    project.complete(run)
    wait_for(lambda: events(home, run, "run.finished"), "the end")


def test_configured_database(home: Home, project: IcProject) -> None:
    """Its runs are adopted although no session or request names the directory."""
    run = project.run_create(budget=1000)
    configure(home, f'[intercore]\ndatabases = ["~/{project.database.relative_to(home.root)}"]')
    home.start()
    wait_for(lambda: events(home, run, "run.started"), "the run")


def test_adoption_can_be_switched_off(home: Home, project: IcProject) -> None:
    configure(home, "[intercore]\nadopt = false")
    project.run_create(budget=1000)
    home.start()
    assert home.ctl("remaining").returncode != 0
    assert home.json("status")["databases"] == []


def test_database_of_a_run_that_was_started_by_hand(home: Home, daemon: Daemon) -> None:
    """It is found when the run starts, and its other runs are adopted."""
    project = IcProject(home.root / "other")
    run = project.run_create(scope="b-1")
    home.ok("run", "start", "--id", "r1", "--project", str(project.root))
    wait_for(lambda: events(home, run, "run.started"), "the run")


def test_project_demands_a_hard_limit(home: Home, daemon: Daemon, project: IcProject) -> None:
    """A rule of the project applies to adopted runs, too, and their soft rows do not loosen them."""
    rules = home.project / ".claude" / "flux-drive-budget.yaml"
    rules.parent.mkdir()
    rules.write_text("enforcement: hard\n")
    run = project.run_create(budget=1000)
    assert home.ok("remaining") == "1000"
    project.advance(run)
    wait_for(lambda: events(home, run, "phase.advanced"), "the phase")
    info = home.details(run).run
    assert (info.enforcement, info.withheld, events(home, run, "run.loosened")) == ("hard", "", [])


def test_withheld_budget_is_shown_and_confirmed(home: Home, daemon: Daemon, project: IcProject) -> None:
    """`run show` shows what intercore has loosened; `run set` confirms it, and the setting is kept."""
    run = project.run_create(budget=1000, enforce=True)
    assert home.ok("remaining") == "1000"
    project.set(run, token_budget=5000)
    wait_for(lambda: home.details(run).run.withheld == "budget 5000", "the withheld budget")
    assert home.ok("remaining") == "1000"
    assert "budget 5000: the run is hard" in home.ok("run", "show", "--run", run)
    home.ok("run", "set", "--run", run, "--budget", "5000")
    info = home.details(run).run
    assert (info.token_budget, info.withheld, info.kept) == (5000, "", ("token_budget",))


def test_restart_after_kill(home: Home, project: IcProject) -> None:
    """The next daemon knows the run, its phases, sessions and dispatches; nothing is counted or reported again."""
    run = project.run_create(budget=1000)
    project.claim("s1", run)
    project.dispatch(run, 100, 10)
    project.advance(run)
    daemon = home.start()
    write_usage(home, 50)
    remains(home, 840)
    before = home.details(run)
    # What other programs have used is in the ledger soon after it was read.
    wait_for(lambda: _stored_dispatches(home), "the dispatches in the ledger")
    daemon.kill()
    project.set(run, token_budget=2000)
    home.start()
    remains(home, 1840, "--run", run)
    after = home.details(run)
    assert (after.by_session, after.by_phase, after.attachments) == (
        before.by_session,
        before.by_phase,
        before.attachments,
    )
    assert len(events(home, run, "run.started")) == 1


def _stored_dispatches(home: Home) -> int:
    with closing(sqlite3.connect(home.state / "ledger.db")) as ledger:
        ((count,),) = ledger.execute("SELECT count(*) FROM usage WHERE source = 'intercore'")
    return int(count)


def test_database_gone_and_back(home: Home, daemon: Daemon, project: IcProject) -> None:
    """Its runs keep their last numbers, the state is named, and everything is followed again once it is back."""
    run = project.run_create(budget=1000)
    project.dispatch(run, 100, 0)
    assert home.ok("remaining") == "900"
    away = home.root / "away"
    project.directory.rename(away)
    wait_for(lambda: database(home)["state"] == "absent", "the absence")
    assert home.ok("remaining") == "900"
    assert str(home.spend(run).stale_why).startswith("intercore: absent: ")
    assert any("absent" in problem for problem in problems(home))
    away.rename(project.directory)
    project.set(run, token_budget=2000)
    remains(home, 1900)
    assert database(home)["state"] == "ok"
    assert problems(home) == []
    assert spent(home, run) == 100


def test_database_that_is_removed_after_its_runs_have_ended(home: Home, daemon: Daemon, project: IcProject) -> None:
    """It is not needed any more: no problem is reported, and the numbers are not stale."""
    run = project.run_create(budget=1000)
    assert home.ok("remaining") == "1000"
    project.complete(run)
    wait_for(lambda: home.details(run).run.status == "done", "the end")
    shutil.rmtree(project.directory)
    wait_for(lambda: database(home)["state"] == "absent", "the absence")
    assert problems(home) == []
    assert spent(home, run) == 0


@pytest.mark.parametrize(
    ("content", "state"), [(b"", "empty"), (b"no database at all " * 300, "not_a_database"), (None, "schema_drift")]
)
def test_broken_database(home: Home, daemon: Daemon, project: IcProject, content: bytes | None, state: str) -> None:
    """It is named in status and doctor, no answer fails because of it, and its successor is read."""
    run = project.run_create(budget=1000)
    assert home.ok("remaining") == "1000"
    good = project.database.read_bytes()
    if content is None:
        with closing(sqlite3.connect(project.database)) as connection:
            connection.execute("ALTER TABLE runs RENAME TO sprints")
            connection.commit()
    else:
        _replace(project.database, content)
    wait_for(lambda: database(home)["state"] == state, "the state")
    assert any(problem.startswith(f"intercore: {state}") for problem in problems(home))
    assert home.ok("remaining", "--run", run) == "1000"
    _replace(project.database, good)
    wait_for(lambda: database(home)["state"] == "ok", "the repaired database")
    project.set(run, token_budget=500)
    remains(home, 500, "--run", run)


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def test_symlinked_directory_is_refused(home: Home, daemon: Daemon) -> None:
    """A `.clavain` that is a symlink may lead to another project's database, so it is named and not used."""
    other = IcProject(home.root / "other")
    other.run_create(budget=1000)
    (home.project / ".clavain").symlink_to(other.directory)
    assert home.ctl("remaining").returncode != 0
    assert database(home)["state"] == "unreadable"
    assert "symbolic link" in problems(home)[0]


def test_removed_run(home: Home, daemon: Daemon, project: IcProject) -> None:
    """It keeps its numbers, and doctor says so until a person ends it."""
    run = project.run_create(budget=1000)
    assert home.ok("remaining") == "1000"
    project.delete("runs", run)
    wait_for(lambda: any("no longer" in problem for problem in problems(home)), "the finding")
    assert home.ok("remaining") == "1000"
    home.ok("run", "cancel", "--run", run)
    wait_for(lambda: problems(home) == [], "the end of the finding")


def test_screens(home: Home, daemon: Daemon, project: IcProject) -> None:
    """`status`, `doctor` and `run show` say where a run was adopted from."""
    run = project.run_create(budget=1000)
    project.claim("s1", run)
    assert home.ok("remaining") == "1000"
    line = f"intercore {project.database}: ok, schema 39; 1 run: {run}"
    assert line in home.ok("status")
    assert f"database  {line}" in home.ctl("doctor").stdout
    shown = home.ok("run", "show", "--run", run)
    assert f"adopted from: {project.database}" in shown
    assert "intercore" in shown.splitlines()[-1]
    assert os.fspath(project.database) == home.details(run).run.adopted_from

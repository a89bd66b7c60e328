"""`advance` on an intercore run: the daemon checks it and does not move it. `ic` does."""

import json
import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import Adoption
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages
from harness import ic
from harness.daemon import Daemon, Home, wait_for
from harness.intercore import IcProject
from harness.service import service_over, within
from harness.transcripts import Transcript

DATABASE = "/p/.clavain/intercore.db"


async def adopted_run(service: Service) -> RunAccount:
    """Start a run, and make it an intercore run."""
    run, *_ = await service.lifecycle.start(
        messages.RunStart(project_dir="/p", token_budget=100, phases=("planned", "executing", "review")), within(60)
    )
    adopted = Adoption(database=DATABASE, run_id="ab12cd34")
    service.accounts.put_run(msgspec.structs.replace(run, adopted=adopted))
    return service.accounts.runs[run.id]


def test_allowed_run_is_not_moved(tmp_path: Path) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            account = await adopted_run(service)
            for to in (None, "executing"):
                done = await service.checks.advance(account, "planned", to, None)
                assert (done.database, done.completed, done.verdict.allowed) == (DATABASE, None, True)
                assert done.line.startswith("not_advanced|planned|")
            assert (account.run.phase, account.completed) == ("planned", ())

    anyio.run(body)


def test_refusals_come_first(tmp_path: Path) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            account = await adopted_run(service)
            done = await service.checks.advance(account, "executing", None, None)
            assert (done.line, done.database) == ("stale_phase|executing|Phase not reached yet, still in planned", "")

    anyio.run(body)


def test_only_the_next_phase(tmp_path: Path) -> None:
    """`ic` cannot move a run to any other phase."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            account = await adopted_run(service)
            with pytest.raises(BadInputError, match="only to its next phase, executing, not to 'review'") as caught:
                await service.checks.advance(account, "planned", "review", None)
            assert caught.value.hint == "leave out --to"

    anyio.run(body)


def test_run_whose_adoption_is_switched_off_is_moved_here(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[intercore]\nadopt = false\n")

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            await service.settings.refresh(within(60))
            account = await adopted_run(service)
            done = await service.checks.advance(account, "planned", "review", None)
            assert (done.line, account.run.phase) == ("advanced|planned|review", "review")

    anyio.run(body)


@pytest.fixture
def project(home: Home, daemon: Daemon) -> IcProject:
    """A project with an intercore database, in the home's directory."""
    return IcProject(home.project)


def advance(home: Home, path: Path, from_phase: str, *words: str) -> tuple[int, str]:
    """Run `advance` with this directory of `ic` on PATH; return the exit code and what it prints."""
    places = {"PATH": f"{path}:{os.environ['PATH']}"}
    result = home.ctl("advance", "--from", from_phase, *words, environ=places)
    return result.returncode, result.stdout


def wait_until_adopted(home: Home, run: str) -> None:
    """Ask in the project's directory until the run is adopted. Each request waits only briefly for the database."""
    wait_for(lambda: home.ctl("run", "show", "--run", run).returncode == 0, "the run to be adopted")


def test_run_is_adopted_and_moved_by_ic(home: Home, project: IcProject, tmp_path: Path, client: str) -> None:
    """The daemon and intercore agree on each phase; completing the last one ends the run."""
    run = project.run_create(phases=("planned", "executing", "done"), scope="b1")
    wait_until_adopted(home, run)
    path = ic.moving(tmp_path / "bin")
    assert advance(home, path, "executing") == (1, "stale_phase|executing|Phase not reached yet, still in planned\n")
    assert advance(home, path, "planned", "--run", run) == (0, "advanced|planned|executing\n")
    assert project.row(run)["phase"] == "executing"
    wait_for(lambda: home.details(run).run.phase == "executing", "the daemon to see the move")
    assert [line.state for line in home.details(run).by_phase] == ["completed", "current", "ahead"]
    assert advance(home, path, "executing", "--to", "done") == (0, "advanced|executing|done\n")
    wait_for(lambda: home.details(run).run.status == "done", "the end of the run")


def test_exhausted_run_is_refused_without_ic(home: Home, project: IcProject, tmp_path: Path) -> None:
    """Every time. With an override, `ic` gets the reason, and the override is recorded once."""
    run = project.run_create(phases=("planned", "executing", "done"), budget=100)
    wait_until_adopted(home, run)
    project.dispatch(run, 90, 30)
    refused = "budget_exceeded|planned|120/100 billing tokens\n"
    path = ic.printing(
        tmp_path / "bin", {"advanced": True, "from_phase": "planned", "to_phase": "executing", "event_type": "advance"}
    )
    wait_for(lambda: home.details(run).spend.spent == 120, "the dispatch to count")
    for _ in range(2):
        assert advance(home, path, "planned") == (1, refused)
    assert ic.called(path) is None
    assert advance(home, path, "planned", "--override", "demo day") == (0, "advanced|planned|executing\n")
    assert ic.called(path) == (str(home.project), ["--json", "run", "advance", run, "--skip-reason=demo day"])
    wait_for(lambda: overrides(home), "the override to be in the ledger")
    assert overrides(home) == ["demo day"]


def test_response_that_asks_for_a_move_counts_for_the_phase_that_it_leaves(
    home: Home, daemon: Daemon, project: IcProject
) -> None:
    """A move seems to be earlier than its response, in the same second: intercore's times are whole seconds."""
    second = int(time.time()) - 10
    run = project.run_create(phases=("planned", "executing", "done"), at=second - 60)
    project.claim("s1", run, at=second - 60)
    wait_until_adopted(home, run)
    transcript = Transcript(home.root / "claude", "s1")
    for number, (offset, tokens) in enumerate(((0.4, 1000), (1.2, 70))):
        at = datetime.fromtimestamp(second + offset, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        transcript.response(f"msg_{number}", tokens=(tokens, 0, 0, 0), at=at)
    project.advance(run, at=second)

    def by_phase() -> dict[str, int]:
        return {line.name: line.spent for line in home.details(run).by_phase}

    wait_for(lambda: by_phase() == {"planned": 1000, "executing": 70, "done": 0}, "the phases")


def overrides(home: Home) -> list[str]:
    """Return the reasons of the overrides that are in the ledger."""
    with closing(sqlite3.connect(home.state / "ledger.db")) as connection:
        rows = connection.execute("SELECT data FROM events WHERE kind = 'budget.overridden' ORDER BY seq").fetchall()
    return [json.loads(data)["override"] for (data,) in rows]

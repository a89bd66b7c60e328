"""`advance` on a run that intercore keeps, in the daemon: it is checked, but not moved."""

from pathlib import Path

import anyio
import msgspec
import pytest

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import Adoption
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages
from harness.service import service_over, within

DATABASE = "/p/.clavain/intercore.db"


async def adopted_run(service: Service) -> RunAccount:
    """Start a run, and make it one that intercore keeps."""
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
    """`ic` cannot move a run to another one."""

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

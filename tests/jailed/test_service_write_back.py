"""What the service's sandbox means for intercore's databases, with a real user manager."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Wire, wait_for
from harness.installed import Installed
from harness.intercore import IcProject
from harness.interstat import Interstat

BEAD = "b-1"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    made = Installed(Path.home() / tmp_path.name / "an environment")
    yield made
    made.clean()


def synced(project: IcProject, run: str) -> messages.SyncAnswer:
    """Wait until the run is adopted, then sync as the command does."""
    socket = Path(os.environ["XDG_RUNTIME_DIR"], "fluxbudget", "fluxbudgetd.sock")

    def answer() -> messages.SyncAnswer | None:
        with Wire(socket) as wire:
            found = wire.ask(messages.Sync(hints=messages.Hints(cwd=str(project.root))))
        assert isinstance(found, messages.SyncAnswer), found
        return found if run in found.runs else None

    found = wait_for(answer, "the run to be adopted")
    assert isinstance(found, messages.SyncAnswer)
    return found


def test_database_is_written_only_with_the_drop_in(installed: Installed) -> None:
    """Without it, the run is still adopted and counted, and the answer names the command that helps."""
    interstat = Interstat(Path.home() / ".claude" / "interstat" / "metrics.db")
    interstat.insert("s1", bead_id=BEAD, input_tokens=100, output_tokens=20)
    interstat.close()
    project = IcProject(installed.root.parent / "work" / "one")
    run = project.run_create(scope=BEAD, budget=1000)
    installed.ok("service", "install", "--now")
    (fault,) = synced(project, run).faults
    reason = "its file system is read-only for fluxbudgetd"
    assert fault.what == f"{project.database} was not written: read-only: {reason}"
    assert fault.hint.endswith(f"fluxbudgetctl service install --sprints {project.root}")
    assert installed.ok("remaining", "--run", run, "--timeout", "30") == "880"
    assert os.listdir(project.directory) == ["intercore.db"], "reading leaves no files"
    installed.ok("service", "install", "--sprints", str(project.root))
    assert synced(project, run).faults == ()
    assert project.tokens(run) == 120

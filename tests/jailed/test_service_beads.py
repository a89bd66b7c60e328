"""What the service's sandbox means for beads, with a real user manager."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.beads import BeadsProject
from harness.daemon import Wire, wait_for
from harness.installed import Installed
from harness.interstat import Interstat

CONFIG = Path.home() / ".config" / "fluxbudget" / "config.toml"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    made = Installed(Path.home() / tmp_path.name / "an environment")
    yield made
    made.clean()


def asked(request: messages.AnyRequest) -> messages.AnyAnswer | messages.ErrorAnswer:
    with Wire(Path(os.environ["XDG_RUNTIME_DIR"], "fluxbudget", "fluxbudgetd.sock")) as wire:
        return wire.ask(request)


def test_beads_are_read_and_written_only_with_the_drop_in(installed: Installed) -> None:
    """Without it, `doctor` names the state and the command that helps, which also finds `bd`."""
    interstat = Interstat(Path.home() / ".claude" / "interstat" / "metrics.db")
    interstat.insert("s1", bead_id="b-1", input_tokens=100, output_tokens=20)
    interstat.close()
    CONFIG.parent.mkdir(parents=True)
    CONFIG.write_text("[beads]\nwrite_back = true\n")
    beads = BeadsProject(installed.root.parent / "work" / "one", installed.root.parent / "bin")
    beads.put("b-1", "token_budget:5000")
    named = messages.Remaining(hints=messages.Hints(scope="b-1", cwd=str(beads.project)))
    installed.ok("service", "install", "--now")

    def source() -> messages.SourceInfo | None:
        asked(named)
        answer = asked(messages.Doctor())
        assert isinstance(answer, messages.DoctorAnswer), answer
        return next((source for source in answer.sources if source.name == "beads"), None)

    found: messages.SourceInfo = wait_for(source, "the directory to be tried")
    assert (found.state, found.path) == ("read-only", str(beads.place))
    assert f"'fluxbudgetctl service install --sprints {beads.project}'" in found.hint
    assert beads.calls == []
    path = f"{beads.program.parent}:{os.environ['PATH']}"
    installed.ok("service", "install", "--sprints", str(beads.project), PATH=path)
    wait_for(lambda: isinstance(asked(named), messages.RemainingAnswer), "the run of the bead")
    wait_for(lambda: beads.labels("b-1") == ["token_budget:5000", "tokens_spent:120"], "the label")

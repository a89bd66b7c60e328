"""Loosening a limit: refused from inside a session under a hard budget, recorded under a soft one, always reported."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from fluxbudgetd.model import Event, Run
from fluxbudgetd.policy import loosening
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.messages import By
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import CommandProgram, Subscriber, configure, hook_message
from harness.interstat import Interstat
from harness.session_process import SessionProcess, command
from harness.values import NOW, a_run


class Loosening(NamedTuple):
    """A command that loosens run r1, and what its event says."""

    words: tuple[str, ...]
    data: dict[str, Any]
    run: str = "r1"


LOOSENINGS = {
    "raise": Loosening(("run", "set", "--run", "r1", "--budget", "5000"), {"from": 1000, "to": 5000}),
    "remove": Loosening(("run", "set", "--run", "r1", "--budget", "none"), {"from": 1000, "to": None}),
    "detach": Loosening(("run", "detach", "--session", "s1"), {"session": "s1"}),
    "move": Loosening(("run", "attach", "--session", "s1", "--run", "other"), {"session": "s1", "to": "other"}),
    "start": Loosening(("run", "start", "--id", "r3", "--session", "s1"), {"session": "s1", "to": "r3"}),
    "finish": Loosening(("run", "finish", "--run", "r1"), {"spent": 1200, "budget": 1000}),
    "cancel": Loosening(("run", "cancel", "--run", "r1"), {"spent": 1200, "budget": 1000}),
}
ALLOW = ("allow", "--run", "r1", "--tokens", "700")

#: The action of `run start` is the same as that of `run attach`.
ACTIONS = {"start": "move"}


@pytest.fixture
def claude(home: Home, interstat: Interstat, daemon: Daemon) -> Iterator[SessionProcess]:
    """Start a session with an exceeded run, and another run elsewhere."""
    started(home, id="r1", token_budget=1000, session="s1")
    home.ok("run", "start", "--id", "other", "--project", str(home.root), "--no-session")
    interstat.insert("s1", input_tokens=1000, output_tokens=200)
    assert home.spent("r1") == 1200
    with SessionProcess(home, "s1") as process:
        process.hook("SessionStart", source="startup")
        yield process


def harden(home: Home) -> None:
    home.ok("run", "set", "--run", "r1", "--enforcement", "hard")


def loosened(home: Home) -> list[messages.EventAnswer]:
    """Return the loosenings so far."""
    with Subscriber(home, since=0) as stream:
        stream.read_to(stream.subscribed.last)
    return [each for each in stream.events if each.kind == "run.loosened"]


def state(home: Home) -> object:
    """Return everything that a loosening may change."""
    shown = home.details("r1")
    return shown.run, shown.attachments, [line["run"] for line in home.json("run", "list", "--all")["runs"]]


@pytest.mark.parametrize("action", LOOSENINGS)
def test_hard_run_is_not_loosened_from_inside(home: Home, claude: SessionProcess, action: str) -> None:
    harden(home)
    before = state(home)
    done = claude.bash(command(*LOOSENINGS[action].words))
    assert (done.returncode, done.stdout) == (1, "")
    assert "fluxbudgetctl: inside a session, " in done.stderr
    assert ", because run r1 is hard\n" in done.stderr
    assert "hint: run it in your own terminal" in done.stderr
    assert state(home) == before
    assert loosened(home) == []


@pytest.mark.parametrize("action", LOOSENINGS)
def test_hard_run_is_loosened_from_outside_and_reported(home: Home, claude: SessionProcess, action: str) -> None:
    harden(home)
    home.ok(*LOOSENINGS[action].words)
    (event,) = loosened(home)
    expected = {"action": ACTIONS.get(action, action), "enforcement": "hard", **LOOSENINGS[action].data}
    assert (event.run, event.data) == ("r1", expected)
    assert event.by is not None
    assert event.by.kind in ("terminal", "service")


@pytest.mark.parametrize("action", LOOSENINGS)
def test_soft_run_is_loosened_from_inside_and_reported(home: Home, claude: SessionProcess, action: str) -> None:
    done = claude.bash(command(*LOOSENINGS[action].words))
    assert done.returncode == 0, done
    (event,) = loosened(home)
    expected = {"action": ACTIONS.get(action, action), "enforcement": "soft", **LOOSENINGS[action].data, "inside": "s1"}
    assert (event.run, event.data) == ("r1", expected)
    assert event.by is not None
    assert event.by.kind == "session"


@pytest.mark.parametrize("action", LOOSENINGS)
def test_soft_run_is_loosened_from_outside_without_a_report(home: Home, claude: SessionProcess, action: str) -> None:
    home.ok(*LOOSENINGS[action].words)
    assert loosened(home) == []


def test_enforcement_is_not_softened_from_inside(home: Home, claude: SessionProcess) -> None:
    soften = ("run", "set", "--run", "r1", "--enforcement", "soft")
    harden(home)
    assert claude.bash(command(*soften)).returncode == 1
    home.ok(*soften)
    (event,) = loosened(home)
    assert event.data == {"action": "soften", "enforcement": "hard"}


def test_hard_run_is_not_allowed_to_go_on_from_inside(home: Home, claude: SessionProcess) -> None:
    harden(home)
    assert claude.bash(command(*ALLOW)).returncode == 1
    assert not home.details("r1").run.allowed_to
    home.ok(*ALLOW)
    (event,) = loosened(home)
    assert event.data == {"action": "allow", "enforcement": "hard", "tokens": 700, "minutes": None}


def test_service_is_not_uninstalled_from_inside(home: Home, claude: SessionProcess) -> None:
    """The client asks before. What it does then is recorded for every run that is hard."""
    ask = (
        "from fluxbudgetctl.calls import call; from fluxbudgetd.wire import messages\n"
        'call(messages.Loosen(action="uninstall"), messages.LoosenAnswer, 60)'
    )
    assert claude.run(sys.executable, "-c", ask).returncode == 0, "it is soft"
    assert [event.data["action"] for event in loosened(home)] == ["uninstall"]
    harden(home)
    done = claude.run(sys.executable, "-c", ask)
    assert "inside a session, the service cannot be uninstalled, because run r1 is hard" in done.stderr
    assert len(loosened(home)) == 1
    assert isinstance(home.ask(messages.Loosen(action="uninstall")), messages.LoosenAnswer)
    assert [(event.run, event.data["enforcement"]) for event in loosened(home)][1:] == [("r1", "hard")]


def test_what_does_not_loosen_is_allowed_from_inside(home: Home, claude: SessionProcess) -> None:
    """A session may lower a budget, warn earlier, start another run, and end a run that is not exceeded."""
    harden(home)
    home.ok("run", "set", "--run", "r1", "--budget", "9000")
    for words in (
        ("run", "set", "--run", "r1", "--budget", "8000", "--warn-pct", "50"),
        ("run", "start", "--id", "child", "--no-session", "--project", "/"),
        ("run", "attach", "--session", "s1", "--run", "r1"),
        ("run", "finish", "--run", "r1"),
    ):
        done = claude.bash(command(*words))
        assert done.returncode == 0, done
    assert [event.data["action"] for event in loosened(home)] == ["raise"]


def test_session_of_a_hard_run_loosens_no_other_run(home: Home, claude: SessionProcess) -> None:
    """This includes a soft run, which it could have started as a decoy."""
    harden(home)
    home.ok("run", "set", "--run", "other", "--budget", "1000")
    done = claude.bash(command("run", "set", "--run", "other", "--budget", "2000"))
    assert done.returncode == 1
    assert "inside a session, the budget of run other cannot be raised, because run r1 is hard" in done.stderr


def test_session_without_a_run_loosens_no_hard_run(home: Home, claude: SessionProcess) -> None:
    harden(home)
    with SessionProcess(home, "loose") as other:
        other.hook("SessionStart", source="startup", cwd="/")
        done = other.bash(command("run", "set", "--run", "r1", "--budget", "2000"))
    assert done.returncode == 1


def test_ended_run_binds_nobody(home: Home, claude: SessionProcess) -> None:
    """Once a person has finished the hard run, its session may do what others may."""
    harden(home)
    home.ok("run", "finish", "--run", "r1")
    assert claude.bash(command("run", "attach", "--session", "s1", "--run", "other")).returncode == 0


def test_change_names_its_cause(home: Home, claude: SessionProcess) -> None:
    """Other events of commands have a cause, too; those of the daemon have none."""
    assert claude.bash(command("run", "set", "--run", "r1", "--warn-pct", "60")).returncode == 0
    claude.bash(command("check", "--run", "r1"))
    with Subscriber(home, since=0) as stream:
        stream.read_to(stream.subscribed.last)
    causes = {each.kind: each.by and each.by.kind for each in stream.events}
    assert causes["run.changed"] == causes["phase.blocked"] == "session"
    assert causes["budget.exceeded"] is None
    assert stream.events[0].by is not None
    assert stream.events[0].by.pid == os.getpid()


def test_loosening_is_reported_regardless_of_thresholds(home: Home, interstat: Interstat) -> None:
    """The log and each session of the run report it, even if they report no threshold. The command does not."""
    program = CommandProgram(home)
    none = "[channels.log]\nthresholds = []\n[channels.hook]\nthresholds = []\n"
    configure(home, none, argv=program.argv)
    daemon = home.start()
    run = started(home, id="r1", token_budget=1000, enforcement="hard", session="s1")
    home.ok("run", "set", "--run", run, "--budget", "2000")

    def logged() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == "limit loosened"]

    (line,) = wait_for(logged, "the loosening to be logged")
    assert (line["run"], line["level"]) == ("r1", "warning")
    assert line["what"] == "budget raised from 1 000 to 2 000 billing tokens"
    assert line["by"].startswith("python")
    shown = hook_message(home, "s1")
    assert shown.startswith("fluxbudget: run r1: budget raised from 1 000 to 2 000 billing tokens, by python")
    assert hook_message(home, "s1") == ""
    home.ok("run", "attach", "--session", "later", "--run", run)
    assert hook_message(home, "later") == "", "it did not belong to the run then"
    assert program.events == []


def test_loosening_is_reported_to_sessions_after_a_restart(home: Home, interstat: Interstat) -> None:
    configure(home)
    daemon = home.start()
    run = started(home, id="r1", token_budget=1000, enforcement="hard", session="s1")
    home.ok("run", "set", "--run", run, "--budget", "none")
    daemon.kill()
    daemon = home.start()
    assert "budget of 1 000 billing tokens removed" in hook_message(home, "s1")
    daemon.stop()  # which writes that it was delivered
    home.start()
    assert hook_message(home, "s1") == ""


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (By(kind="terminal", pid=7, comm="fluxbudgetctl"), "fluxbudgetctl (process 7) in a terminal"),
        (By(kind="service", pid=7, comm="cron"), "cron (process 7), without a terminal"),
        (By(kind="session", pid=7, comm="python3"), "python3 (process 7) inside session s1"),
        (By(kind="unknown", pid=0, comm=""), "a process (process 0), whose ancestors cannot be read"),
        (None, "a hook"),
    ],
)
def test_cause_in_words(by: By | None, expected: str) -> None:
    event = Event(seq=1, at=NOW, run="r1", kind="run.loosened", data={"action": "soften", "inside": "s1"}, by=by)
    assert loosening.who(event) == expected


@pytest.mark.parametrize(
    ("old", "new", "actions"),
    [
        ({"token_budget": 10}, {"token_budget": 11}, ["raise"]),
        ({"token_budget": 10}, {"token_budget": None}, ["remove"]),
        ({"token_budget": 10}, {"token_budget": 9}, []),
        ({"token_budget": None}, {"token_budget": 9}, []),
        ({"enforcement": "hard"}, {"enforcement": "soft"}, ["soften"]),
        ({"enforcement": "soft"}, {"enforcement": "hard"}, []),
        ({"warn_pct": 80}, {"warn_pct": 99}, []),
        ({"token_budget": 10, "enforcement": "hard"}, {"token_budget": 20, "enforcement": "soft"}, ["raise", "soften"]),
    ],
)
def test_what_loosens_a_run(old: dict[str, Any], new: dict[str, Any], actions: list[str]) -> None:
    before = a_run(**old)
    after: Run = msgspec.structs.replace(before, **new)
    assert [each.action for each in loosening.of_change(before, after)] == actions

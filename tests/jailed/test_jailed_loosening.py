"""The service sees, from inside its sandbox, whether a client is inside a session."""

from pathlib import Path

from harness.daemon import started
from harness.events import Subscriber, committed_events
from harness.jail_service import Account
from harness.session_process import SessionProcess, command

RAISE = ("run", "set", "--run", "r1", "--budget", "5000")


def test_session_cannot_raise_its_hard_limit(service: Account) -> None:
    started(service, id="r1", enforcement="hard", token_budget=1000)
    with SessionProcess(service, "s1") as claude:
        claude.hook("SessionStart", source="startup")
        for script in (command(*RAISE), f"setsid --wait {command(*RAISE)}"):
            done = claude.bash(script)
            assert done.returncode == 1, done
            assert "run r1 is hard" in done.stderr
        assert service.details("r1").run.token_budget == 1000
        service.ok(*RAISE)
    with Subscriber(service, since=0) as stream:
        event = stream.until("run.loosened")
    assert event.by is not None
    assert event.by.kind in ("terminal", "service")


def test_limits_of_memory_and_tasks_apply_where_there_are_controllers(service: Account) -> None:
    """Without the controllers, the settings are only known to the manager."""
    shown = {name: service.show(name) for name in ("MemoryHigh", "MemoryMax", "TasksMax")}
    assert shown == {"MemoryHigh": str(512 << 20), "MemoryMax": str(1 << 30), "TasksMax": "512"}
    service.ping()
    group = Path("/sys/fs/cgroup" + service.show("ControlGroup"))
    for file, value in (("memory.high", shown["MemoryHigh"]), ("memory.max", shown["MemoryMax"]), ("pids.max", "512")):
        if (group / file).exists():
            assert (group / file).read_text().strip() == value
    assert service.restarts == 0


def test_session_cannot_uninstall_the_service(service: Account) -> None:
    started(service, id="r1", enforcement="hard", token_budget=1000)
    uninstall = ("service", "uninstall", "--force")
    with SessionProcess(service, "s1") as claude:
        claude.hook("SessionStart", source="startup")
        done = claude.bash(command(*uninstall))
        assert done.returncode == 1, done
        assert "inside a session, the service cannot be uninstalled, because run r1 is hard" in done.stderr
        assert (service.units / "fluxbudgetd.service").exists()
        service.ping()
        service.ok(*uninstall)
    assert not (service.units / "fluxbudgetd.service").exists()
    assert ("run.loosened", "r1") in [(kind, run) for _, kind, run in committed_events(service)]

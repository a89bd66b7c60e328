"""`fluxbudgetctl service` without a usable systemd, and what `doctor` reports about the service."""

import json
import os
import pwd
from pathlib import Path

import pytest

from fluxbudgetctl.service import describe, units
from fluxbudgetctl.service.doctor import findings
from fluxbudgetctl.service.manager import Unit
from fluxbudgetctl.service.status import ServiceStatus, is_lingering
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State
from harness.daemon import Home, started


def path_with(directory: Path, systemctl: str | None) -> dict[str, str]:
    """Return an environment whose $PATH has only this systemctl, or is empty."""
    directory.mkdir()
    if systemctl is not None:
        (directory / "systemctl").write_text(f"#!/bin/sh\n{systemctl}\n")
        (directory / "systemctl").chmod(0o755)
    return {"PATH": str(directory)}


def status_with(**fields: object) -> ServiceStatus:
    """Return a status without problems, except for the given fields."""
    files = {name: units.File(path=f"/u/{name}", state=State.OURS, version="1") for name in UNITS}
    up = Unit(load="loaded", active="active", file_state="enabled", result="success")
    usual = {
        "directory": "/u",
        "files": files,
        "manager": {SERVICE: up, SOCKET: up},
        "outdated": False,
        "program": "/bin/true",
        "listen": "/run/user/1/fluxbudget/fluxbudgetd.sock",
        "is_listening": True,
        "held_by": None,
        "drop_ins": (),
        "sprints": units.File(path="/u/sprints", state=State.MISSING),
        "lingering": False,
    }
    return ServiceStatus(**{**usual, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_without_systemctl(home: Home, verb: str) -> None:
    ended = home.ctl("service", verb, environ=path_with(home.root / "bin", None))
    assert (ended.returncode, ended.stdout) == (69, "")
    message, hint = ended.stderr.splitlines()
    assert message == "fluxbudgetctl: there is no systemctl here: this system does not run systemd"
    assert "nohup fluxbudgetd &" in hint
    assert not (home.root / ".config").exists()


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_without_a_user_manager(home: Home, verb: str) -> None:
    """The error includes systemctl's own message."""
    environ = path_with(home.root / "bin", "echo 'Failed to connect to bus: No medium found' >&2; exit 1")
    ended = home.ctl("service", verb, environ=environ)
    assert (ended.returncode, ended.stdout) == (69, "")
    message, hint = ended.stderr.splitlines()
    assert message == "fluxbudgetctl: no systemd user manager can be reached: Failed to connect to bus: No medium found"
    assert "loginctl enable-linger" in hint
    assert not (home.root / ".config").exists()


def test_systemctl_that_cannot_be_started(home: Home) -> None:
    environ = path_with(home.root / "bin", "")
    (home.root / "bin" / "systemctl").write_text("#!/nowhere/sh\n")
    ended = home.ctl("service", "status", environ=environ)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (69, 2), ended


def test_printing_needs_no_systemd(home: Home) -> None:
    ended = home.ctl("service", "install", "--print", environ=path_with(home.root / "bin", None))
    assert ended.returncode == 0
    for name in UNITS:
        assert (
            f"# {home.root}/.config/systemd/user/{name}\n# Written by 'fluxbudgetctl service install'" in ended.stdout
        )
    assert f"Environment=CLAUDE_CONFIG_DIR={home.root}/claude\n" in ended.stdout
    assert f"ListenStream={home.socket}\n" not in ended.stdout  # the default for this XDG_RUNTIME_DIR
    assert not (home.root / ".config").exists()


def test_doctor_does_not_mention_systemd_where_there_is_none(home: Home) -> None:
    home.interstat.touch()
    home.start()
    shown = json.loads(home.ctl("doctor", "--json").stdout)
    assert shown["service"] is None
    assert not [one for one in shown["findings"] if "system" in one["what"]]


def test_doctor_does_not_wait_for_a_manager_that_hangs(home: Home) -> None:
    started_by_hand = home.start()
    run = started(home)
    private = home.root / "run" / "systemd" / "private"
    private.parent.mkdir()
    private.touch()
    shown = json.loads(
        home.ctl("doctor", "--json", environ=path_with(home.root / "bin", "exec /bin/sleep infinity")).stdout
    )
    assert "'systemctl --user show' did not end within 0.8 s" in {one["what"] for one in shown["findings"]}
    assert (shown["daemon"]["pid"], shown["daemon"]["active_runs"]) == (started_by_hand.process.pid, 1), run


def test_lingering_matters_while_a_run_is_active_and_the_login_is_not_graphical() -> None:
    def found(status: ServiceStatus, runs: int, **environ: str) -> bool:
        hints = [
            one.hint
            for one in findings(status, outside=None, runs=runs, environ={"XDG_RUNTIME_DIR": "/run/user/1"} | environ)
        ]
        return hints == ["loginctl enable-linger"]

    assert found(status_with(), 1)
    assert found(status_with(), 1, XDG_SESSION_TYPE="tty")
    assert found(status_with(), 1, XDG_SESSION_TYPE="x11", SSH_CONNECTION="1 2 3 4")
    assert not found(status_with(), 0)
    assert not found(status_with(), 1, XDG_SESSION_TYPE="wayland")
    assert not found(status_with(lingering=True), 1)
    assert not found(status_with(lingering=None), 1)


def test_lingering_is_read_where_logind_keeps_it(tmp_path: Path) -> None:
    uid, name = os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name
    assert is_lingering(uid, str(tmp_path)) is None
    users = tmp_path / "run" / "systemd" / "users"
    users.mkdir(parents=True)
    (users / str(uid)).touch()
    assert is_lingering(uid, str(tmp_path)) is False
    linger = tmp_path / "var" / "lib" / "systemd" / "linger"
    linger.mkdir(parents=True)
    (linger / name).touch()
    assert is_lingering(uid, str(tmp_path)) is True


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (Unit(result="success"), None),
        (Unit(result="exit-code", exit_kind=1, exit_status=78), "exit code 78, the configuration is wrong: see"),
        (Unit(result="exit-code", exit_kind=1, exit_status=203), "exit code 203, its program cannot be started"),
        (Unit(result="exit-code", exit_kind=1, exit_status=99), "exit code 99"),
        (Unit(result="signal", exit_kind=2, exit_status=9), "killed by SIGKILL"),
        (Unit(result="watchdog", exit_kind=2, exit_status=6), "it hung and was killed"),
        (Unit(result="something-new"), "something-new"),
    ],
)
def test_failures_are_explained(unit: Unit, message: str | None) -> None:
    why = describe.failure(unit)
    assert (why is None) if message is None else (why is not None and why.startswith(message))

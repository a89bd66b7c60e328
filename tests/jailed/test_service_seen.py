"""What `service status` and `doctor` report, with a real user manager."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxbudgetd import __version__
from harness.daemon import wait_for
from harness.installed import OTHER_VERSION, UNITS, Installed, systemctl, unit_directory
from harness.interstat import Interstat

SOCKET, SERVICE = (unit_directory() / name for name in UNITS)
NOW = "fluxbudgetctl service install --now"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """An environment with an installed, listening and healthy service."""
    made = Installed(Path.home() / tmp_path.name / "environment")
    database = Path.home() / ".claude" / "interstat" / "metrics.db"
    database.parent.mkdir(parents=True)
    Interstat(database).close()
    made.ok("service", "install", "--now")
    yield made
    made.clean()


def findings(installed: Installed, timeout: str = "30", **environ: str) -> dict[str, str]:
    """Return doctor's findings with their hints."""
    ended = installed.ctl("doctor", "--json", "--timeout", timeout, **environ)
    found = {one["what"]: one["hint"] for one in json.loads(ended.stdout)["findings"]}
    assert ended.returncode == (1 if found else 0)
    return found


def test_healthy_service(installed: Installed) -> None:
    assert findings(installed) == {}
    assert f"service   installed by version {__version__}" in installed.ok("doctor")
    service = json.loads(installed.ok("doctor", "--json"))["service"]
    assert service == json.loads(installed.ok("service", "status", "--json"))
    lines = installed.ok("service", "status").splitlines()
    assert lines[0] == f"units     installed by version {__version__}"
    assert lines[1] == f"socket    listening at {os.environ['XDG_RUNTIME_DIR']}/fluxbudget/fluxbudgetd.sock"
    assert lines[2].startswith("daemon    running since 20")
    assert f"pid {service['daemon']['pid']}, version" in lines[2]
    assert lines[3] == f"          it says: {service['daemon']['says']}"
    assert lines[4:] == ["login     starts at login: yes", "logout    continues after logout (lingering): unknown"]


def test_status_starts_nothing(installed: Installed) -> None:
    assert "not running; the first call starts it" in installed.ok("service", "status")
    assert systemctl("is-active", "fluxbudgetd.service") == "inactive"
    installed.ok("ping", "--timeout", "30")
    systemctl("stop", "fluxbudgetd.service")
    assert "it says" not in installed.ok(
        "service", "status"
    )  # systemd still has the status text of the previous daemon


def test_killed_and_restarted_daemon(installed: Installed) -> None:
    installed.ok("ping", "--timeout", "30")
    systemctl("kill", "--signal=KILL", "fluxbudgetd.service")
    wait_for(lambda: systemctl("show", "--property=NRestarts", "--value", "fluxbudgetd.service") == "1", "a restart")
    wait_for(lambda: "running since" in installed.ok("service", "status"), "the daemon")
    assert "restarted automatically once" in installed.ok("service", "status")
    assert findings(installed) == {}


def test_nothing_installed(installed: Installed) -> None:
    installed.ok("service", "uninstall")
    assert findings(installed)["fluxbudgetd is not installed as a systemd user service"] == NOW
    status = installed.ctl("service", "status")
    assert (status.returncode, "fluxbudgetd.service is not installed" in status.stdout) == (1, True), status


def test_one_unit_missing(installed: Installed) -> None:
    systemctl("stop", *UNITS)
    SOCKET.unlink()
    systemctl("daemon-reload")
    assert findings(installed)["fluxbudgetd.socket is not installed"] == NOW
    assert "fluxbudgetd.socket is not installed; fluxbudgetd.service installed by" in status(installed)


def test_daemon_of_another_version(installed: Installed) -> None:
    installed.set_version(OTHER_VERSION)
    assert findings(installed) == {
        "the installed units differ from what this version writes": "fluxbudgetctl service install",
        f"the daemon is version {__version__}, the client {OTHER_VERSION}": "fluxbudgetctl service install",
    }
    assert f"installed by version {__version__}; outdated" in status(installed)


def test_carried_over_variables_are_not_outdated_in_another_shell(installed: Installed) -> None:
    installed.ok("service", "install", INTERBAND_ROOT=str(Path.home() / "band"))
    assert findings(installed) == {}


def test_unit_edited_by_hand(installed: Installed) -> None:
    """This is not a finding as long as it works and systemd has loaded it."""
    SERVICE.write_text(SERVICE.read_text() + "# mine\n")
    reload = "systemd has not read fluxbudgetd.service since it was changed"
    assert findings(installed) == {reload: "systemctl --user daemon-reload"}
    systemctl("daemon-reload")
    assert findings(installed) == {}
    assert "fluxbudgetd.service was edited by hand" in status(installed)


def test_missing_program(installed: Installed) -> None:
    installed.daemon.rename(installed.daemon.with_name("gone"))
    what = f"fluxbudgetd.service starts {installed.daemon}, which is not executable"
    assert findings(installed, timeout="0.1")[what] == "fluxbudgetctl service install"


def test_masked_unit(installed: Installed) -> None:
    systemctl("stop", *UNITS)
    SERVICE.unlink()
    systemctl("mask", "fluxbudgetd.service")
    hint = findings(installed)[f"fluxbudgetd.service is masked ({SERVICE})"]
    assert hint == "systemctl --user unmask fluxbudgetd.service"
    assert f"fluxbudgetd.service is masked ({SERVICE})" in status(installed)


def test_neither_enabled_nor_listening(installed: Installed) -> None:
    systemctl("disable", "--now", *UNITS)
    found = findings(installed)
    assert found["fluxbudgetd.socket is not enabled: it will not listen after the next login"] == NOW
    assert found["fluxbudgetd.socket does not listen (inactive)"] == "systemctl --user start fluxbudgetd.socket"
    ended = installed.ctl("service", "status")
    assert ended.returncode == 1
    assert "not listening (inactive)" in ended.stdout
    assert "starts at login: no" in ended.stdout


def test_unit_that_systemd_cannot_read(installed: Installed) -> None:
    SERVICE.write_text("[Service]\nType=notify\n")
    systemctl("daemon-reload")
    hint = findings(installed)["systemd cannot read fluxbudgetd.service (bad-setting)"]
    assert hint == f"systemd-analyze --user verify {SERVICE}"
    installed.ok("service", "uninstall", "--force")
    assert not SERVICE.exists()


def test_failed_service(installed: Installed) -> None:
    config = Path.home() / ".config" / "fluxbudget" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("x = [")
    assert installed.ctl("ping", "--timeout", "30").returncode == 78
    wait_for(lambda: systemctl("is-active", "fluxbudgetd.service") == "failed", "the daemon to give up")
    what = "fluxbudgetd.service has failed: exit code 78, the configuration is wrong: see 'fluxbudgetd --check-config'"
    assert "failed; the next call starts it" in status(installed)
    assert "last failure: exit code 78, the configuration is wrong" in status(installed)
    assert what in findings(installed)
    config.unlink()
    wait_for(lambda: findings(installed) == {}, "the daemon to read the fixed configuration")


def test_socket_that_listens_elsewhere(installed: Installed) -> None:
    what = next(what for what in findings(installed, FLUXBUDGET_SOCKET="/run/other.sock") if "listens at" in what)
    assert "your FLUXBUDGET_SOCKET is /run/other.sock" in what


def test_hanging_manager(installed: Installed, tmp_path: Path) -> None:
    """Doctor reports it along with everything else, without waiting for it."""
    hanging = tmp_path / "systemctl"
    hanging.write_text("#!/bin/sh\nexec sleep infinity\n")
    hanging.chmod(0o755)
    found = findings(installed, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert list(found) == ["'systemctl --user show' did not end within 0.8 s"]


def status(installed: Installed) -> str:
    return installed.ctl("service", "status").stdout

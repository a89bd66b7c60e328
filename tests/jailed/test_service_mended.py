"""`fluxbudgetctl service` and `doctor` with a real manager: obstacles and interrupted installations."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.daemon import wait_for
from harness.installed import OTHER_VERSION, UNITS, Installed, systemctl, unit_directory
from harness.suspend import suspend

SOCKET, SERVICE = UNITS
NOW = "fluxbudgetctl service install --now"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """An environment outside /tmp."""
    made = Installed(Path.home() / tmp_path.name / "environment")
    yield made
    made.clean()


@contextmanager
def by_hand(installed: Installed, **environ: str) -> Iterator[int]:
    """Run a daemon that was started without systemd; yield its pid."""
    with subprocess.Popen([installed.daemon], stderr=subprocess.DEVNULL, env={**os.environ, **environ}) as daemon:
        try:
            wait_for(lambda: installed.ctl("ping", **environ).returncode == 0, "the daemon to answer")
            yield daemon.pid
        finally:
            daemon.send_signal(signal.SIGCONT)
            daemon.send_signal(signal.SIGTERM)


def failing_once(directory: Path, verb: str) -> dict[str, str]:
    """Return an environment in which systemctl fails once at this verb, which the real one rarely does."""
    directory.mkdir()
    script = directory / "systemctl"
    script.write_text(
        f'#!/bin/sh\nfor word; do if [ "$word" = {verb} ] && [ ! -e {directory}/done ]; then\n'
        f'touch {directory}/done; echo "it failed" >&2; exit 1; fi; done\nexec {shutil.which("systemctl")} "$@"\n'
    )
    script.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def findings(installed: Installed, **environ: str) -> dict[str, str]:
    """Return doctor's findings, except those about sources, with their hints."""
    ended = installed.ctl("doctor", "--json", "--timeout", "30", **environ)
    return {one["what"]: one["hint"] for one in json.loads(ended.stdout)["findings"] if "interstat" not in one["what"]}


def is_active() -> list[str]:
    return systemctl("is-active", *UNITS).split()


def test_daemon_started_by_hand_needs_no_units(installed: Installed) -> None:
    with by_hand(installed) as pid:
        assert findings(installed) == {}
        assert f"fluxbudgetd (pid {pid}) runs without it" in installed.ctl("doctor").stdout


@pytest.mark.parametrize("how", ["it hangs", "it has another socket"])
def test_hanging_daemon_keeps_its_socket_and_ledger(installed: Installed, how: str) -> None:
    """Its locks show that it is running, so doctor does not advise starting the socket."""
    elsewhere = {"FLUXBUDGET_SOCKET": str(Path.home() / "other.sock")} if how == "it has another socket" else {}
    with by_hand(installed, **elsewhere) as pid:
        if how == "it hangs":
            suspend(pid)
        ended = installed.ctl("service", "install", "--now")
        assert (ended.returncode, f"(pid {pid}) runs outside systemd: stop it first" in ended.stderr) == (1, True), (
            ended
        )
        assert not unit_directory().exists()
        assert f"(pid {pid}) runs outside systemd" in installed.ok("service", "install")
        assert is_active() == ["inactive", "inactive"]
        ended = installed.ctl("doctor", "--json", "--timeout", "0.2")
        found = {one["what"]: one["hint"] for one in json.loads(ended.stdout)["findings"]}
        what = f"fluxbudgetd (pid {pid}) runs outside systemd, although the units are installed"
        assert found[what] == f"stop it (kill {pid}), then {NOW}"
        assert f"systemctl --user start {SOCKET}" not in found.values()
        assert json.loads(ended.stdout)["service"]["daemon"]["outside"] == pid
    installed.ok("service", "install", "--now")
    assert findings(installed) == {}


@pytest.mark.parametrize("step", ["stop", "daemon-reload", "start"])
def test_next_install_completes_a_failed_one(installed: Installed, step: str, tmp_path: Path) -> None:
    """After the failure, a socket listens at the old or the new path; after the next install, at the new one."""
    installed.ok("service", "install", "--now")
    installed.ok("ping", "--timeout", "30")
    chosen = {"FLUXBUDGET_SOCKET": str(Path.home() / "chosen" / "s.sock")}
    ended = installed.ctl("service", "install", **chosen, **failing_once(tmp_path / "bin", step))
    assert (ended.returncode, "written, but " in ended.stderr, NOW in ended.stderr) == (1, True, True), ended
    assert is_active()[0] == "active"
    shown = json.loads(installed.ok("service", "status", "--json"))
    installed.ok("ping", "--timeout", "30", FLUXBUDGET_SOCKET=shown["socket"]["path"])
    if step in ("stop", "daemon-reload"):
        unread = f"systemd has not read {SOCKET} since it was changed"
        assert findings(installed)[unread] == "fluxbudgetctl service install"
    installed.ok("service", "install")
    installed.ok("ping", "--timeout", "30", **chosen)
    assert findings(installed, **chosen) == {}


def test_changed_socket_unit_without_a_reload_is_reported_and_repaired(installed: Installed) -> None:
    """Systemd calls it active, but does not listen."""
    installed.ok("service", "install", "--now")
    mine = unit_directory() / f"{SOCKET}.d" / "mine.conf"
    mine.parent.mkdir()
    mine.write_text("[Socket]\nListenStream=\nListenStream=%t/fluxbudget/mine.sock\n")
    systemctl("daemon-reload")
    chosen = {"FLUXBUDGET_SOCKET": f"{os.environ['XDG_RUNTIME_DIR']}/fluxbudget/mine.sock"}
    hint = f"systemctl --user restart {SOCKET}"
    assert hint in findings(installed, **chosen).values()
    assert hint in installed.ok("service", "status", **chosen)
    installed.ok("service", "install")
    installed.ok("ping", "--timeout", "30", **chosen)
    assert f"listening at {chosen['FLUXBUDGET_SOCKET']}" in installed.ok("service", "status", **chosen)
    assert findings(installed, **chosen) == {}


def test_starting_service_is_restarted_with_the_new_units(installed: Installed) -> None:
    installed.ok("service", "install", "--now")
    slow = unit_directory() / f"{SERVICE}.d" / "slow.conf"
    slow.parent.mkdir()
    slow.write_text("[Service]\nExecStartPre=/bin/sh -c 'trap \"exit 0\" TERM; sleep infinity & wait'\n")
    systemctl("daemon-reload")
    systemctl("start", "--no-block", SERVICE)
    wait_for(lambda: is_active()[1] == "activating", "the start")
    slow.unlink()
    assert "the daemon was restarted" in installed.ok("service", "install")
    assert is_active() == ["active", "active"]


def test_units_deleted_by_hand_are_stopped_and_disabled(installed: Installed) -> None:
    """The manager need not have noticed. They are recognized by their links, or because they are running."""
    for reload, stop in ((True, True), (False, False), (True, False)):
        installed.ok("service", "install", "--now")
        installed.ok("ping", "--timeout", "30")
        for name in UNITS:
            (unit_directory() / name).unlink()
        if stop:
            systemctl("stop", *UNITS)
        if reload and not stop:
            for links in unit_directory().glob("*.wants"):
                shutil.rmtree(links)
        if reload:
            systemctl("daemon-reload")
        assert f"removed what was left of {SERVICE}" in installed.ok("service", "uninstall")
        assert list(unit_directory().iterdir()) == []
        assert is_active() == ["inactive", "inactive"]
        assert systemctl("list-units", "--all", "--no-legend", *UNITS) == ""
        assert installed.ok("service", "uninstall") == "nothing is installed"


def test_units_in_other_directories_are_used_and_kept(installed: Installed) -> None:
    """A distribution's package may have such units."""
    installed.ok("service", "install")
    systemctl("disable", *UNITS)
    elsewhere = Path.home() / ".local" / "share" / "systemd" / "user"
    elsewhere.mkdir(parents=True)
    try:
        for name in UNITS:
            shutil.move(unit_directory() / name, elsewhere / name)
        systemctl("daemon-reload")
        systemctl("enable", "--now", SOCKET)
        installed.ok("ping", "--timeout", "30")
        assert f"{SERVICE} comes from {elsewhere / SERVICE}" in installed.ok("service", "status")
        assert findings(installed) == {}
        ended = installed.ctl("service", "uninstall")
        assert f"{SERVICE} comes from {elsewhere / SERVICE}; it stays as it is" in ended.stderr
        assert is_active() == ["active", "active"]
    finally:
        systemctl("disable", "--now", *UNITS)
        shutil.rmtree(elsewhere)


def test_program_that_needs_the_shells_environment_is_not_installed(installed: Installed) -> None:
    """Packages installed with `pip --target`, for example, need PYTHONPATH."""
    path = installed.packages / "tested.pth"
    packages = path.read_text().replace("\n", ":")
    path.unlink()
    ended = installed.ctl("service", "install", PYTHONPATH=f"{installed.packages}:{packages}")
    said, hint = ended.stderr.splitlines()
    assert (ended.returncode, "does not start with systemd's environment: " in said, "PYTHONPATH" in hint) == (1, 1, 1)
    assert "No module named" in said
    assert not unit_directory().exists()


def test_program_that_the_manager_starts_is_compared(installed: Installed) -> None:
    """The one in the unit file is not: the user may have a drop-in, or a second environment of the same version."""
    installed.ok("service", "install", "--now")
    other = Installed(installed.root.parent / "another")
    assert findings(other) == {}
    own = unit_directory() / f"{SERVICE}.d" / "own.conf"
    own.parent.mkdir()
    own.write_text(f"[Service]\nExecStart=\nExecStart=%h/{other.daemon.relative_to(Path.home())}\n")
    systemctl("daemon-reload")
    installed.daemon.rename(installed.daemon.with_name("gone"))
    assert findings(other) == {}
    assert json.loads(other.ok("service", "status", "--json"))["program"] == str(other.daemon)
    other.set_version(OTHER_VERSION)
    assert json.loads(other.ok("service", "status", "--json"))["outdated"]
    other.daemon.unlink()
    assert f"{SERVICE} starts {other.daemon}, which is not executable" in findings(installed)


def test_install_without_disk_space_leaves_nothing(installed: Installed) -> None:
    """The limit leaves room for the socket's unit, but not for the service's."""
    ended = subprocess.run(
        ["sh", "-c", f"ulimit -f 5; exec '{installed.client}' service install"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert (ended.returncode, "cannot be written: File too large" in ended.stderr) == (1, True), ended
    assert list(unit_directory().iterdir()) == []

"""`fluxbudgetctl service install` and `uninstall` with a real user manager."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.daemon import wait_for
from harness.installed import OTHER_VERSION, UNITS, Installed, systemctl, unit_directory

_ODD = 'it\'s "a" ${HOME} \\d %h é'


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """An environment whose path contains a space, outside /tmp."""
    made = Installed(Path.home() / tmp_path.name / "an environment")
    yield made
    made.clean()


def listing() -> set[Path]:
    return {path for path in unit_directory().rglob("*") if not path.is_dir()}


def pid_of(installed: Installed, **environ: str) -> int:
    return int(json.loads(installed.ok("ping", "--json", "--timeout", "30", **environ))["pid"])


def test_first_request_starts_the_installed_daemon(installed: Installed) -> None:
    said = installed.ok("service", "install", "--now")
    assert "the first call starts the daemon" in said
    assert systemctl("show", "--property=MainPID", "--value", "fluxbudgetd.service") == "0"
    assert str(pid_of(installed)) == systemctl("show", "--property=MainPID", "--value", "fluxbudgetd.service")
    for name in UNITS:
        assert (unit_directory() / name).stat().st_mode & 0o777 == 0o644
        assert systemctl("is-enabled", name) == "enabled"


def test_print_shows_the_files_that_install_writes(installed: Installed) -> None:
    shown = installed.ok("service", "install", "--print")
    assert not unit_directory().exists()
    installed.ok("service", "install")
    written = [f"# {unit_directory() / name}\n{(unit_directory() / name).read_text()}" for name in UNITS]
    assert shown == "\n".join(written).rstrip("\n")


def test_without_now_the_socket_starts_at_the_next_login(installed: Installed) -> None:
    assert "at your next login" in installed.ok("service", "install")
    assert systemctl("is-active", *UNITS).split() == ["inactive", "inactive"]
    assert systemctl("is-enabled", *UNITS).split() == ["enabled", "enabled"]


def test_upgrade_restarts_the_daemon_and_loses_no_event_and_no_request(installed: Installed) -> None:
    installed.ok("service", "install", "--now")
    before = pid_of(installed)
    done = threading.Event()
    started: list[str] = []

    def work() -> None:
        while not done.is_set():
            started.append(installed.ok("run", "start", "--id", f"r{len(started)}", "--timeout", "60"))

    with subprocess.Popen(
        [installed.client, "watch", "--since", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as watch:
        assert watch.stdout is not None
        worker = threading.Thread(target=work)
        worker.start()
        try:
            wait_for(lambda: len(started) > 2, "runs before the upgrade")
            installed.set_version(OTHER_VERSION)
            assert "the daemon was restarted" in installed.ok("service", "install")
            upgraded = len(started)
            wait_for(lambda: len(started) > upgraded + 2, "runs after the upgrade")
        finally:
            done.set()
            worker.join()
        after = pid_of(installed)
        events: list[dict[str, object]] = []
        while not events or events[-1]["run"] != started[-1]:
            events.append(json.loads(watch.stdout.readline()))
        watch.terminate()
    assert after != before
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["run"] for event in events if event["kind"] == "run.started"] == started
    assert systemctl("show", "--property=NRestarts", "--value", "fluxbudgetd.service") == "0"


def test_program_and_directories_with_odd_names(tmp_path: Path) -> None:
    """Systemd reads the quoting as intended: the daemon starts, writes there, and doctor agrees."""
    root = Path.home() / tmp_path.name
    installed = Installed(root / _ODD)
    places = {
        "CLAUDE_CONFIG_DIR": str(root / f"claude {_ODD}"),
        "XDG_STATE_HOME": str(root / f"state {_ODD}"),
        "INTERBAND_ROOT": str(root / f"interband {_ODD}"),
    }
    try:
        installed.ok("service", "install", "--now", **places)
        installed.ok("ping", "--timeout", "30")
        daemon = json.loads(installed.ctl("doctor", "--json").stdout)["daemon"]
        assert daemon["state_dir"] == f"{places['XDG_STATE_HOME']}/fluxbudget"
        assert {source["path"] for source in daemon["sources"]} == {
            f"{places['CLAUDE_CONFIG_DIR']}/interstat/metrics.db",
            f"{places['CLAUDE_CONFIG_DIR']}/projects",
        }
        assert (Path(places["XDG_STATE_HOME"]) / "fluxbudget" / "ledger.db").exists()
        shown = json.loads(installed.ok("service", "status", "--json"))
        assert (shown["program"], shown["outdated"]) == (str(installed.daemon), False)
    finally:
        installed.clean()


def test_program_and_directories_below_tmp(tmp_path: Path) -> None:
    """The service's private /tmp contains them, and install warns that they will not last."""
    installed = Installed(tmp_path / "environment")
    state = tmp_path / "state"
    try:
        ended = installed.ctl("service", "install", "--now", XDG_STATE_HOME=str(state))
        assert (ended.returncode, "emptied when the machine starts" in ended.stderr) == (0, True), ended
        installed.ok("ping", "--timeout", "30")
        assert (state / "fluxbudget" / "ledger.db").exists()
    finally:
        installed.clean()


def test_changed_socket_path_moves_the_listening_socket(installed: Installed) -> None:
    installed.ok("service", "install", "--now")
    pid_of(installed)
    usual = Path(os.environ["XDG_RUNTIME_DIR"], "fluxbudget", "fluxbudgetd.sock")
    chosen = Path.home() / "odd %t place" / "fluxbudget" / "other.sock"
    assert usual.exists()
    installed.ok("service", "install", FLUXBUDGET_SOCKET=str(chosen))
    assert not usual.parent.exists()
    assert pid_of(installed, FLUXBUDGET_SOCKET=str(chosen)) > 0
    assert (chosen.parent / "state" / "alive").exists()
    assert json.loads(installed.ok("service", "status", "--json"))["socket"]["path"] == str(chosen)
    assert f"listens at {chosen}" in installed.ctl("doctor", FLUXBUDGET_SOCKET="/run/x.sock").stdout
    assert f"listens at {chosen}, but your shell looks at {usual}" in installed.ctl("doctor").stdout
    installed.ok("service", "uninstall")
    assert list(chosen.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fluxbudgetd.service", "foreign"), ("fluxbudgetd.socket", "edited"), ("fluxbudgetd.service", "symlink")],
)
def test_foreign_unit_file_is_kept(installed: Installed, name: str, kind: str) -> None:
    """Both files are checked before either is written. --force overwrites them. `uninstall` checks them, too."""
    path = unit_directory() / name
    path.parent.mkdir(parents=True)
    if kind == "foreign":
        path.write_text("[Unit]\nDescription=mine\n")
    elif kind == "symlink":
        (Path.home() / "mine").write_text("[Unit]\n")
        path.symlink_to(Path.home() / "mine")
    else:
        installed.ok("service", "install")
        path.write_text(path.read_text() + "# mine\n")
    before = {one: one.read_text() for one in listing()}
    for verb in ("install", "uninstall"):
        ended = installed.ctl("service", verb)
        assert (ended.returncode, str(path) in ended.stderr, "--force" in ended.stderr) == (1, True, True), ended
        assert {one: one.read_text() for one in listing()} == before
    installed.ok("service", "install", "--force")
    assert path.read_text().startswith("# Written by")
    assert not path.is_symlink()
    if kind == "symlink":
        assert (Path.home() / "mine").read_text() == "[Unit]\n"


def test_directory_in_a_units_place_is_kept(installed: Installed) -> None:
    (unit_directory() / "fluxbudgetd.service").mkdir(parents=True)
    for verb in ("install", "uninstall"):
        ended = installed.ctl("service", verb, "--force")
        assert (ended.returncode, "is a directory" in ended.stderr) == (1, True), ended
    assert not listing()


@pytest.mark.parametrize("where", ["--runtime", None, "empty"])
def test_masked_unit_is_not_overwritten(installed: Installed, where: str | None) -> None:
    path = unit_directory() / "fluxbudgetd.socket"
    if where == "empty":
        path.parent.mkdir(parents=True)
        path.touch()
    else:
        systemctl("mask", *([where] if where else []), "fluxbudgetd.socket")
    ended = installed.ctl("service", "install", "--force")
    assert (ended.returncode, "is masked" in ended.stderr) == (1, True), ended
    assert not (unit_directory() / "fluxbudgetd.service").exists()
    assert "it stays as it is" in installed.ctl("service", "uninstall").stderr
    hint = ended.stderr.splitlines()[-1].removeprefix("hint: ")
    assert hint == f"systemctl --user unmask {'--runtime ' if where == '--runtime' else ''}fluxbudgetd.socket"
    subprocess.run(hint.split(), check=True)
    path.unlink(missing_ok=True)
    installed.ok("service", "install")
    if where == "--runtime":  # which a unit in the user's directory would override
        systemctl("mask", where, "fluxbudgetd.socket")
        assert systemctl("show", "--property=LoadState", "--value", "fluxbudgetd.socket") == "loaded"
        assert "masked" not in installed.ctl("service", "status").stdout
        installed.ok("service", "install", "--now")


def test_install_while_a_daemon_started_by_hand_is_running(installed: Installed) -> None:
    with subprocess.Popen([installed.daemon], stderr=subprocess.DEVNULL) as by_hand:
        try:
            wait_for(lambda: installed.ctl("ping").returncode == 0, "the daemon to answer")
            # (The script executes the daemon in its place.)
            ended = installed.ctl("service", "install", "--now")
            words = f"(pid {by_hand.pid}) runs outside systemd: stop it first (kill {by_hand.pid})"
            assert (ended.returncode, words in ended.stderr) == (1, True), ended
            assert not listing()
            assert f"(pid {by_hand.pid}) runs outside systemd" in installed.ok("service", "install")
            assert systemctl("is-active", "fluxbudgetd.socket") == "inactive"
            status = installed.ctl("service", "status")
            assert (status.returncode, "outside systemd" in status.stdout) == (1, True), status
            problem = f"fluxbudgetd (pid {by_hand.pid}) runs outside systemd"
            assert problem in installed.ctl("doctor").stdout
            installed.ok("service", "uninstall")
            assert pid_of(installed) == by_hand.pid
        finally:
            by_hand.send_signal(signal.SIGTERM)
    assert installed.ctl("service", "install", "--now").returncode == 0


def test_service_that_does_not_restart_is_reported(installed: Installed) -> None:
    installed.ok("service", "install", "--now")
    pid_of(installed)
    config = Path.home() / ".config" / "fluxbudget" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("x = [")
    ended = installed.ctl("service", "install")
    assert ended.returncode == 1
    assert "exit code 78, the configuration is wrong" in ended.stderr
    assert "journalctl --user-unit=fluxbudgetd" in ended.stderr
    assert "last failure: exit code 78" in installed.ok("service", "status")
    config.unlink()
    assert pid_of(installed) > 0
    assert "last failure" not in installed.ok("service", "status")


def test_uninstalling_leaves_only_the_state(installed: Installed) -> None:
    """Directories that other programs may share stay, even if they are empty."""
    made = {".claude", ".claude/interstat", ".interband", ".config", ".config/systemd", ".config/systemd/user"}

    def around() -> set[Path]:
        kept = {installed.root.parent, Path.home() / ".local"}
        found = {path for path in Path.home().rglob("*") if not kept.intersection([path, *path.parents])}
        return found - {Path.home() / name for name in made} | set(runtime.glob("fluxbudget*"))

    runtime = Path(os.environ["XDG_RUNTIME_DIR"])
    before = around()
    installed.ok("service", "install", "--now")
    run = installed.ok("run", "start", "--timeout", "30")
    assert around() > before
    assert "stay" in installed.ok("service", "uninstall")
    assert {path for path in around() if ".interband" not in str(path)} == before
    assert systemctl("list-unit-files", "--no-legend", *UNITS) == ""
    assert installed.ok("service", "uninstall") == "nothing is installed"
    installed.ok("service", "install", "--now")
    assert run in installed.ok("run", "list", "--timeout", "30")


def test_users_own_drop_ins_stay_and_are_named(installed: Installed) -> None:
    """Nothing else is left, even of a failed service."""
    installed.ok("service", "install")
    own = unit_directory() / "fluxbudgetd.service.d" / "override.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nExecStartPre=/bin/false\nExecStopPost=\nRestart=no\n")
    systemctl("daemon-reload")
    systemctl("start", "fluxbudgetd.service")
    assert systemctl("is-failed", "fluxbudgetd.service") == "failed"
    assert str(own.parent) in installed.ok("service", "uninstall")
    assert own.exists()
    assert systemctl("list-units", "--all", "--no-legend", *UNITS) == ""


def test_carried_over_variables_are_kept_and_named(installed: Installed) -> None:
    """A shell without a variable keeps the old value; a shell with another value replaces it."""
    ended = installed.ctl("service", "install", INTERSTAT_DB="metrics.db", XDG_STATE_HOME="/x/state")
    assert f"INTERSTAT_DB={Path.cwd()}/metrics.db" in ended.stderr
    before = (unit_directory() / "fluxbudgetd.service").read_text()
    shown = installed.ctl("service", "install", "--print")
    assert before in shown.stdout
    ended = installed.ctl("service", "install")
    kept = f"kept from the installed unit: INTERSTAT_DB={Path.cwd()}/metrics.db, XDG_STATE_HOME=/x/state\n"
    assert ended.stderr == shown.stderr == kept
    assert (unit_directory() / "fluxbudgetd.service").read_text() == before
    ended = installed.ctl("service", "install", XDG_STATE_HOME="/y/state")
    assert "the ledger is in /y/state/fluxbudget from now on; the one in /x/state/fluxbudget stays" in ended.stderr
    installed.ok("service", "uninstall")
    assert installed.ctl("service", "install").stderr == ""


def test_units_are_written_where_the_manager_reads_them(installed: Installed) -> None:
    """Only the configuration is read from where the shell's variable says."""
    elsewhere = Path.home() / "elsewhere"
    installed.ok("service", "install", "--now", XDG_CONFIG_HOME=str(elsewhere))
    assert not elsewhere.exists()
    assert systemctl("is-active", "fluxbudgetd.socket") == "active"
    assert f"\nEnvironment=XDG_CONFIG_HOME={elsewhere}\n" in (unit_directory() / "fluxbudgetd.service").read_text()
    # This is the environment after `su`, which keeps no variables.
    without = {"XDG_RUNTIME_DIR": "", "DBUS_SESSION_BUS_ADDRESS": ""}
    assert "listening at" in installed.ok("service", "status", **without)

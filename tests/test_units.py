"""The unit files as systemd reads them: valid, tightly sandboxed, and with a reason for every opening."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"
SERVICE = UNITS / "fluxbudgetd.service"
SOCKET = UNITS / "fluxbudgetd.socket"
#: What `systemd-analyze security` still reports, and the directive whose comment says why.
OPEN = {
    "PrivateNetwork=": "RestrictAddressFamilies=",
    "ProtectHome=": "ProtectHome=",
    "RestrictAddressFamilies=~AF_UNIX": "RestrictAddressFamilies=",
    # Not possible in a user service, which has a single user and the machine's root directory.
    "RootDirectory=/RootImage=": None,
    "User=/DynamicUser=": None,
    # ProtectClock= implies an allowed device, the clock.
    "DeviceAllow=": None,
    "ProtectProc=": "ProcSubset=",
}

analysed = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze (Debian: apt-get install systemd)"
)


def analyse(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--user", *arguments],
        # systemd-analyze needs a runtime directory. This one hides the units of the user who runs the tests.
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_COLORS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@analysed
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """There is no warning, such as one about an unknown key."""
    result = analyse(tmp_path, "--man=no", "verify", SERVICE, SOCKET)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@analysed
@pytest.mark.parametrize("unit", [SERVICE, SOCKET])
def test_unknown_key_would_be_reported(tmp_path: Path, unit: Path) -> None:
    for each in (SERVICE, SOCKET):
        shutil.copy(each, tmp_path)
    (tmp_path / unit.name).write_text(unit.read_text().replace("UMask=", "UMusk="))
    result = analyse(tmp_path, "--man=no", "verify", tmp_path / SERVICE.name, tmp_path / SOCKET.name)
    assert "UMusk" in result.stderr


@analysed
def test_exposure_is_low_and_its_causes_are_known(tmp_path: Path) -> None:
    """The exposure is at most 2.0 out of 10."""
    result = analyse(tmp_path, "--no-pager", "security", "--offline=true", "--threshold=20", SERVICE)
    assert (result.returncode, result.stderr) == (0, "")
    found = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("✗")}
    assert found == set(OPEN)


def commented(text: str) -> dict[str, str]:
    """Return each directive with the comment right above its block of lines, or an empty string."""
    found: dict[str, str] = {}
    comment: list[str] = []
    is_fresh = False
    for line in text.splitlines():
        if line.startswith("#"):
            comment = [*(comment if is_fresh else []), line]
            is_fresh = True
        elif match := re.match(r"(\w+=)", line):
            found.setdefault(match[1], " ".join(comment))
            is_fresh = False
        else:
            comment, is_fresh = [], False
    return found


def test_every_opening_has_a_comment() -> None:
    comments = commented(SERVICE.read_text())
    for finding, directive in OPEN.items():
        if directive is not None:
            assert comments[directive], finding
    assert "PrivateNetwork=" in comments["RestrictAddressFamilies="]


@pytest.mark.parametrize("unit", [SERVICE, SOCKET])
def test_every_limit_and_path_has_a_comment(unit: Path) -> None:
    wanted = {
        SERVICE: "StartLimitIntervalSec RestartPreventExitStatus WatchdogSignal ExecStopPost ReadWritePaths PrivateTmp",
        SOCKET: "RemoveOnStop Backlog ExecStartPre TriggerLimitBurst",
    }
    comments = commented(unit.read_text())
    assert [name for name in wanted[unit].split() if not comments[f"{name}="]] == []


def test_writable_paths_are_created() -> None:
    """The socket's unit creates the directories that the service may write to, but no second Claude directory."""
    (opened,) = re.findall(r"^ReadWritePaths=(.*)$", SERVICE.read_text(), re.MULTILINE)
    (made,) = re.findall(r"^ExecStartPre=-/bin/mkdir -p (.*)$", SOCKET.read_text(), re.MULTILINE)
    assert opened.replace("-%h", "%h").split() == ["%t/fluxbudget", *made.split(), "%h/.config/claude/interstat"]


def test_installer_finds_the_line_that_it_replaces() -> None:
    assert SERVICE.read_text().count("\nExecStart=/usr/bin/env fluxbudgetd\n") == 1

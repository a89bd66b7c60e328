"""The units as systemd itself reads them: without a complaint, tight, and each opening with its reason."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"
SERVICE = UNITS / "fluxbudgetd.service"
SOCKET = UNITS / "fluxbudgetd.socket"
#: What systemd-analyze still holds against the service, and the directive whose comment says why.
OPEN = {
    "PrivateNetwork=": "RestrictAddressFamilies=",
    "ProtectHome=": "ProtectHome=",
    "RestrictAddressFamilies=~AF_UNIX": "RestrictAddressFamilies=",
    # Not for a user's service: it has one user, and the machine's root directory.
    "RootDirectory=/RootImage=": None,
    "User=/DynamicUser=": None,
    # ProtectClock= brings the clock's device along.
    "DeviceAllow=": None,
}

analysed = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze (Debian: apt-get install systemd)"
)


def analyse(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--user", *arguments],
        # It wants a runtime directory; a person's own units are not looked at.
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_COLORS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@analysed
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """Not even a key that it does not know, which it would pass over."""
    result = analyse(tmp_path, "--man=no", "verify", SERVICE, SOCKET)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@analysed
@pytest.mark.parametrize("unit", [SERVICE, SOCKET])
def test_unknown_key_would_be_found(tmp_path: Path, unit: Path) -> None:
    for each in (SERVICE, SOCKET):
        shutil.copy(each, tmp_path)
    (tmp_path / unit.name).write_text(unit.read_text().replace("UMask=", "UMusk="))
    result = analyse(tmp_path, "--man=no", "verify", tmp_path / SERVICE.name, tmp_path / SOCKET.name)
    assert "UMusk" in result.stderr


@analysed
def test_service_is_tight(tmp_path: Path) -> None:
    """Its exposure is 2.0 at most (of 10), and what is open is known."""
    result = analyse(tmp_path, "--no-pager", "security", "--offline=true", "--threshold=20", SERVICE)
    assert (result.returncode, result.stderr) == (0, "")
    found = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("✗")}
    assert found == set(OPEN)


def commented(text: str) -> dict[str, str]:
    """Return each directive, and the comment right above the lines that it stands among, or nothing."""
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


def test_what_is_open_has_its_reason() -> None:
    comments = commented(SERVICE.read_text())
    for finding, directive in OPEN.items():
        if directive is not None:
            assert comments[directive], finding
    assert "PrivateNetwork=" in comments["RestrictAddressFamilies="]


@pytest.mark.parametrize("unit", [SERVICE, SOCKET])
def test_limits_and_places_have_their_reason(unit: Path) -> None:
    wanted = {
        SERVICE: "StartLimitIntervalSec RestartPreventExitStatus WatchdogSignal ExecStopPost ReadWritePaths PrivateTmp",
        SOCKET: "RemoveOnStop Backlog ExecStartPre TriggerLimitBurst",
    }
    comments = commented(unit.read_text())
    assert [name for name in wanted[unit].split() if not comments[f"{name}="]] == []


def test_places_that_are_written_to_are_made() -> None:
    """What the sandbox opens is what the socket's unit makes, besides its own directory."""
    (opened,) = re.findall(r"^ReadWritePaths=(.*)$", SERVICE.read_text(), re.MULTILINE)
    (made,) = re.findall(r"^ExecStartPre=-/bin/mkdir -p (.*)$", SOCKET.read_text(), re.MULTILINE)
    assert opened.replace("-%h", "%h").split() == ["%t/fluxbudget", *made.split()]


def test_installer_finds_the_line_that_it_replaces() -> None:
    assert SERVICE.read_text().count("\nExecStart=/usr/bin/env fluxbudgetd\n") == 1

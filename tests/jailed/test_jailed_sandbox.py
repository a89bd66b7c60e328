"""What the service's sandbox forbids, tried from inside by the command channel's program."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.daemon import started, wait_for
from harness.interstat import Interstat
from harness.jail_service import Account, account
from jailed.attempts import ATTEMPTS

PROGRAM = Path(__file__).parent / "attempts.py"
DOCUMENT = Path(__file__).parents[2] / "docs" / "systemd.md"
#: What is forbidden, and the error.
REFUSED = {
    "an internet socket": "EAFNOSUPPORT",
    "another internet socket": "EAFNOSUPPORT",
    "a netlink socket": "EAFNOSUPPORT",
    "io_uring": "EPERM",
    "the home": "EROFS",
    "a project": "EROFS",
    "Claude's settings": "EROFS",
    "transcripts": "EROFS",
    "the configuration": "EROFS",
    "a unit": "EROFS",
    "the runtime directory": "EROFS",
    "/srv": "EROFS",
    "a place that may be opened": "EROFS",
    "the kernel": "EROFS",
    "keys": "EACCES",
    "a cloud's keys": "EACCES",
    "Claude's credentials": "EACCES",
    "a password": "EACCES",
    "more keys": "EACCES",
    "others' temporary file": "ENOENT",
    "a temporary project": "ENOENT",
    "others' shared memory": "ENOENT",
    "a setuid program": "EPERM",
    "a namespace": "EPERM",
    "code made at run time": "EPERM",
    "priority": "EPERM",
    "a trace": "EPERM",
}


def prepare(home: Account) -> None:
    """Prepare the files for the attempts."""
    private = (".ssh", ".gnupg", ".aws")
    for name in (*private, ".claude/projects", ".local/state/fluxbudget", ".interband", ".claude/interstat"):
        (home.root / name).mkdir(parents=True, exist_ok=True)
    for name in (".netrc", ".pgpass", ".claude/.credentials.json"):
        (home.root / name).write_text("secret")
    (home.claude / "settings.json").write_text("{}")
    for place in ("/srv/interband", "/tmp/project"):  # noqa: S108
        Path(place).mkdir(exist_ok=True)
    for place in ("/tmp/of-others", "/dev/shm/of-others", "/tmp/project/file"):  # noqa: S108
        Path(place).write_text("theirs")


def attempt_outcomes(home: Account, *lines: str) -> dict[str, str | None]:
    """Return the outcome of every attempt, made by the command that a warning starts."""
    report = home.root / ".interband" / "report.json"
    prepare(home)
    home.configure(
        "[channels.desktop]\nenabled = false\n[channels.command]\n"
        f"argv = {json.dumps([sys.executable, str(PROGRAM), str(report)])}\n"
    )
    home.install(*lines)
    interstat = Interstat(home.interstat)
    started(home, id="r1", session="s1", token_budget=1000)
    interstat.insert("s1", input_tokens=900, output_tokens=0)
    home.spend("r1")
    wait_for(lambda: report.exists() and report.read_text().endswith("}"), "the report")
    interstat.close()
    found: dict[str, str | None] = json.loads(report.read_text())
    return found


@pytest.fixture(scope="module")
def inside() -> Iterator[dict[str, str | None]]:
    """The outcomes in the sandbox as installed."""
    with account() as home:
        yield attempt_outcomes(home)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_attempt_inside_the_sandbox(inside: dict[str, str | None], attempt: str) -> None:
    assert inside[attempt] == REFUSED.get(attempt)


def test_attempts_succeed_outside_the_sandbox(home: Account) -> None:
    """Otherwise their failure would prove nothing."""
    home.configure("")
    home.install()
    prepare(home)
    report = home.root / "report.json"
    subprocess.run([sys.executable, PROGRAM, report], env=home.environ, check=True)
    found = json.loads(report.read_text())
    assert [name for name, refusal in REFUSED.items() if found[name] == refusal] == []


def test_documented_drop_ins_open_the_sandbox(home: Account) -> None:
    """All of them together allow what each one is for, and nothing else."""
    blocks = re.findall(r"```ini\n\[Service\]\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    found = attempt_outcomes(home, *(line for block in blocks for line in block.splitlines()))
    differing = {name: found[name] for name in ATTEMPTS if found[name] != REFUSED.get(name)}
    assert differing == {
        "an internet socket": "ECONNREFUSED",
        "another internet socket": None,
        "a place that may be opened": None,
        "a temporary project": None,
        "code made at run time": None,
    }


def test_daemon_process_has_no_privileges(service: Account) -> None:
    status = Path(f"/proc/{service.ping().pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in status)
    assert {name: int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapEff", "CapPrm", "CapBnd", "CapAmb"), 0
    )
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    limits = Path(f"/proc/{service.pid}/limits").read_text()
    assert "Max core file size        0                    0" in limits


def test_created_directories_are_private(service: Account) -> None:
    for place in (service.state, service.root / ".interband", service.interstat.parent, service.socket.parent):
        assert place.stat().st_mode & 0o777 == 0o700, place
    assert service.socket.stat().st_mode & 0o777 == 0o600

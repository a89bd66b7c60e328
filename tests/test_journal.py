"""Log entries in the journal's native protocol. (The tests in a real user manager show that journald accepts them.)"""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.systemd.journal import Entry, Journal, is_journal, lines

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def read(datagram: bytes) -> dict[str, str]:
    """Parse the fields as systemd's documentation says."""
    found: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if is_plain:
            datagram = rest
        else:
            (size,) = struct.unpack_from("<Q", rest)
            value, end = rest[8 : 8 + size], rest[8 + size : 9 + size]
            assert end == b"\n"
            datagram = rest[9 + size :]
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


@given(TEXT, st.dictionaries(st.sampled_from(["run", "source", "error", "moved_to"]), TEXT | st.integers() | st.none()))
def test_fields_with_any_content_are_read_back(event: str, fields: dict[str, object]) -> None:
    found = read(Entry({"event": event, "level": "warning", **fields}).datagram())
    assert found.pop("PRIORITY") == "4"
    assert found.pop("SYSLOG_IDENTIFIER") == "fluxbudgetd"
    assert found.pop("MESSAGE") == " ".join([event, *(f"{key}={value}" for key, value in fields.items())])
    assert found == {f"FLUXBUDGET_{key.upper()}": str(value) for key, value in fields.items()}


def test_traceback_follows_the_message() -> None:
    found = read(Entry({"event": "request failed", "level": "error", "exception": "Traceback\n  x"}).datagram())
    assert (found["PRIORITY"], found["MESSAGE"]) == ("3", "request failed\nTraceback\n  x")


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2), ("other", 6)]
)
def test_priority_follows_the_level(level: str, priority: int) -> None:
    assert Entry({"event": "x", "level": level}).priority == priority
    assert Entry({"event": "x\ny", "level": level}).lines() == f"<{priority}>x\n<{priority}>y\n".encode()


def test_invalid_field_names_are_only_in_the_message() -> None:
    found = read(Entry({"event": "x", "level": "info", "a b": 1}).datagram())
    assert found == {"MESSAGE": "x a b=1", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "fluxbudgetd"}


def test_entries_that_the_journal_refuses_go_to_stderr(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    entry = Entry({"event": "ready", "level": "info", "runs": 2})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "journal"))
        journal = Journal(str(tmp_path / "journal"))
        journal.write(entry)
        assert receiving.recv(65536) == entry.datagram()
        # larger than any datagram
        journal.write(Entry({"event": "x" * 10_000_000, "level": "info"}))
        journal.write(entry)
        assert receiving.recv(65536) == entry.datagram()
    journal.write(entry)
    journal.close()
    assert capfdbinary.readouterr().err == b"<6>" + b"x" * 10_000_000 + b"\n<6>ready runs=2\n"


def test_journal_is_recognized_by_journal_stream(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        found = os.fstat(file.fileno())
        ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(file.fileno(), ours)
        assert not is_journal(file.fileno(), {})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})


PROGRAM = """
import os, sys
import fluxbudgetd.lean
from fluxbudgetd.systemd import journal
journal.Journal.__init__.__defaults__ = (sys.argv[1],)
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
from fluxbudgetd import log
close = log.configure()
import structlog
structlog.get_logger().info("ready", runs=3)
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("request failed")
close()
log.write_now("fluxbudgetd: no\\nhint: yes")
"""


def test_logs_go_to_the_journal_without_a_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "journal"))
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "journal"], capture_output=True, text=True, check=True
        )
        first, second = (read(receiving.recv(65536)) for _ in range(2))
    assert first == {
        "MESSAGE": "ready runs=3",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "fluxbudgetd",
        "FLUXBUDGET_RUNS": "3",
    }
    assert second["MESSAGE"].startswith("request failed\nTraceback")
    assert second["MESSAGE"].endswith("ZeroDivisionError: division by zero")
    # A fatal error is written at once, to stderr.
    assert result.stderr == "<3>fluxbudgetd: no\n<3>hint: yes\n"


def test_plain_lines_have_a_priority() -> None:
    assert lines("a\nb") == b"<3>a\n<3>b\n"

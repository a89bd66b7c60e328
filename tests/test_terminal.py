"""What people see: tables on terminals of any width, columns in a pipe."""

import fcntl
import os
import re
import struct
import subprocess
import termios

from harness.daemon import CTL, Daemon, Home
from harness.interstat import Interstat

LONG = "5b1c7d9e-0000-4000-8000-aaaabbbbcccc"


def test_terminal_gets_bars_and_a_pipe_gets_columns(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """On terminals of three widths no line is wider than the terminal; NO_COLOR is respected; a pipe is plain."""
    home.ok("run", "start", "--id", "r1", "--budget", "1000000", "--session", "s1", "--goal", "g\x1b[2Joal " * 20)
    for name in ("r2", "r3", "r4"):
        (home.project / name).mkdir()
    home.ok("run", "start", "--id", "r2", "--budget", "100", "--session", "s2", "--project", "r2")
    home.ok("run", "start", "--id", "r3", "--budget", "none", "--project", "r3")
    interstat.insert("s1", input_tokens=623_000, output_tokens=0)
    interstat.insert("s2", input_tokens=1_234_567, output_tokens=0)
    for width in (60, 80, 132):
        shown = in_terminal(home, ["status"], width)
        assert "\x1b[2J" not in shown
        plain = without_colours(shown)
        assert all(len(line) <= width for line in plain.splitlines()), plain
        assert "62.3" in plain
        assert "1 234 567 / 100" in plain
        assert ("█" in plain) == (width > 60)
        assert "\x1b[" in shown
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", in_terminal(home, ["status"], 80))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", in_terminal(home, ["status"], 80, {"NO_COLOR": "1"}))
    home.ok("run", "start", "--id", LONG, "--budget", "2000000000", "--project", "r4")
    for width in (60, 80, 100, 132):
        plain = without_colours(in_terminal(home, ["status"], width))
        assert all(len(line) <= width for line in plain.splitlines()), plain
        for number in ("62.3", "1 234 567 / 100", "0 / 2 000 000 000", "exceeded", "unlimited"):
            assert number in plain, (width, number, plain)
    home.ok("run", "cancel", "--run", LONG)
    piped = home.ok("status")
    assert piped.isascii()
    assert [line.split()[0] for line in piped.splitlines()] == ["RUN", "r3", "r2", "r1"]
    assert "1234567  100" in piped
    for arguments in (["run", "show", "--run", "r1"], ["run", "list"], ["doctor"]):
        assert "\x1b[2J" not in in_terminal(home, arguments, 80)


def test_columns_of_an_exceeded_run_do_not_touch(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    home.ok("run", "start", "--id", "r1", "--budget", "100000", "--session", "s1")
    interstat.insert("s1", input_tokens=105_000, output_tokens=0)
    for width in (60, 80, 100, 132):
        assert "  105.0  105 000 / 100 000  exceeded" in without_colours(in_terminal(home, ["status"], width))


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def in_terminal(home: Home, arguments: list[str], width: int, environ: dict[str, str] | None = None) -> str:
    """Return what the client writes to a terminal of this width."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen(
        [*CTL, *arguments],
        env={**home.environ, "TERM": "xterm-256color", **(environ or {})},
        cwd=home.project,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    data = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        data += piece
    os.close(master)
    assert process.wait() in (0, 1)
    return data.decode().replace("\r\n", "\n")

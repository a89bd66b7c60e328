"""The project itself: generated documents, the demo, the console scripts, and where the tested code comes from."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import fluxbudgetctl
import fluxbudgetd
from fluxbudgetd.wire import messages
from harness.daemon import Home, wait_for
from harness.terminal import InTerminal

ROOT = Path(__file__).parents[1]
#: Blocks SIGINT until the demo has set its handler.
HOLD_SIGINT = ("env", "--block-signal=INT")


def test_protocol_document_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_protocol.py"], capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs" / "protocol.md").read_text(), "run 'make docs'"


def test_architecture_map_is_up_to_date(tmp_path: Path) -> None:
    committed = ROOT / "docs" / "ARCHITECTURE.md"
    made = tmp_path / "ARCHITECTURE.md"
    shutil.copy(committed, made)
    subprocess.run([sys.executable, ROOT / "docs" / "make_map.py", made], check=True)
    assert made.read_text() == committed.read_text(), "run 'make docs'"


def test_documented_exchange_is_a_valid_request() -> None:
    """The request's hex dump in the document decodes to that request."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    request, answer = (
        bytes.fromhex("".join(line[6:53] for line in block.strip().splitlines())) for block in text.split("```")[1::2]
    )
    assert int.from_bytes(request[:4], "big") == len(request) - 4
    assert messages.decode_request(request[4:]) == messages.Remaining(run="r1")
    found = messages.decode_answer(answer[4:])
    assert isinstance(found, messages.RemainingAnswer)
    assert found.spend.remaining == 41_500


def test_every_request_survives_its_own_encoding() -> None:
    filled: dict[str, object] = {"project_dir": "/p", "attach": "s", "detach": "s", "from_phase": "p", "agents": ()}
    filled |= {"input": b"{}", "words": (b"ping",), "stdin": b"{}", "action": "uninstall"}
    for kind in messages.AnyRequest.__args__:
        given = {name: value for name, value in filled.items() if name in kind.__struct_fields__}
        request = kind(**given)
        assert messages.decode_request(messages.encode(request)) == request
        # Omitted fields take their defaults.
        body = msgspec.msgpack.encode({"op": kind.__struct_config__.tag, **given})
        assert messages.decode_request(body) == request


def test_demo_tells_its_story() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs" / "demo.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result
    assert result.stderr == (
        "fluxbudgetctl: 1 agent is deferred; to launch all agents, use --override REASON,"
        " which adds an estimated 35 000 billing tokens\n"
    )
    line = "budget_exceeded|brainstorm|264000/250000 billing tokens\n  (exit code 1)"
    assert result.stdout.count(line) == 2
    for number in ("250000\n", "211500\n", "66000\n", "136000\n", "export FLUX_BUDGET_REMAINING=1\n"):
        assert number in result.stdout
    assert "Budget: 135K / 136K (99%) | Deferred: 1 agents (35K est.) [sprint-constrained]\n" in result.stdout
    assert "| fd-performance | 2 | 40000 | pending | pending | pending | pending | default |\n" in result.stdout
    for number in ("46500\n", "37460\n", "36300\n", "31500\n"):
        assert number in result.stdout
    assert "| **all** | | 135000 | 89500 (partial) | " in result.stdout
    _, _, second = result.stdout.partition("The second story.")
    for line in ("60000\n", "36000\n", "advanced|brainstorm|brainstorm-reviewed\n", "total 24000\n"):
        assert line in second
    line = "budget_exceeded|brainstorm-reviewed|63500/60000 billing tokens\n  (exit code 1)"
    assert second.count(line) == 2


def processes_with(text: bytes) -> list[str]:
    """Return the command lines of all processes that have this text in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for a socket in the demo's own directory."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.mark.parametrize("moment", [b"", b"fluxbudgetd starts", b"A sprint begins", b"fluxbudgetctl status"])
def test_demo_stops_at_ctrl_c_and_leaves_nothing(home: Home, short: Path, moment: bytes) -> None:
    """Ctrl-C comes at the very start, while `make demo` still blocks the signal, and after each kind of step."""
    environ = {"TMPDIR": str(short)}
    demo = (*HOLD_SIGINT, sys.executable, str(ROOT / "docs" / "demo.py"))
    with InTerminal(home, program=demo, size=(120, 500), environ=environ) as terminal:
        wait_for(lambda: moment in terminal.raw, str(moment))
        terminal.press("\x03")
        # At the very start the signal kills the demo; a shell reports the same code for that.
        assert terminal.process.wait(timeout=60) in (130, -signal.SIGINT)
    assert b"Traceback" not in terminal.raw
    assert b"demo failed" not in terminal.raw
    assert list(short.iterdir()) == []
    assert processes_with(os.fsencode(short)) == []


def test_console_scripts() -> None:
    scripts = Path(sys.executable).parent
    shown = subprocess.run([scripts / "fluxbudgetd", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"fluxbudgetd {fluxbudgetd.__version__}\n"
    shown = subprocess.run([scripts / "fluxbudgetctl", "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: fluxbudgetctl")


def test_tested_code_comes_from_the_intended_place() -> None:
    """It comes from the source tree, or from site-packages when the wheel is tested."""
    for package in (fluxbudgetd, fluxbudgetctl):
        place = Path(str(package.__file__))
        if os.environ.get("FLUXBUDGET_TESTED") == "wheel":
            assert "site-packages" in place.parts
        assert (place.parent / "py.typed").is_file()


def test_no_file_of_the_tests_is_too_long() -> None:
    """A longer one tests more than one thing."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert Path(__file__) in files
    assert not [file.name for file in files if len(file.read_text().splitlines()) > 600]


def test_bad_usage_of_the_daemon() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fluxbudgetd", "--no-such"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (64, "")
    assert result.stderr.splitlines()[-1] == "hint: see 'fluxbudgetd --help'"

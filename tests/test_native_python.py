"""The native client hands calls to the Python client beside it, with everything that it was given itself."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fluxbudgetd import __version__
from fluxbudgetd.wire.framing import MAX_STDIN
from harness import native
from harness.mounts import why_not, with_empty
from harness.native import Native, handed
from harness.peer import Connection, Peer, answer, framed
from harness.privilege import needs_root

pytestmark = native.marks

PATIENT = ("--timeout", "20")
BRIEF = ("--timeout", "0.3")
NOT_MINE = framed(answer(mine=False))


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Native:
    return Native(native.native_client(tmp_path_factory), tmp_path)


def is_left_to_python(program: Path | str, *line: str, prefix: Sequence[str] = (), cwd: Path | None = None) -> bool:
    command = [*prefix, program, *line]
    return subprocess.run(command, env={}, cwd=cwd, stdin=subprocess.DEVNULL, check=False).returncode == 99


# --- variables


def test_python_gets_version_and_kind(client: Native) -> None:
    """`fluxbudgetctl version` shows both."""
    environ = handed(client.run("version", environ={"FLUXBUDGETCTL_NATIVE": "x"})).environ
    assert re.fullmatch(re.escape(__version__) + " (musl|glibc static|dynamic)", environ["FLUXBUDGETCTL_NATIVE"])


def test_python_does_not_get_harmful_variables(client: Native) -> None:
    """Two of them can keep Python from starting or from ending."""
    given = {"PYTHONHOME": "/nowhere", "PYTHONINSPECT": "1", "PYTHONUTF8": "0", "FLUXBUDGETCTL_FAILED": "closed"}
    found = handed(client.run("status", environ=given)).environ
    del found["FLUXBUDGETCTL_NATIVE"]
    assert found == {"PYTHONUTF8": "0"}


# --- stdin


def test_stdin_that_was_not_read_stays(client: Native) -> None:
    """Python gets the same open file, not a copy."""
    with (client.home / "stdin").open("w+b") as file:
        file.write(b"first second")
        file.seek(6)
        assert handed(client.run("hook", *PATIENT, "--timeout", stdin=file.fileno())).stdin == b"second"
        assert file.tell() == 12
        file.seek(6)
        assert handed(client.run("statusline", *PATIENT, stdin=file.fileno())).stdin == b"second"
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 12


@pytest.mark.parametrize("size", [1, 100_000, MAX_STDIN, MAX_STDIN + 1, 2 << 20])
def test_stdin_that_was_read_is_handed_on(client: Native, size: int) -> None:
    """Python gets enough of it to see that an input is too long."""
    data = os.urandom(size)
    with client.answering(NOT_MINE):
        stdin = handed(client.run("hook", *PATIENT, stdin=data)).stdin
    assert (stdin[:MAX_STDIN], len(stdin)) == (data[:MAX_STDIN], min(size, MAX_STDIN + 1))


def test_stdin_that_arrives_later_is_handed_on(client: Native) -> None:
    """Python gets all of it, up to its end."""
    reading, writing = os.pipe()

    def serve(connection: Connection) -> None:
        next(connection.frames())
        connection.send(NOT_MINE)
        assert list(connection.frames()) == []  # the client has its answer
        os.write(writing, b" and the rest")
        os.close(writing)

    os.write(writing, b"the beginning")
    with Peer(client.socket, serve):
        assert handed(client.run("hook", *PATIENT, stdin=reading)).stdin == b"the beginning and the rest"
    os.close(reading)


@pytest.mark.parametrize(("verb", "failed"), [("hook", None), ("statusline", "timeout")])
def test_stdin_is_handed_on_at_the_deadline(client: Native, verb: str, failed: str | None) -> None:
    """Stdin that does not end is handed on as it is then."""
    reading, writing = os.pipe()
    os.write(writing, b"the beginning")

    def serve(connection: Connection) -> None:
        frames = connection.frames()
        next(frames)
        if failed is None:
            connection.send(NOT_MINE)
        assert list(frames) == []

    with Peer(client.socket, serve):
        assert handed(client.run(verb, *BRIEF, stdin=reading))[1:3] == (b"the beginning", failed)
    os.close(reading)
    os.close(writing)


# --- where the Python client is


def test_python_client_is_beside_the_program(client: Native, tmp_path: Path) -> None:
    """The directory is the program's own, not that of a link to it."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "fluxbudgetctl"
    link.symlink_to(client.program)
    assert is_left_to_python(link, "status")


@needs_root("mount a file system", why_not)
def test_python_client_is_found_without_proc(client: Native, tmp_path: Path) -> None:
    """The name that was executed leads to it, even if that is a link or relative."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "fluxbudgetctl"
    link.symlink_to(client.program)
    for name in (client.program, link, "./fluxbudgetctl"):
        assert is_left_to_python(name, "status", prefix=with_empty("/proc"), cwd=tmp_path), name
    client.stand_in.unlink()
    command = [*with_empty("/proc"), str(client.program), "status"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (70, "")
    assert f"{client.program}-python: No such file or directory" in result.stderr


def test_missing_python_client_is_reported(client: Native) -> None:
    client.stand_in.unlink()
    for line in (["status"], ["remaining"], ["env", "--timeout", "x"]):
        result = client.run(*line)
        line_of_error, hint = result.err.decode().splitlines()
        assert (result.code, result.out) == (70, b"")
        assert line_of_error == f"fluxbudgetctl: {client.stand_in}: No such file or directory"
        assert hint.startswith("hint: ")


def test_hook_is_silent_without_the_python_client(client: Native) -> None:
    """A broken installation does not disturb the session."""
    client.stand_in.unlink()
    for line in (["--timeout", "1_0"], [], ["--help"]):
        assert client.run("hook", *line, stdin=b"{}", environ={"FLUXBUDGET_DEBUG": "1"}) == (0, b"", b"", None)

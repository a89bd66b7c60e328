"""The command channel with real programs, and how they may affect the process that starts them."""

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.command import Command
from harness.daemon import wait_for

PATIENCE = 60.0  # longer than any of these programs takes


def run_command(argv: Sequence[str], payload: bytes = b"", seconds: float = PATIENCE) -> None:
    anyio.run(Command().run, argv, payload, seconds)


def failure_of(argv: Sequence[str], payload: bytes = b"", seconds: float = PATIENCE) -> ChannelError:
    with pytest.raises(ChannelError) as raised:
        run_command(argv, payload, seconds)
    assert raised.value.hint
    assert raised.value.message.isprintable()
    return raised.value


def python(code: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]


def shell(code: str, *arguments: str | Path) -> list[str]:
    return ["/bin/sh", "-c", code, "sh", *map(str, arguments)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_in(path: Path) -> int:
    """Return the process id that a program writes into a file."""

    def complete_line() -> str:
        text = path.read_text() if path.exists() else ""
        return text if text.endswith("\n") else ""

    return int(wait_for(complete_line, f"a process id in {path.name}"))


def has_zombie() -> bool:
    """True if this process has a child that has ended and was not waited for."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
def test_payload_arrives_completely_on_a_closed_stdin(tmp_path: Path, size: int) -> None:
    payload = os.urandom(size)
    run_command(shell('cat > "$1"', tmp_path / "got"), payload)
    assert (tmp_path / "got").read_bytes() == payload


def test_arguments_are_not_read_by_a_shell(tmp_path: Path) -> None:
    run_command(shell('printf %s "$2" > "$1"', tmp_path / "got", "$(echo x); `ls` *"))
    assert (tmp_path / "got").read_text() == "$(echo x); `ls` *"


def test_program_is_found_in_path_and_in_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "notify-me"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\npwd >> "$1"\n')
    program.chmod(0o700)
    monkeypatch.setenv("HOME", str(tmp_path))
    run_command(["~/bin/notify-me", str(tmp_path / "got")])
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    run_command(["notify-me", str(tmp_path / "got")])
    assert (tmp_path / "got").read_text().splitlines() == [str(tmp_path)] * 2, "it runs in the home directory"


def test_missing_home_directory_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    run_command(shell('pwd > "$1"', tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "/\n"


def test_environment_lacks_the_service_managers_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OF_THE_USER", "kept")
    run_command(shell('env > "$1"', tmp_path / "got"))
    names = {line.partition("=")[0] for line in (tmp_path / "got").read_text().splitlines()}
    assert "OF_THE_USER" in names
    assert not [name for name in names if name.startswith(("LISTEN", "NOTIFY", "WATCHDOG"))]


def test_program_has_its_own_session_and_inherits_no_descriptors(tmp_path: Path) -> None:
    with socket.socket() as ours:
        os.set_inheritable(ours.fileno(), True)
        code = (
            "import os, sys\n"
            "print(os.getsid(0) == os.getpid(), *os.listdir('/proc/self/fd'), file=open(sys.argv[1], 'w'))"
        )
        run_command(python(code, tmp_path / "got"))
    own_session, *fds = (tmp_path / "got").read_text().split()
    assert own_session == "True"
    assert set(fds) <= {"0", "1", "2", "3", "4"}, "3 and 4 are its own: the file and the directory"


def test_unread_payload_is_not_an_error() -> None:
    run_command(["true"], b"x" * 1_000_000)


def test_program_that_closes_stdin_is_waited_for(tmp_path: Path) -> None:
    code = "import os, sys, time; os.close(0); time.sleep(0.2); open(sys.argv[1], 'w').write('done')"
    run_command(python(code, tmp_path / "got"), b"x" * 1_000_000)
    assert (tmp_path / "got").read_text() == "done"


def test_program_that_never_reads_a_large_payload_is_killed_at_its_timeout() -> None:
    assert "was killed after 0.3 s" in failure_of(["sleep", "1000"], b"x" * 1_000_000, 0.3).message


def test_failure_has_the_exit_code_and_the_first_line_of_stderr() -> None:
    error = failure_of(shell("echo; echo ' no such room ' >&2; echo more >&2; exit 3"))
    assert error.message == "/bin/sh ended with exit code 3: no such room"


def test_first_line_may_come_in_pieces() -> None:
    code = "import os, time; os.write(2, b'one '); time.sleep(0.12); os.write(2, b'line'); raise SystemExit(1)"
    assert failure_of(python(code)).message.endswith("ended with exit code 1: one line")


def test_last_output_before_the_end_is_read() -> None:
    code = "import os, time; os.write(2, b'one '); time.sleep(0.01); os.write(2, b'line'); os._exit(1)"
    assert failure_of(python(code)).message.endswith("ended with exit code 1: one line")


def test_first_line_is_shortened_and_escaped() -> None:
    error = failure_of(shell(r"printf '\033[2J\377\n' >&2; exit 1"))
    assert error.message == r"/bin/sh ended with exit code 1: \x1b[2J\xff"
    error = failure_of(python("import sys; sys.stderr.write('é' * 5000); sys.exit(1)"))
    assert len(error.message.partition(": ")[2]) == 300


def test_signal_is_named() -> None:
    assert failure_of(shell("kill -SEGV $$")).message == "/bin/sh was ended by SIGSEGV"
    assert failure_of(shell(f"kill -{signal.SIGRTMIN + 1} $$")).message.endswith(f"signal {signal.SIGRTMIN + 1}")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: ["no-such-program"], "no-such-program cannot be started: No such file or directory"),
        (lambda _: ["/no/such/program"], "/no/such/program cannot be started: No such file or directory"),
        (lambda d: [str(d / "plain")], "plain cannot be started: Permission denied"),
        (lambda d: [str(d)], "cannot be started: Permission denied"),
        (lambda d: [str(d / "no-first-line")], "no-first-line cannot be started: Exec format error"),
        (lambda _: ["true", "x" * 3_000_000], "true cannot be started: Argument list too long"),
        (lambda _: ["true", "a\0b"], "true cannot be started: embedded null byte"),
        (lambda _: ["true\n", "x"], r"true\n cannot be started: No such file or directory"),
        (lambda _: ["true", "\ud800"], "true cannot be started"),
        (lambda _: [""], "the command is empty"),
        (lambda _: [], "the command is empty"),
    ],
)
def test_program_that_cannot_be_started_is_a_channel_error(tmp_path: Path, make: object, expected: str) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "no-first-line").write_text("echo\n")
    (tmp_path / "no-first-line").chmod(0o700)
    assert callable(make)
    assert expected in failure_of(make(tmp_path)).message


def test_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    code = 'trap "" TERM; (sleep 1000 & echo $! > "$1"; sleep 1000) & sleep 1000'
    error = failure_of(shell(code, tmp_path / "child"), b"", 1.5)
    assert error.message == "/bin/sh was killed after 1.5 s"
    child = pid_in(tmp_path / "child")
    wait_for(lambda: not is_alive(child), "the child to be gone")


def test_program_may_clean_up_on_sigterm(tmp_path: Path) -> None:
    code = 'trap "echo bye > \\"$1\\"; exit 0" TERM; echo $$ > "$2"; while :; do sleep 0.01; done'
    assert "was killed" in failure_of(shell(code, tmp_path / "got", tmp_path / "pid"), b"", 1.0).message
    assert (tmp_path / "got").read_text() == "bye\n"


def test_child_that_holds_standard_error_open_is_not_waited_for(tmp_path: Path) -> None:
    run_command(shell('sleep 1000 & echo $! > "$1"', tmp_path / "child"))
    child = pid_in(tmp_path / "child")
    assert is_alive(child), "a process that the program has left on purpose is left alone"
    os.kill(child, signal.SIGKILL)


def test_flood_of_output_is_harmless(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "os.write(2, b'first\\n')\n"
        "for _ in range(8): os.write(2, b'x' * 65536)\n"
        "open(sys.argv[1], 'w').write('written'); sys.exit(7)"
    )
    assert failure_of(python(code, tmp_path / "got")).message.endswith("exit code 7: first")
    assert (tmp_path / "got").read_text() == "written"


def test_endless_flood_is_read_at_a_bounded_rate(tmp_path: Path) -> None:
    # The program counts the bytes that it could write: the pipe's size, and two reads every 0.1 s.
    code = (
        "import os, signal, sys\n"
        "n = 0\n"
        "def end(*_):\n"
        "    open(sys.argv[1], 'w').write(str(n)); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "while True: n += os.write(2, b'x' * 4096)"
    )
    assert "was killed" in failure_of(python(code, tmp_path / "got"), b"", 1.0).message
    assert int((tmp_path / "got").read_text()) <= (64 << 10) * 40


def test_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            code = 'trap "" TERM; sleep 1000 & echo $! > "$1"; echo $$ > "$2"; wait; sleep 1000'
            argv = shell(code, tmp_path / "child", tmp_path / "parent")
            tasks.start_soon(Command().run, argv, b"x" * 1_000_000, PATIENCE)
            found.append(await anyio.to_thread.run_sync(pid_in, tmp_path / "parent"))
            tasks.cancel_scope.cancel()
        assert not is_alive(found[0]), "the call is over when its program is"

    found: list[int] = []
    anyio.run(body)
    child = pid_in(tmp_path / "child")
    wait_for(lambda: not is_alive(child), "the child to be gone")
    assert not has_zombie()


def test_call_cancelled_before_it_begins_starts_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        command = Command()
        for _ in range(50):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await command.run(shell('touch "$1"', tmp_path / "got"), b"", PATIENCE)
        await command.run(["true"], b"", PATIENCE)

    anyio.run(body)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("steps", range(8))
def test_call_cancelled_at_any_step_of_its_start_blocks_no_later_one(steps: int) -> None:
    async def body() -> None:
        command = Command()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(command.run, ["true"], b"", 0.1)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await command.run(["true"], b"", PATIENCE)

    anyio.run(body)


def test_many_programs_leave_nothing_open() -> None:
    async def body() -> None:
        command = Command()
        kinds = (["true"], ["false"], ["no-such-program"], shell("echo x >&2; exit 2"), shell("kill -9 $$"))
        before: tuple[int, int] | None = None
        for turn in range(10):
            for argv in kinds:
                try:
                    await command.run(argv, b"x" * 100_000, PATIENCE)
                except ChannelError:
                    assert argv != ["true"]
            if turn == 0:
                before = (len(os.listdir("/proc/self/fd")), threading.active_count())
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before

    anyio.run(body)
    assert not has_zombie()


def test_one_program_at_a_time(tmp_path: Path) -> None:
    async def body() -> None:
        command = Command()
        code = 'mkdir "$1" && sleep 0.02 && rmdir "$1"'  # this program fails if another one is running
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(command.run, shell(code, tmp_path / "only"), b"", PATIENCE)

    anyio.run(body)


def test_system_without_threads_is_a_channel_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # The limit on processes does not apply to root, who may run the tests, so the refusal is simulated.
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def body() -> None:
        command = Command()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ChannelError, match=re.escape("can't start new thread")):
                await command.run(["true"], b"", PATIENCE)
        await command.run(["true"], b"", PATIENCE)

    anyio.run(body)


def test_program_that_cannot_be_killed_blocks_no_later_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An unkillable program needs another user or a broken file system, so the signals are suppressed.
    async def body() -> None:
        command = Command()
        with monkeypatch.context() as patch:
            patch.setattr(os, "killpg", lambda *_: None)
            with pytest.raises(ChannelError, match="took longer than"):
                await command.run(shell('echo $$ > "$1"; exec sleep 1000', tmp_path / "pid"), b"", 0.2)
        with pytest.raises(ChannelError, match="still hangs"):
            await command.run(["true"], b"", PATIENCE)
        os.kill(await anyio.to_thread.run_sync(pid_in, tmp_path / "pid"), signal.SIGKILL)
        while True:
            try:
                await command.run(["true"], b"", PATIENCE)
            except ChannelError:
                await anyio.sleep(0.01)
            else:
                return

    anyio.run(body)

"""The native client: it behaves like the Python client, and how it is compiled."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetctl import hot
from fluxbudgetd import __version__
from fluxbudgetd.wire.codes import ERROR_CODES
from fluxbudgetd.wire.framing import MAX_FRAME, encode_frame
from harness import native
from harness.both_clients import Answerer, ClientPair
from harness.daemon import CTL, Daemon, Home, killed, started
from harness.mounts import why_not, with_empty
from harness.odd_answers import (
    ANSWERS,
    CHECK,
    DEFAULTS,
    EDGES,
    FLOATS,
    HOOK,
    NUMBERS,
    PING,
    REMAINING,
    SPECIAL,
    SPEND,
    STATUSLINE,
    WIDTHS,
    Dice,
    framed,
)
from harness.privilege import needs_root

pytestmark = [
    pytest.mark.skipif(not native.SOURCES.is_dir(), reason="the sources of the native client are not here"),
    pytest.mark.native,
]

PATIENT = ("--timeout", "20")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.native_client(tmp_path_factory)


@pytest.fixture(scope="module")
def both(program: Path, tmp_path_factory: pytest.TempPathFactory) -> ClientPair:
    return ClientPair(tmp_path_factory.mktemp("both"), tuple(CTL), (str(program),))


@pytest.fixture(scope="module")
def answerer(both: ClientPair) -> Iterator[Answerer]:
    with Answerer(both.home.socket) as made:
        yield made


@pytest.fixture
def alone(program: Path, tmp_path: Path) -> ClientPair:
    """Without a socket."""
    return ClientPair(tmp_path, tuple(CTL), (str(program),))


# --- answers


@pytest.mark.parametrize(
    ("arguments", "good", "inside"),
    [
        (("remaining", "--json"), REMAINING, ""),
        (("remaining", "--json"), REMAINING, "spend"),
        (("remaining",), REMAINING, "spend"),
        (("env",), REMAINING, "spend"),
        (("check", "--json"), CHECK, ""),
        (("check",), CHECK, ""),
        (("ping",), PING, ""),
        (("hook",), HOOK, ""),
        (("statusline",), STATUSLINE, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value if isinstance(value, str) else "",
)
def test_every_field_with_every_type_of_value(
    both: ClientPair, answerer: Answerer, arguments: Sequence[str], good: dict[str, Any], inside: str
) -> None:
    """And without it."""
    fields = good[inside] if inside else good
    odd = (None, True, 0, "é\x1b")
    changed = ({**fields, name: value} for name in fields for value in odd)
    without = ({other: fields[other] for other in fields if other != name} for name in fields)
    codes = set()
    for answer in chain(changed, without):
        answerer.pieces = [framed({**good, inside: answer} if inside else answer)]
        codes.add(both.require_alike(*arguments, *PATIENT, given=b"{}", answerer=answerer).code)
    assert codes >= ({0} if arguments[0] == "hook" else {70})


def test_integers_of_every_width(both: ClientPair, answerer: Answerer) -> None:
    for number in EDGES:
        answerer.pieces = [framed({**REMAINING, "spend": {**SPEND, "remaining": number}})]
        assert both.require_alike("remaining", *PATIENT, answerer=answerer).stdout.decode() == f"{number}\n"
    # Encoded with more bytes than necessary.
    none = msgspec.msgpack.encode({**REMAINING, "spend": {**SPEND, "remaining": None}})
    for wide in (b"\xcc\x05", b"\xce\0\0\0\x05", b"\xcf" + b"\0" * 7 + b"\x05", b"\xd0\x05", b"\xd2\xff\xff\xff\xff"):
        answerer.pieces = [encode_frame(none.replace(b"remaining\xc0", b"remaining" + wide))]
        outcome = both.require_alike("env", *PATIENT, answerer=answerer)
        assert outcome.stdout == b"export FLUX_BUDGET_REMAINING=%d\n" % (-1 if wide[0] == 0xD2 else 5)


def test_env_prints_one_when_exhausted(both: ClientPair, answerer: Answerer) -> None:
    answerer.pieces = [framed({**REMAINING, "spend": {**SPEND, "remaining": 0}})]
    outcome = both.require_alike("env", *PATIENT, answerer=answerer)
    assert outcome.stdout == b"export FLUX_BUDGET_REMAINING=1\n"


def test_floats_as_python_writes_them(both: ClientPair, answerer: Answerer) -> None:
    """With the shortest text that reads back, which is hardest to find at powers of two."""
    for number in [*FLOATS, *(2.0**power for power in range(-1074, 1024, 131))]:
        answerer.pieces = [framed({**REMAINING, "spend": {**SPEND, "pct": number}})]
        outcome = both.require_alike("remaining", "--json", *PATIENT, answerer=answerer)
        written = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(number), repr(number))
        assert f'"pct": {written},' in outcome.stdout.decode()


def test_text_on_stderr_and_in_json(both: ClientPair, answerer: Answerer) -> None:
    """Control characters are escaped; JSON is ASCII."""
    spend = {**SPEND, "stale": True, "stale_why": SPECIAL, "state": SPECIAL[::-1]}
    answerer.pieces = [framed({**CHECK, "note": SPECIAL, "overridden": SPECIAL, "refusal": SPECIAL, "spend": spend})]
    outcome = both.require_alike("check", "--json", *PATIENT, answerer=answerer)
    assert outcome.stdout.isascii()
    assert len(outcome.stderr.decode().splitlines()) == 3
    assert all(line.isprintable() for line in outcome.stderr.decode().splitlines())
    assert both.require_alike("check", *PATIENT, answerer=answerer).stdout.decode() == SPECIAL + "\n"
    error = {"code": "no_run", "message": SPECIAL, "hint": SPECIAL}
    answerer.pieces = [framed({"ok": False, "error": error})]
    both.require_alike("remaining", "--json", *PATIENT, answerer=answerer)
    launch = b'{"hook_event_name": "PreToolUse", "tool_name": "Task"}'
    closed = {"FLUXBUDGET_FAIL_CLOSED": "1", "FLUXBUDGET_DEBUG": "1"}
    outcome = both.require_alike("hook", *PATIENT, environ=closed, given=launch, answerer=answerer)
    assert outcome.stdout.isascii()
    assert b"deny" in outcome.stdout


GOOD = msgspec.msgpack.encode(REMAINING)
NOT_UTF_8 = (
    b"\x80",
    b"\xc1\x80",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xf0\x80\x80\xaf",
    b"\xf4\x90\x80\x80",
)
BODIES = [
    *(b"\x81\xa1x" + bytes((kind,)) for kind in (0xC1, 0xC4, 0xC7, 0xCA, 0xD4, 0xD8)),  # types of other protocols
    *(GOOD[:place] for place in (1, 2, 5, len(GOOD) // 2, len(GOOD) - 1)),
    *(b"\x82\xa2ok\xc3\xa1x" + bytes((kind,)) + b"\xff" for kind in (0xCB, 0xCD, 0xD3, 0xDA, 0xDB, 0xDD, 0xDE, 0xDF)),
    *(b"\x82\xa2ok\xc3\xa1x" + bytes((0xA0 | len(text),)) + text for text in (*NOT_UTF_8, b"\xf8\x88", b"a\xff")),
    GOOD + b"\xc0",
    b"\x90",
    b"\xa2ok",
    b"\x82\xa2ok\xc3\x01\xc0",  # a key that is a number, one that is a list, one that is broken itself
    b"\x82\xa2ok\xc3\x91\xa1x\xc0",
    b"\x82\xa2ok\xc3\x91\xc1\xc0",
    b"\x80",
    b"\x81\xa2ok\x01",
    GOOD.replace(b"\xa2ok\xc3", b"\xa2ok\xff"),
    b"\x82\xa2ok\xc3" + GOOD[GOOD.index(b"\xa2op") :],
    # The last field of a name counts.
    *(bytes((GOOD[0] + 1,)) + GOOD[1:] + b"\xa5spend" + spend for spend in (b"\xc0", msgspec.msgpack.encode(SPEND))),
    bytes((GOOD[0] + 1,)) + b"\xa5spend\xc0" + GOOD[1:],
    bytes((GOOD[0] + 1,)) + GOOD[1:] + b"\xa2ok\xc2",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:12].hex())
def test_odd_and_invalid_bodies(both: ClientPair, answerer: Answerer, body: bytes) -> None:
    answerer.pieces = [encode_frame(body)]
    both.require_alike("env", *PATIENT, answerer=answerer)


@pytest.mark.parametrize("length", [0, len(GOOD) - 1, len(GOOD) + 1, MAX_FRAME, MAX_FRAME + 1, 2**32 - 1])
def test_frames_of_the_wrong_length(both: ClientPair, answerer: Answerer, length: int) -> None:
    answerer.pieces = [length.to_bytes(4, "big") + GOOD]
    outcome = both.require_alike("env", *PATIENT, answerer=answerer)
    assert outcome.code == (70 if length < len(GOOD) or length > MAX_FRAME else 69)


@pytest.mark.parametrize("depth", [31, 32])
def test_nesting(both: ClientPair, answerer: Answerer, depth: int) -> None:
    """The answer's map is the first level of 32."""
    nested: Any = None
    for _ in range(depth):
        nested = [nested]
    answerer.pieces = [framed({**REMAINING, "more": nested})]
    outcome = both.require_alike("env", *PATIENT, answerer=answerer)
    assert outcome.code == (0 if depth < 32 else 70)


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_error_code_has_its_exit_code(both: ClientPair, answerer: Answerer, code: str) -> None:
    answerer.pieces = [framed({"ok": False, "error": {"code": code, "message": "m"}})]
    assert both.require_alike("check", *PATIENT, answerer=answerer).code == ERROR_CODES[code][0]


def test_largest_answers(both: ClientPair, answerer: Answerer) -> None:
    """A whole frame of text, and one of ten thousand values."""
    for filling, verb, name in (
        ("\x1b", "check", "note"),
        ("é", "statusline", "line"),
        ("x", "hook", "output"),
        ('"', "remaining", "run"),
    ):
        answer = {**ANSWERS[verb], name: ""}
        room = MAX_FRAME - len(msgspec.msgpack.encode(answer)) - 4
        answer[name] = filling * (room // len(filling.encode()))
        answerer.pieces = [framed(answer)]
        json = ["--json"] if verb in ("check", "remaining") else []
        outcome = both.require_alike(verb, *json, *PATIENT, given=b"{}", answerer=answerer)
        assert len(outcome.stdout + outcome.stderr) > 900_000
    answerer.pieces = [framed({**REMAINING, "more": list(range(10_000))})]
    assert both.require_alike("env", *PATIENT, answerer=answerer).code == 0


# --- requests


def test_request_that_is_too_large(both: ClientPair, answerer: Answerer) -> None:
    """Bytes that are not UTF-8 need three bytes each; both clients report the same size."""
    names = ("FLUXBUDGET_RUN", "CLAVAIN_BEAD_ID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_SESSION_ID")
    environ: dict[str, str | bytes] = dict.fromkeys(names, b"\xff" * 100_000)
    outcome = both.require_alike("check", *PATIENT, environ=environ, answerer=answerer)
    assert (outcome.code, outcome.asked) == (65, [])
    del environ["CLAUDE_SESSION_ID"]
    answerer.pieces = [framed(CHECK)]
    outcome = both.require_alike("check", *PATIENT, environ=environ, answerer=answerer)
    assert (outcome.code, len(outcome.asked)) == (1, 1)


@pytest.mark.parametrize("size", [1, 255, 65_535, 65_536, 256 * 1024, 256 * 1024 + 1, 700_000])
def test_input_of_every_size(both: ClientPair, answerer: Answerer, size: int) -> None:
    answerer.pieces = [framed(HOOK)]
    outcome = both.require_alike("hook", *PATIENT, given=b"x" * size, answerer=answerer)
    asked = dict(outcome.asked[0])
    assert (asked["input"], asked["whole"]) == (b"x" * min(size, 256 * 1024), size <= 256 * 1024)


def test_names_of_other_encodings(both: ClientPair, answerer: Answerer) -> None:
    """Bytes that are not UTF-8, and the characters that stand for such bytes."""
    answerer.pieces = [framed(REMAINING)]
    special = SPECIAL.replace("\0", "").encode() + b"\xff\xe2\x82\xed\xa0\x80\xf4\x90\x80\x80"
    environ: dict[str, str | bytes] = {"FLUXBUDGET_RUN": special, "CLAUDE_SESSION_ID": special * 100}
    outcome = both.require_alike("remaining", b"--session=" + special, *PATIENT, environ=environ, answerer=answerer)
    assert outcome.code == 0


# --- the command line: native, or left to Python


def is_left_to_python(program: Path, line: Sequence[str | bytes], environ: dict[str, str]) -> bool:
    """True if the program executes the one beside it, which is a script here."""
    result = subprocess.run(
        [program, *line], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    return result.returncode == 99


@pytest.fixture
def marked(program: Path, tmp_path: Path) -> Path:
    """Return the native client with a script in the Python client's place."""
    copy = tmp_path / "fluxbudgetctl"
    shutil.copy(program, copy)
    beside = tmp_path / "fluxbudgetctl-python"
    beside.write_text("#!/bin/sh\nexit 99\n")
    beside.chmod(0o700)
    return copy


def test_only_plain_command_lines_are_handled_natively(marked: Path, tmp_path: Path) -> None:
    """It handles every plain command line, and none that Python's quick parser rejects."""
    environ = {"FLUXBUDGET_SOCKET": str(tmp_path / "no-such")}
    lines: list[list[str | bytes]] = []
    for number in range(250):
        die = Dice(number)
        lines += [die.line(die.of(*ANSWERS), odd=True), die.line(die.of(*ANSWERS))]
    lines += [["remaining", "--timeout", number] for number in NUMBERS]
    lines += [["remaining", *PATIENT, "--default", number] for number in DEFAULTS]
    lines += [["statusline", *PATIENT, "--width", number] for number in WIDTHS]
    lines += [
        [],
        [""],
        ["Remaining"],
        ["remaining", "--run"],
        ["remaining", "--run", "-x"],
        ["run", "list"],
        ["--json"],
    ]
    lines += [["remaining", "--json", "--json"], ["statusline", "--no-colour", "--no-color"], ["ping", "--run", "x"]]
    # Numbers that the two languages read alike; all others are left to Python.
    read_alike = {"20", "20.", "0020.50", "3600", "5", "007", "0", "9" * 18}
    pythons = {*NUMBERS, *DEFAULTS} - read_alike
    plain = 0
    for line in lines:
        parsed = hot.parse([os.fsdecode(word) for word in line])
        expected = parsed is None or bool(pythons.intersection(line))
        assert is_left_to_python(marked, line, environ) == expected, line
        plain += not expected
    assert plain > 250


@pytest.mark.parametrize("line", [["remaining", "--help"], ["status"], ["version"], ["hook", "--print-settings"], []])
def test_other_verbs_are_left_to_python(both: ClientPair, answerer: Answerer, line: list[str]) -> None:
    answerer.pieces = [framed(PING)]
    environ: dict[str, str | bytes] = {"COLUMNS": "80"}
    python, found = (both.call(name, line, environ, b"", None) for name in both.clients)
    assert (found.code, found.stdout.count(b"\n")) == (python.code, python.stdout.count(b"\n"))


def test_python_client_gets_the_native_version(marked: Path, tmp_path: Path) -> None:
    """And the same arguments and stdin."""
    (tmp_path / "fluxbudgetctl-python").write_text('#!/bin/sh\necho "$FLUXBUDGETCTL_NATIVE $# $3"; cat\n')
    line = ["hook", "--timeout", "1_0", "--run", "a b", "--json"]
    result = subprocess.run([marked, *line], input=b"given", env={}, capture_output=True, check=True)
    assert result.stdout == f"{__version__} 6 1_0\ngiven".encode()


def test_missing_python_client_is_reported(marked: Path) -> None:
    (marked.parent / "fluxbudgetctl-python").unlink()
    result = subprocess.run([marked, "status"], env={}, capture_output=True, text=True, check=False)
    line, hint = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (70, "")
    assert line == f"fluxbudgetctl: {marked.parent}/fluxbudgetctl-python: No such file or directory"
    assert hint.startswith("hint: ")


def test_python_client_is_beside_the_program(marked: Path, tmp_path: Path) -> None:
    """Not beside a link to it."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "fluxbudgetctl"
    link.symlink_to(marked)
    assert is_left_to_python(link, ["status"], {})


@needs_root("mount a file system", why_not)
def test_python_client_is_found_without_proc(marked: Path, tmp_path: Path) -> None:
    """By the name that was executed, which may be a link or relative."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "fluxbudgetctl"
    link.symlink_to(marked)
    for name in (str(marked), str(link), "./fluxbudgetctl"):
        command = [*with_empty("/proc"), name, "status"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 99, name
    (tmp_path / "fluxbudgetctl-python").unlink()
    result = subprocess.run([*with_empty("/proc"), marked, "status"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (70, "")
    assert f"{marked}-python: No such file or directory" in result.stderr


def test_hook_is_silent_without_the_python_client(marked: Path) -> None:
    """A broken installation does not disturb the session."""
    (marked.parent / "fluxbudgetctl-python").unlink()
    result = subprocess.run([marked, "hook", "--timeout", "1_0"], input=b"{}", env={}, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_python_client_does_not_get_harmful_variables(marked: Path, tmp_path: Path) -> None:
    (tmp_path / "fluxbudgetctl-python").write_text('#!/bin/sh\necho "${PYTHONHOME-}${PYTHONINSPECT-}${PYTHONUTF8-}"\n')
    environ = {"PYTHONHOME": "/nowhere", "PYTHONINSPECT": "1", "PYTHONUTF8": "0"}
    result = subprocess.run([marked, "status"], env=environ, capture_output=True, check=True)
    assert result.stdout == b"0\n"


# --- the environment

SOCKETS: list[str | bytes] = [
    *("/no/such", "relative/place", "/no/../such", "/no/./such", "/no//such", "/no/such/", "/no/such/.", "/no/such/.."),
    *("//two/slashes", "/", ".", "/...", "/dev/null", "/dev/null/below", b"/\xff\xc3\xa9\x1b\xee\xbe\x80"),
    *("/" + "x" * size for size in (106, 107, 120_000)),
]
RUNTIMES = ["/no/runtime", "/no/runtime//", "/", "relative", ""]
HOMES = ["/no/home", "/no/home/", "/", "relative", ""]
PLACES: list[dict[str, str | bytes]] = [{"FLUXBUDGET_SOCKET": path} for path in SOCKETS]
PLACES += [{"FLUXBUDGET_SOCKET": "", "XDG_RUNTIME_DIR": path} for path in RUNTIMES]
PLACES += [{"FLUXBUDGET_SOCKET": "", "XDG_RUNTIME_DIR": "", "HOME": path} for path in HOMES]


@pytest.mark.parametrize("environ", PLACES, ids=lambda environ: str(environ)[:60])
def test_where_the_socket_is(alone: ClientPair, environ: dict[str, str | bytes]) -> None:
    assert alone.require_alike("remaining", *PATIENT, environ=environ).code == 69


def test_without_a_working_directory(both: ClientPair, answerer: Answerer, tmp_path: Path) -> None:
    answerer.pieces = [framed(REMAINING)]
    for client in both.clients.values():
        gone = tmp_path / "gone"
        gone.mkdir()
        answerer.asked = []
        command = ["sh", "-c", f'cd "{gone}" && rmdir "{gone}" && exec "$@"', "-", *client, "remaining", *PATIENT]
        subprocess.run(command, env=both.home.environ, capture_output=True, check=True)
        assert dict(answerer.asked[0])["hints"]["cwd"] is None


def test_standard_files_that_are_closed(both: ClientPair, answerer: Answerer) -> None:
    """The socket does not get their descriptors."""
    for verb in ANSWERS:
        answerer.pieces = [framed(ANSWERS[verb])]
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            outcomes = []
            for client in both.clients.values():
                answerer.asked = []
                result = subprocess.run(
                    ["bash", "-c", f'"$@" {closed}', "-", *client, verb, *PATIENT],
                    env=both.home.environ,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                )
                outcomes.append((result.returncode, bool(result.stdout), result.stderr, len(answerer.asked)))
            assert outcomes[0] == outcomes[1], (verb, closed)


# --- a slow daemon, or another user's


def test_hook_gives_up_on_a_stopped_daemon_at_its_deadline(home: Home, program: Path, daemon: Daemon) -> None:
    """Silently, after its 0.2 s; the time limit of the test is much longer."""
    started(home)
    daemon.signal(signal.SIGSTOP)
    try:
        result = subprocess.run(
            [program, "hook"],
            env=home.environ,
            input=b'{"hook_event_name": "Stop"}',
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        daemon.signal(signal.SIGCONT)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@needs_root("become another user")
def test_daemon_of_another_user_is_refused(both: ClientPair, answerer: Answerer) -> None:
    """Root only trusts root."""
    place = both.home.root / "another"
    # The peer is the process that listens.
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "os.setresuid(4711, 4711, 4711); s.listen(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(place)]
    with killed(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as server:
        assert server.stdout is not None
        server.stdout.readline()
        outcome = both.require_alike("remaining", *PATIENT, environ={"FLUXBUDGET_SOCKET": str(place)})
    assert outcome.code == 69
    assert b"it is served by uid 4711, not by you" in outcome.stderr
    assert place.exists()


def test_being_stopped_for_a_while_changes_nothing(both: ClientPair, answerer: Answerer) -> None:
    """A signal that interrupts its waiting does not end it."""
    answerer.pieces = [framed(HOOK)]
    native_client = both.clients["native"]
    for _ in range(3):
        reading, writing = os.pipe()
        with subprocess.Popen(
            [*native_client, "hook", *PATIENT],
            env=both.home.environ,
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(reading)
            os.write(writing, b"{")
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGCONT)
            os.write(writing, b"}")
            os.close(writing)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out.decode(), err) == (0, str(HOOK["output"]) + "\n", b"")


# --- compiling


def warnings_of(compiler: str, directory: Path, *flags: str) -> str:
    script = native.compiling()
    script.write_table(str(directory))
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", *script.WARNINGS, '-DFLUXBUDGET_VERSION="x"', *flags]
    done = subprocess.run(
        [*command, "-I", str(directory), "-o", str(directory / "made"), *script.sources()],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_compiler_prints_no_warnings(tmp_path: Path) -> None:
    compilers = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    if not compilers:
        pytest.skip("no C compiler here")
    for compiler in {os.path.realpath(str(shutil.which(name))): name for name in compilers}.values():
        assert warnings_of(compiler, tmp_path) == ""


def test_static_analysis_finds_nothing(tmp_path: Path) -> None:
    """With cppcheck if it is installed, else with gcc's analyzer."""
    script = native.compiling()
    script.write_table(str(tmp_path))
    checks = ["--enable=warning,style,performance,portability", "--error-exitcode=1", "--inline-suppr", "--quiet"]
    flags = ["--std=c11", "-D_GNU_SOURCE", "-DFLUXBUDGET_VERSION=x", "-I", str(tmp_path)]
    if shutil.which("cppcheck"):
        command = ["cppcheck", *checks, *flags, *script.sources()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    elif shutil.which("gcc"):
        assert warnings_of("gcc", tmp_path, "-fanalyzer") == ""
    else:
        pytest.skip("neither cppcheck nor gcc here")


def test_without_a_compiler_there_is_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an exception, and without a program that does not run."""
    script = native.compiling()
    made = tmp_path / "made"
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n')
    broken.chmod(0o700)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not script.compile(str(made), "1")
    monkeypatch.setenv("CC", str(broken))
    assert not script.compile(str(made), "1")
    monkeypatch.setenv("CC", "/no/such/compiler --flag")
    assert not script.compile(str(made), "1")


def test_compiler_that_cannot_link_statically_makes_a_dynamic_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    partial = tmp_path / "partial cc"
    partial.write_text('#!/bin/sh\nfor word; do [ "$word" = -static ] && exit 1; done\nexec cc "$@"\n')
    partial.chmod(0o700)
    monkeypatch.setenv("CC", f"'{partial}'")
    made = tmp_path / "made"
    assert native.compiling().compile(str(made), "1.2.3")
    assert made.stat().st_mode & stat.S_IXUSR
    assert b"libc.so" in made.read_bytes()
    assert b"1.2.3" in made.read_bytes()


def test_both_clients_agree_on_printable_characters(tmp_path: Path) -> None:
    """The table is made from this Python."""
    native.compiling().write_table(str(tmp_path))
    written = (tmp_path / "printable.h").read_text()
    boundaries = [int(number) for number in written.partition("{")[2].partition("}")[0].split(",")]
    ends = [*boundaries[1:], sys.maxunicode + 1]
    printable = [number % 2 == 1 for number, start in enumerate(boundaries) for _ in range(start, ends[number])]
    assert printable == [chr(code).isprintable() for code in range(sys.maxunicode + 1)]

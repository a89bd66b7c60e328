"""Unit files: their text, made from the templates, and what is installed at their paths."""

import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from fluxbudgetctl.service import quoting
from fluxbudgetd.wire.paths import socket_path

SERVICE = "fluxbudgetd.service"
SOCKET = "fluxbudgetd.socket"
UNITS = (SOCKET, SERVICE)

#: The variables that tell the daemon where things are. They are written into the units, because systemd's manager does
#: not know the shell's environment.
CARRIED = (
    "CLAUDE_CONFIG_DIR",
    "FLUXBUDGET_SOCKET",
    "INTERBAND_ROOT",
    "INTERSTAT_DB",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
)
#: The directories that the daemon writes to, as the templates write them.
STATE, INTERBAND, INTERSTAT, OTHER_INTERSTAT, RUNTIME = (
    "%h/.local/state/fluxbudget",
    "%h/.interband",
    "%h/.claude/interstat",
    "%h/.config/claude/interstat",
    "%t/fluxbudget",
)
# Relative values of these are invalid, as the XDG specification says.
_XDG = ("XDG_CONFIG_HOME", "XDG_STATE_HOME")
_PATHS = ("ReadWritePaths=", "ReadOnlyPaths=", "BindPaths=", "BindReadOnlyPaths=")
_COMMANDS = ("ExecStartPre=", "ExecStartPost=", "ExecStopPost=")
# PrivateTmp= hides these from the service.
_HIDDEN = ("/tmp/", "/var/tmp/")  # noqa: S108  nothing is created there
_MARKER = re.compile(
    r"# Written by 'fluxbudgetctl service install' of fluxbudget (\S+)\. To change it: 'systemctl --user edit \S+'\. "
    r"sha256 of the rest: ([0-9a-f]{64})"
)
_MOST_BYTES = 256 * 1024


class State(StrEnum):
    """What is at a unit's path."""

    MISSING = "missing"
    OURS = "ours"
    """Written by this program, and unchanged."""
    EDITED = "edited"
    """Written by this program, and edited since."""
    FOREIGN = "foreign"
    """Not written by this program: another file, a symlink, a directory."""
    MASKED = "masked"
    """A symlink to /dev/null, or an empty file: systemd does not start such a unit."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A unit's file."""

    path: str
    state: State
    text: str = ""
    """Empty unless it is a readable regular file."""
    version: str = ""
    """The version of fluxbudget that wrote it."""

    @property
    def body(self) -> str:
        """The text after the marker."""
        return self.text.partition("\n")[2] if _MARKER.match(self.text) else self.text

    def value(self, key: str) -> str | None:
        """Return the last value of a setting; None if it is not set."""
        values = self.values(key)
        return values[-1] if values else None

    def values(self, key: str) -> list[str]:
        """Return all values of a setting, in the order of the file."""
        lines = self.text.splitlines()
        return [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == key]


def render(
    templates: Mapping[str, str],
    program: tuple[str, ...],
    carried: Mapping[str, str],
    code: Sequence[str],
    version: str,
) -> dict[str, str]:
    """Return the text of each unit; raises `Failure` for a path that a unit file cannot contain.

    `program` is the daemon's command line, `carried` comes from `carried_over`, and `code` names the directories that
    the program consists of.
    """
    chosen = carried.get("FLUXBUDGET_SOCKET")
    places = _places(carried)
    socket = _moved(templates[SOCKET], places)
    if chosen is not None:
        socket = _replace_line(socket, "ListenStream=", [f"ListenStream={quoting.whole(chosen)}"])
    own = [f"Environment={quoting.word(f'{name}={carried[name]}')}" for name in sorted(carried)]
    own += _tmp_bindings(places, carried, code)
    own.append(f"ExecStart={quoting.command(program)}")
    service = _replace_line(_moved(templates[SERVICE], places), "ExecStart=", own)
    return {SOCKET: marked(SOCKET, socket, version), SERVICE: marked(SERVICE, service, version)}


def carried_over(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """Return the variables of an environment that the daemon needs, as absolute paths.

    A relative XDG variable is invalid and is ignored. A `$FLUXBUDGET_SOCKET` that is the default is left out.
    `$CLAUDE_CONFIG_DIR` may name several directories.
    """
    found = {name: _absolute(name, environ[name]) for name in _given(environ)}
    without = {name: value for name, value in environ.items() if name != "FLUXBUDGET_SOCKET"}
    if found.get("FLUXBUDGET_SOCKET") == socket_path(without, uid):
        del found["FLUXBUDGET_SOCKET"]
    return found


def carried_in(service: File) -> dict[str, str]:
    """Return the variables that an installed service sets for the daemon."""
    pairs = [found.partition("=") for value in service.values("Environment") for found in quoting.words(value)]
    return {name: value for name, _, value in pairs if name in CARRIED}


def kept(installed: File, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that an installed service sets and this environment does not."""
    named = _given(environ)
    return {name: value for name, value in carried_in(installed).items() if name not in named}


def _absolute(name: str, value: str) -> str:
    """Return a variable's value with absolute paths, as the daemon understands it."""
    if name == "CLAUDE_CONFIG_DIR":
        return ",".join(os.path.abspath(os.path.expanduser(path)) for path in _listed(value))
    return os.path.abspath(value if name == "FLUXBUDGET_SOCKET" else os.path.expanduser(value))


def _listed(directories: str) -> list[str]:
    return [path.strip() for path in directories.split(",") if path.strip()]


def _given(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that are set and valid."""
    return [name for name in CARRIED if environ.get(name) and (name not in _XDG or environ[name].startswith("/"))]


def state_directory(carried: Mapping[str, str], home: str) -> str:
    """Return the directory of the ledger for a daemon with these variables."""
    (found,) = _places(carried).get(STATE, [os.path.join(home, ".local", "state", "fluxbudget")])
    return found


def listen_path(socket: File, runtime: str) -> str | None:
    """Return the path at which an installed socket listens; None if its file does not say."""
    value = socket.value("ListenStream")
    if value is None:
        return None
    return "%".join(piece.replace("%t", runtime) for piece in value.split("%%"))


def read(directory: str, name: str, *also_masked_in: str) -> File:
    """Return what is at a unit's path. A file that cannot be read is foreign."""
    path = os.path.join(directory, name)
    if not os.path.lexists(path):  # a file here overrides masks elsewhere
        masked = next(filter(_is_mask, (os.path.join(place, name) for place in also_masked_in)), None)
        return File(path=masked or path, state=State.MASKED if masked else State.MISSING)
    if _is_mask(path):
        return File(path=path, state=State.MASKED)
    text = _text(path)
    first, _, rest = text.partition("\n")
    marker = _MARKER.fullmatch(first)
    if marker is None or os.path.islink(path):
        return File(path=path, state=State.FOREIGN, text=text)
    state = State.OURS if marker[2] == _checksum(rest) else State.EDITED
    return File(path=path, state=state, text=text, version=marker[1])


def _is_mask(path: str) -> bool:
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            return os.path.realpath(path) == os.devnull
        return stat.S_ISREG(found.st_mode) and found.st_size == 0
    except OSError:
        return False


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", opener=_open_nonblocking) as file:
            return file.read(_MOST_BYTES) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else ""
    except OSError:
        return ""


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a FIFO would wait for a writer


def _places(carried: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the directories that differ from the template: the template's text → the paths."""
    found: dict[str, list[str]] = {}
    if state := carried.get("XDG_STATE_HOME"):
        found[STATE] = [os.path.join(state, "fluxbudget")]
    if interband := carried.get("INTERBAND_ROOT"):
        found[INTERBAND] = [interband]
    if database := carried.get("INTERSTAT_DB"):
        found |= {INTERSTAT: [os.path.dirname(database)], OTHER_INTERSTAT: []}
    elif claude := _listed(carried.get("CLAUDE_CONFIG_DIR", "")):
        found |= {INTERSTAT: [os.path.join(path, "interstat") for path in claude], OTHER_INTERSTAT: []}
    elif config := carried.get("XDG_CONFIG_HOME"):
        found[OTHER_INTERSTAT] = [os.path.join(config, "claude", "interstat")]
    if chosen := carried.get("FLUXBUDGET_SOCKET"):
        found[RUNTIME] = [os.path.dirname(chosen)]
    return found


def _moved(text: str, places: Mapping[str, Sequence[str]]) -> str:
    """Return a template with the actual directories."""
    return "".join(_moved_line(line, places) for line in text.splitlines(keepends=True))


def _moved_line(line: str, places: Mapping[str, Sequence[str]]) -> str:
    if not line.startswith((*_PATHS, *_COMMANDS)):
        return line
    key, _, value = line.partition("=")
    for template, paths in places.items():
        quote = quoting.argument if line.startswith(_COMMANDS) else quoting.word
        value = re.sub(
            rf"(?<!\S)([-+]*){re.escape(template)}(?!\S)",
            lambda found, paths=paths, quote=quote: " ".join(  # type: ignore[misc]
                quote(found[1] + path) for path in paths
            ),
            value,
        )
    return f"{key}={value.rstrip()}\n"


def _tmp_bindings(places: Mapping[str, Sequence[str]], carried: Mapping[str, str], code: Sequence[str]) -> list[str]:
    """Return the settings that show the service what it needs from /tmp, since it has a private /tmp."""
    config = [carried[name] for name in ("XDG_CONFIG_HOME",) if name in carried]
    claude = _listed(carried.get("CLAUDE_CONFIG_DIR", ""))
    shown = [f"BindReadOnlyPaths={bound(path)}" for path in (*code, *claude, *config) if is_hidden(path)]
    written = (path for paths in places.values() for path in paths)
    return shown + [f"BindPaths={bound(path)}" for path in written if is_hidden(path)]


def is_hidden(path: str) -> bool:
    """Return True if the service does not see this path, because it has a /tmp of its own."""
    return path.startswith(_HIDDEN)


def bound(path: str) -> str:
    """Return a path for `BindPaths=` or `BindReadOnlyPaths=`, which need not exist."""
    return quoting.word("-" + path.replace("\\", "\\\\").replace(":", "\\:"))


def _replace_line(text: str, key: str, new: Sequence[str]) -> str:
    """Return the text with its only line with this key replaced."""
    lines = text.splitlines()
    (index,) = (number for number, line in enumerate(lines) if line.startswith(key))
    return "\n".join([*lines[:index], *new, *lines[index + 1 :]]) + "\n"


def marked(name: str, body: str, version: str) -> str:
    """Return a file's text with the line by which it is recognized. `name` is the unit that it belongs to."""
    what = f"# Written by 'fluxbudgetctl service install' of fluxbudget {version}. "
    return f"{what}To change it: 'systemctl --user edit {name}'. sha256 of the rest: {_checksum(body)}\n{body}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

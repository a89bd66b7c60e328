"""systemd's quoting: writes any text as a word in a unit file, and reads such words back.

From systemd.syntax(7), systemd.unit(5) and systemd.exec(5): a backslash escapes, quotes group words, `%` starts a
specifier everywhere (`%%` is a percent sign), and `$` starts a variable in the arguments of a command (`$$`).
"""

import re

from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes

_PLAIN = re.compile(r"[A-Za-z0-9_./=:,+@^~-]+")
_WORD = re.compile(r"""\s*((?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')+)""")
_PIECE = re.compile(r"""\\(.)|"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|(.)""")
# systemd refuses quotes and backslashes in the name of a program, and takes `$` and `$$` there literally.
_NO_PROGRAM = frozenset("\"'\\$")


def word(text: str) -> str:
    """Return text as one word of a setting like `Environment=` or `ReadWritePaths=`; raises `Failure`."""
    _require_text(text)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if _PLAIN.fullmatch(text) else f'"{escaped}"'


def argument(text: str) -> str:
    """Return text as one argument of a command (`ExecStart=`); raises `Failure`."""
    return word(text).replace("$", "$$")


def command(program: tuple[str, ...]) -> str:
    """Return a program's path and arguments as a command line; raises `Failure`."""
    path, *arguments = program
    if _NO_PROGRAM.intersection(path):
        return " ".join(("/bin/sh -c", argument('exec "$0" "$@"'), *map(argument, program)))
    return " ".join((word(path), *map(argument, arguments)))


def whole(text: str) -> str:
    """Return text as the whole value of a setting without quoting (`ListenStream=`); raises `Failure`."""
    _require_text(text)
    if text != text.strip() or text.endswith("\\"):
        raise Failure(
            f"a unit file cannot contain the path {text!r}",
            "use a path without white space at its ends, and without a backslash at its end",
            codes.BAD_INPUT,
        )
    return text.replace("%", "%%")


def words(value: str) -> list[str]:
    """Return a setting's words without their quotes; text after an unbalanced quote is left out."""
    return [_unquoted(found) for found in _WORD.findall(value)]


def program_of(value: str) -> str | None:
    """Return the program that a command line made by `command` starts; None if there is none."""
    found = words(value)
    if found[:2] == ["/bin/sh", "-c"]:
        return found[3].replace("$$", "$") if len(found) > 3 else None  # noqa: PLR2004  after -c and the script
    return found[0].lstrip("-@:+!") if found else None


def _unquoted(text: str) -> str:
    pieces: list[str] = []
    for escaped, double, single, plain in _PIECE.findall(text):
        pieces.append(escaped or plain or re.sub(r"\\(.)", r"\1", double or single))
    return "".join(pieces).replace("%%", "%")


def is_possible(text: str) -> bool:
    """Return True if a unit file can contain this text."""
    return all(character.isprintable() or character == " " for character in text)


def _require_text(text: str) -> None:
    if not is_possible(text):
        hint = "use a path of printable UTF-8 characters"
        raise Failure(f"a unit file cannot contain the text {text!r}", hint, codes.BAD_INPUT)

"""Write docs/protocol.md from the structs that define the protocol: `make docs`."""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.framing import MAX_FRAME, encode_frame
from fluxbudgetd.wire.messages import (
    base,
    budget,
    calibration,
    commands,
    events,
    hooks,
    reviews,
    runs,
    service,
    shell,
    spend,
)

INTRODUCTION = f"""\
# The protocol

*Generated from `daemon/fluxbudgetd/wire` by `make docs`; a test keeps it up to date.*

`fluxbudgetd` answers on a Unix stream socket: `$FLUXBUDGET_SOCKET`, else
`$XDG_RUNTIME_DIR/fluxbudget/fluxbudgetd.sock`; without `XDG_RUNTIME_DIR`, `/run/user/UID` takes its place if it exists,
else the socket is `~/.local/state/fluxbudget/run/fluxbudgetd.sock`. The directory is 0700, the socket 0600, and peers
of another user are refused (except root; in the service's sandbox root is an ordinary user, and refused too).

**Lock**: beside the socket is the file `fluxbudgetd.sock.lock`, which the daemon holds with `flock(2)`. Its first line
is `fluxbudgetd pid N`, its second `socket PATH`: where the daemon listens. A daemon that was started with `--socket`
also leaves these lines at the default place, without holding the lock there. So if the default socket is missing or
dead, and `$FLUXBUDGET_SOCKET` is not set, clients read that file, and connect to `PATH` if it is another one. A second
daemon quotes the lines in its error, and `doctor` uses the pid. (Daemons before 0.2.0 write only the first line.) If
the socket, the lock or their directory is removed, the daemon creates them again within seconds (but not a socket that
systemd passed).

**Frame**: a big-endian `u32` that counts the bytes of the body, then the body: one
[MessagePack](https://msgpack.org) map of 1 to {MAX_FRAME} bytes. A connection may carry any number of requests, which
are answered in order. `subscribe` turns its connection into a stream of events, which ends when either side closes
it; further requests on it are ignored.

**Request**: `{{"v": {codes.VERSION}, "op": "…", …}}`. **Answer**: `{{"ok": true, "op": "…", …}}` or
`{{"ok": false, "error": {{"code", "message", "hint"}}}}`. Fields that a side does not know are ignored. Fields with a
default may be left out. A request with another `v` gets `unsupported_version`, with the version that is served in the
message.

**Limits**: 1 024 connections (fewer if the limit of open files is below 1 280). For a further one, the connection that
has waited longest for its next request is closed; if none waits, the new one gets `busy`. A frame must be complete 10 s
after its first byte (one with `stdin` may take longer while its command waits). An answer must be read within 10 s; a
stream's events have no limit. The daemon abandons a request after 30 s. Unfinished requests of more than 16 KiB share
16 MiB, and so do unread answers. After an error that concerns the frame or the connection itself (`too_large`, a
frame's `timeout`, `forbidden`, `busy` for a connection or a request), the connection is closed; after any other error
it stays open.

**Command lines**: `command` carries a whole command line of `fluxbudgetctl`, and its answer is what the client writes.
The daemon understands the plain, correct forms of `remaining`, `env`, `check`, `advance`, `ping`, `numbers`, `tokens`,
`defaults`, `hook` and `statusline`; to any other command line it answers `mine` false. If `more` is true, `stdin`
requests follow on the connection until one has `more` false. They have no answers of their own, and are ignored once
the command has been answered. Any other request while the command waits ends it with `bad_request`. `hook` and
`statusline` are answered as soon as their stdin is a complete JSON object or has ended, and otherwise after a share of
`wait_ms` (at most 20 s):

* `statusline` after half of it if nothing has arrived, or after 75 % with the fields that are complete by then;
* `hook` at its end: with no output if nothing has arrived, and with the error `timeout` if the JSON is incomplete;
* both after half of it if 256 KiB have arrived, with the fields that are complete.

A failure of `hook` is an error answer. Any other verb's failure is an ordinary answer, with an exit code and lines for
stderr.

**Pages**: `status` and `run_list` return at most 64 runs; send `next` as `after` to get the following page.

**Text** is UTF-8. A byte of a foreign id that is not valid UTF-8 is sent as the private-use character U+EF00 + byte,
and so is each byte of a character from U+EF80 to U+EFFF. So every byte string corresponds to exactly one text.

Tokens are integers (sums stop at {messages.MAX_TOKENS}); percentages are floats with one decimal, rounded down,
above 100 when more is spent; times are ISO-8601 UTC text.

**Types** below are written as in Python: `str` is MessagePack text, `bytes` its binary type, `int` an integer,
`float` a 64-bit float, `bool` true or false, `None` nil, `A | B` one or the other, `tuple[A, ...]` an array of any
length, another name a map described on this page.
"""


#: The modules that define the structs, in the order in which their parts are listed.
MODULES = (base, spend, budget, runs, reviews, calibration, events, hooks, shell, commands, service)


def classes() -> dict[str, ast.ClassDef]:
    """Return the structs' definitions by name, in the order of the source."""
    trees = (ast.parse(inspect.getsource(module)) for module in MODULES)
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


CLASSES = classes()


def fields(name: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield a struct's fields, inherited ones first: name, type, default, what it means."""
    node = CLASSES[name]
    for parent in node.bases:
        if isinstance(parent, ast.Name) and parent.id in CLASSES:
            yield from fields(parent.id)
    body = [*node.body, None]
    for statement, following in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            words = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                words = " ".join(str(following.value.value).split())
            default = ast.unparse(statement.value) if statement.value is not None else ""
            yield statement.target.id, ast.unparse(statement.annotation), default, words


def table(name: str) -> Iterator[str]:
    """Yield a struct's table of fields, without those that every message has."""
    rows = [row for row in fields(name) if row[0] not in ("v", "wait_ms", "ok")]
    if not rows:
        return
    yield ""
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for field, kind, default, words in rows:
        shown = kind.replace("|", "\\|")
        yield f"| `{field}` | `{shown}` | {f'`{default}`' if default else ''} | {words} |"


def section(name: str, title: str) -> Iterator[str]:
    """Yield a struct's section."""
    yield ""
    yield f"### {title}"
    yield ""
    yield " ".join(str(ast.get_docstring(CLASSES[name])).split())
    yield from table(name)


def tagged(union: object) -> Iterator[tuple[str, str]]:
    """Yield the names and operations of a union of structs."""
    for kind in get_args(union):
        yield kind.__name__, str(kind.__struct_config__.tag)


def choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names that stand for one of a few texts, with the texts."""
    for name in ("BudgetState", "ChannelState", "CostBasis", "Enforcement", "RunStatus"):
        yield name, get_args(getattr(messages, name))


def dump(data: bytes) -> Iterator[str]:
    """Yield a hex dump."""
    for start in range(0, len(data), 16):
        piece = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{start:04x}  {piece.hex(' '):<47}  {text}"


def exchange() -> Iterator[str]:
    """Yield one exchange in bytes."""
    request = {"v": codes.VERSION, "op": "remaining", "run": "r1"}
    answer = messages.RemainingAnswer(
        run="r1",
        phase="executing",
        spend=messages.Spend(
            budget=250_000, spent=208_500, measured=208_500, provisional=0, reserved=0, remaining=41_500, pct=83.4,
            state="warning", stale=False, stale_why=None,
        ),
    )  # fmt: skip
    for title, value in (("The request", request), ("Its answer", answer)):
        yield ""
        yield f"{title}, frame and body:"
        yield ""
        yield "```"
        yield from dump(encode_frame(messages.encode(value)))
        yield "```"


def document() -> str:
    """Return the whole document."""
    lines = [INTRODUCTION.rstrip(), "", "## Every request"]
    lines += table_of_all("Request")
    lines += ["", "Some texts are one of a few:", "", "| name | values |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(f'`{value}`' for value in values)} |" for name, values in choices()]
    lines += ["", "## Requests"]
    for name, op in tagged(messages.AnyRequest):
        lines += section(name, f"`{op}`")
    lines += section("Hints", "hints")
    lines += ["", "## Answers", "", "An answer's `op` says what it holds."]
    for name, op in tagged(messages.AnyAnswer):
        lines += section(name, f"`{op}`")
    lines += ["", "## Parts of answers"]
    used = {name for name, _ in (*tagged(messages.AnyRequest), *tagged(messages.AnyAnswer))}
    skipped = used | {"Hints", "Request", "Naming", "Answer", "Envelope", "ErrorAnswer"}
    for name in CLASSES:
        if name not in skipped:
            lines += section(name, name)
    lines += ["", "## Error codes", "", "| code | client's exit code | |", "|---|---|---|"]
    lines += [f"| `{code}` | {exit_code} | {words} |" for code, (exit_code, words) in codes.ERROR_CODES.items()]
    lines += ["", "## One exchange in bytes", *exchange()]
    return "\n".join(lines) + "\n"


def table_of_all(name: str) -> Iterator[str]:
    """Yield the table of what every request has."""
    yield ""
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for field, kind, default, words in fields(name):
        shown = str(codes.VERSION) if default == "VERSION" else default
        yield f"| `{field}` | `{kind}` | `{shown}` | {words} |"


if __name__ == "__main__":
    print(document(), end="")

"""Random answers, command lines, environments and state files: valid, odd and invalid ones."""

import random
from collections.abc import Mapping
from typing import Any

import msgspec

from fluxbudgetd.wire.codes import ERROR_CODES
from fluxbudgetd.wire.framing import encode_frame

SPEND: dict[str, Any] = {
    "budget": 250_000,
    "spent": 208_499,
    "measured": 200_000,
    "provisional": 8_499,
    "reserved": 40_000,
    "remaining": 1_501,
    "pct": 83.3996,
    "state": "warning",
    "stale": False,
    "stale_why": None,
}
REMAINING = {"ok": True, "op": "remaining", "run": "r1", "phase": "executing", "spend": SPEND}
CHECK = {
    **REMAINING,
    "op": "check",
    "allowed": False,
    "refusal": "budget_exceeded|executing|5/4 billing tokens",
    "overridden": None,
    "note": "",
}
PING = {"ok": True, "op": "ping", "version": "0.1.0", "protocol": 1, "pid": 4711, "started_at": "2026"}
HOOK = {"ok": True, "op": "hook", "output": '{"systemMessage": "Wärnung"}', "exports": "export A=1\n"}
STATUSLINE = {"ok": True, "op": "statusline", "run": "r1", "line": "executing \x1b[32m83%\x1b[0m", "stale_why": None}
#: A valid answer to each of the hot verbs.
ANSWERS: dict[str, dict[str, Any]] = {
    "remaining": REMAINING,
    "env": REMAINING,
    "check": CHECK,
    "ping": PING,
    "hook": HOOK,
    "statusline": STATUSLINE,
}
#: A valid state file.
STATE = {
    "run": "r1",
    "phase": "executing",
    "state": "warning",
    "budget": "250000",
    "spent": "208499",
    "remaining": "1501",
    "pct": "83.3",
    "reserved": "40000",
    "stale": "0",
    "as_of": "2026-11-22T00:12:26Z",
}
#: Characters at the limits of what is printed, folded or escaped.
SPECIAL = (
    "\0\a\b\t\n\x0b\f\r\x1b\x1f ~\x7f\x80\x9f\xa0\xa1\xad\u061c\u07ff\u0800\u200b\u202e\u2028\u3000\ud7ff\ue000\uef7f"
    '\uef80\uefff\uf000\ufeff\uffff\U00010000\U0001f600\U000e0041\U000f0000\U0010ffff"\\/äß€日本\u0301'
)
#: Integers at the limits of MessagePack's widths.
EDGES = [
    *(0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1),
    *(-1, -32, -33, -128, -129, -32_768, -32_769, -(2**31), -(2**31) - 1, -(2**63)),
]
#: Numbers at which Python's notation of floats changes.
FLOATS = [
    *(0.0, -0.0, 0.1, 83.3, 100.0, 1e15, 9999999999999998.0, 1e16, 123456789012345680.0, 1e22, 1e23, 1e-4, 9.9e-5),
    *(5e-324, 2.0**122, 2.0**-44, 1.7976931348623157e308, 1 / 3, float("nan"), float("inf"), float("-inf")),
]
RAW = [b"s1", b"r1", b"b/1", b".x", b"\xe2\x82", b"\xed\xa0\x80", "\uef80é".encode(), b"\xc0\xaf", b"a\xff\x1b"]
NUMBERS = ["20", "20.", "0020.50", "3600", "1_0", " 20", "2e1", "inf", "nan", "0", "3600.1", "٢٠", "+20", "0x14", "."]
DEFAULTS = ["5", "007", "0", "+5", "1_000", " 5", "-3", "x", "9" * 18, "9" * 19, "9" * 30, "٣"]
WIDTHS = ["40", "0", "00040", "000040", "100000", "1", "7", "20", "x", "٣", "-1"]
VERBS = {
    "remaining": ("--timeout", "--json", "--default"),
    "env": ("--timeout",),
    "check": ("--timeout", "--json", "--override"),
    "ping": ("--timeout", "--json"),
    "hook": ("--timeout",),
    "statusline": ("--timeout", "--width", "--no-colour", "--no-color"),
}
_PATIENT = "20"


def framed(answer: object) -> bytes:
    """Return an answer as a frame."""
    return encode_frame(msgspec.msgpack.encode(answer))


def in_pairs(value: Any) -> Any:
    """Return a map as pairs, which may contain a key twice."""
    return [(key, in_pairs(item)) for key, item in value.items()] if isinstance(value, dict) else value


def packed(value: Any) -> bytes:
    """Return the encoding of a value whose maps are pairs."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        pairs = b"".join(packed(key) + packed(item) for key, item in value)
        return b"\xde" + len(value).to_bytes(2, "big") + pairs
    return msgspec.msgpack.encode(value)


class Dice:
    """Random choices that only depend on the number."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def of(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def once_in(self, times: int) -> bool:
        return self._random.randrange(times) == 0

    def below(self, limit: int) -> int:
        return self._random.randrange(limit)

    def text(self) -> str:
        if self.once_in(4):
            return str(self.of("", "hook", "no_run", "x" * 300, "unlimited"))
        letters = [self.of(*SPECIAL, *"abcXYZ019=|:.-_") for _ in range(self.below(10))]
        return "".join(letters)

    def leaf(self) -> Any:
        number = self._random.getrandbits(64) >> self.below(64)
        real = self.of(number / 10, 2.0 ** (self.below(2098) - 1074), *FLOATS)
        return self.of(None, True, False, self.of(number, -(number >> 1), *EDGES), real, self.text(), self.text())

    def value(self, depth: int = 3) -> Any:
        if depth == 0 or not self.once_in(4):
            return self.leaf()
        if self.once_in(2):
            return [self.value(depth - 1) for _ in range(self.below(4))]
        return {self.text(): self.value(depth - 1) for _ in range(self.below(4))}

    def like(self, value: Any) -> Any:
        """Return another value of the same type, or None."""
        others = (other for other in iter(self.leaf, ...) if type(other) is type(value))
        return self.of(None, *(next(others) for _ in range(3)))

    def body(self, verb: str) -> bytes:
        """Return an answer's body: a valid one with changed, missing or duplicate fields, an error, or anything."""
        kind = self.of("fitting", "fitting", "odd", "odd", "odd", "error", "value", "bytes", "damaged")
        if kind == "error":
            error = {key: self.value() for key in ("code", "message", "hint") if not self.once_in(4)}
            error |= {} if self.once_in(4) else {"code": self.of(*ERROR_CODES, "odd")}
            return msgspec.msgpack.encode(
                {"ok": self.of(False, False, self.leaf()), "error": self.of(error, self.value())}
            )
        if kind == "value":
            return msgspec.msgpack.encode(self.value())
        if kind == "bytes":
            return self._random.randbytes(1 + self.below(30)) + bytes(self.of(b"", b"\x91" * 40, b"\xc4\x01x"))
        answer = in_pairs(ANSWERS[verb])
        for _ in range(self.below(4)):
            self._change(answer, fitting=kind != "odd")
        body = packed(answer)
        return self._damaged(body) if kind == "damaged" else body

    def _change(self, answer: list[tuple[Any, Any]], *, fitting: bool) -> None:
        fields = answer
        index = self.below(len(fields))
        if fields[index][0] == "spend" and isinstance(fields[index][1], list) and len(fields[index][1]) > 1:
            fields = fields[index][1]
            index = self.below(len(fields))
        key, value = fields[index]
        how = "fit" if fitting else self.of("value", "value", "gone", "twice", "more", "key")
        if how == "fit" and not isinstance(value, list):
            fields[index] = (key, self.like(value))
        elif how == "value":
            fields[index] = (key, self.value())
        elif how == "gone" and len(fields) > 1:
            del fields[index]
        elif how == "twice":
            fields.insert(self.below(len(fields) + 1), (key, self.value()))
        elif how == "more":
            fields.append((self.text(), self.value()))
        elif how == "key":
            fields.append((self.leaf(), value))

    def _damaged(self, body: bytes) -> bytes:
        place = self.below(len(body))
        return bytes(
            self.of(body[: max(place, 1)], body[:place] + self._random.randbytes(1) + body[place + 1 :], body + b"\xc0")
        )

    def pieces(self, verb: str) -> list[bytes]:
        """Return what the daemon sends: mostly a frame in two pieces, else one of a wrong length, a part, or more."""
        body = self.body(verb)
        data = encode_frame(body)
        how = self.of(*["whole"] * 9, "wrong", "half", "more", "nothing")
        if how == "wrong":
            length = self.of(0, 1, len(body) - 1, len(body) + 1, 2**20, 2**20 + 1, 2**32 - 1)
            data = length.to_bytes(4, "big") + body
        elif how == "half":
            data = data[: self.below(len(data))]
        elif how == "more":
            data *= 2
        elif how == "nothing":
            data = b""
        place = self.below(len(data) + 1)
        return [data[:place], data[place:]]

    def line(self, verb: str, *, odd: bool = False) -> list[str | bytes]:
        """Return a plain command line with a long timeout. If `odd`, it may be neither."""
        words: list[str | bytes] = [verb]
        if verb != "ping" and self.once_in(2):
            name, value = self.of(b"--run", b"--scope", b"--session"), self.of(*RAW)
            words += [name + b"=" + value] if self.once_in(2) else [name, value]
        for flag in VERBS[verb] * (1 + odd):
            if flag == "--timeout" or self.once_in(2) or (flag == "--no-color" and not odd):
                continue
            words += self._with_value(flag, odd=odd)
        if not odd or self.once_in(2):
            words += ["--timeout", self.of(*NUMBERS) if odd else _PATIENT]
        if odd and self.once_in(3):
            words.insert(
                self.below(len(words) + 1), self.of("--help", "--js", "extra", "", "--", "--run", b"--run=", "-x")
            )
        return words

    def _with_value(self, flag: str, *, odd: bool) -> list[str | bytes]:
        values: Mapping[str, Any] = {
            "--default": self.of(*DEFAULTS) if odd else "5",
            "--width": self.of(*WIDTHS) if odd else self.of("1", "5", "12", "13", "23", "40"),
            "--override": self.of(*RAW),
        }
        if flag not in values:
            return [flag + ("=1" if odd and self.once_in(6) else "")]
        return [flag, values[flag]]

    def environment(self) -> dict[str, str | bytes]:
        names = (
            "FLUXBUDGET_RUN",
            "CLAVAIN_BEAD_ID",
            "CLAUDE_CODE_SESSION_ID",
            "CLAUDE_SESSION_ID",
            "CLAVAIN_SKIP_BUDGET",
        )
        possible: dict[str, Any] = {
            **{name: self.of(*RAW, b"") for name in (*names, "CLAVAIN_SKIP_BUDGET")},
            "FLUXBUDGET_FAIL_CLOSED": self.of("1", "1", "", "yes"),
            "FLUXBUDGET_DEBUG": self.of("1", "1", ""),
            "COLUMNS": self.of("80", "9", "0", "x", "", " 5", "123456"),
            "NO_COLOR": self.of("1", ""),
            "TERM": self.of("dumb", "xterm", ""),
        }
        chosen = {name: value for name, value in possible.items() if self.once_in(3)}
        return chosen | ({"CLAUDE_ENV_FILE": self.of("", "/", "/dev/null")} if self.once_in(6) else {})

    def input(self) -> bytes:
        """Return something for stdin."""
        if self.once_in(4):
            return bytes(self.of(b"", self._random.randbytes(self.below(30))))
        space = self.of(b"", b" ", b"\n\t\r ")
        happened = self.of(b"PreToolUse", b"PreToolUse", b"Stop", b"", rb"Pre\u0054oolUse")
        tool, session = self.of(b"Agent", b"Task", b"Bash"), self.of(*RAW, b"", b'a\\"b')
        words = (space, space, happened, tool, space, session)
        return b'{"hook_event_name"%b:%b"%b", "tool_name": "%b",%b"session_id": "%b"}' % words

    def state_file(self) -> bytes:
        fields = [*STATE.items()]
        if self.once_in(3):
            fields = [*{**STATE, "state": "unlimited", "budget": "", "remaining": "", "pct": ""}.items()]
        odd = ["", "0", "1", "2", ".5", "5.", ".", "1e3", "nan", "-1", "+1", "1_0", "٣", "1.2.3", "9" * 19, "9" * 20]
        odd += [
            str(2**63 - 1),
            str(2**63),
            "0" * 19,
            "0" * 20,
            "99999999999999999.9",
            "ok",
            "exceeded",
            "unlimited",
            "r=2",
        ]
        for _ in range(self.below(4)):
            index = self.below(len(fields))
            key, value = fields[index]
            how = self.of("fit", "fit", "fit", "odd", "gone", "twice")
            if how == "fit":
                number = str(self.below(10 ** self.of(1, 3, 4, 5, 6, 9, 18)))
                fields[index] = (key, number if value.isdigit() and len(value) > 1 else self.text() or "x")
            elif how == "odd":
                fields[index] = (key, self.of(*odd))
            elif how == "gone" and len(fields) > 1:
                del fields[index]
            else:
                fields.append((key, self.of(*odd)))
        end: str = self.of("\n", "\n", "\n", "", "\nno pair", "\n=\n", "\n" * 65_600)
        data = ("\n".join(f"{key}={value}" for key, value in fields) + end).encode()
        return data + bytes(self.of(*[b""] * 19, b"\nx=\xff"))

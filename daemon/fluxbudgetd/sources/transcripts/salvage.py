r"""Find the whole records in a damaged line.

Programs that are killed and disks that fill up leave lines with a record that was cut, with the next record right after
it, with two records, or with NULs or a byte-order mark before one. A record is a JSON object. The search is one pass
over the line, for the starts and ends of objects:

* `{"word":` is always the start of an object. Inside a string it would have to be written `{\"word\":`, and a string
  that ends with `{` is not followed by a word. So if such a start appears to be inside a string, the string was cut.
* An object whose end is missing was cut. What is whole is an object with an end, but not inside another one that also
  has an end.
* The start of a record is not in the place of a value (after a colon, a comma or a bracket), unless the line was cut
  just there. Then the record has the id of its session, which no value has.
"""

import re
from collections.abc import Callable

from fluxbudgetd.sources.transcripts.records import USAGE

#: At most this many tokens are looked at (some tenths of a second).
MOST_TOKENS = 1 << 18
# At most this many times a line's length is read for its records, some of which may be inside others.
_MOST_READS = 8

# What follows the brace of every record, and of no brace in a string.
_WORD = rb'\s{0,8}"\w{1,64}"\s{0,8}:'
# A string's content, up to its end or to where it was cut.
_CONTENT = rb'(?:[^"\\{\x00-\x1f]++|\{(?!' + _WORD + rb')|\\["\\/bfnrtu])*+'
_TOKEN = re.compile(
    rb"(?P<open>\{)"
    rb"|(?P<close>\})"
    rb'|"type"\s{0,8}:\s{0,8}"(?P<kind>[\w-]{1,64})"'
    rb'|(?P<usage>"usage")'
    rb'|(?:[^{}"]++|"(?!(?:type|usage)")' + _CONTENT + rb'")++'
    rb'|(?P<cut>"' + _CONTENT + rb')(?P<closed>")?',
    re.DOTALL,
)
# Records of other types have no usage that counts.
_WITH_USAGE = frozenset({b"assistant", b"progress"})
# Every record has a type. `message` is that of the object in a record.
_NOT_A_RECORD = (b"", b"message")
_VALUE_FOLLOWS = (b":", b",", b"[")
_SPACES = 8


class Budget:
    """The tokens that may still be looked at."""

    def __init__(self, tokens: int = MOST_TOKENS) -> None:
        self.tokens = tokens


class _Object:
    """An object in a line. `kind` is its `type`. `inner` are the objects inside it that have an end, and usage."""

    __slots__ = ("begin", "end", "inner", "is_record", "kind")

    def __init__(self, begin: int, *, is_record: bool) -> None:
        self.begin = begin
        self.end = 0
        self.is_record = is_record
        self.kind = b""
        self.inner: list[_Object] = []

    @property
    def may_have_usage(self) -> bool:
        """True if this is a record that may be an assistant's."""
        return self.is_record and (not self.kind or self.kind in _WITH_USAGE)

    @property
    def is_rest(self) -> bool:
        """True if this is not a record, but part of one whose beginning is missing: its `message`, for instance."""
        return self.is_record and self.kind in _NOT_A_RECORD


def salvage(line: bytes, budget: Budget, take: Callable[[bytes, bool], None]) -> bool:
    """Call `take` with each whole record in a damaged line that has usage; return True if more usage may be lost.

    `take` gets the record, and True if it can only be a record if it has the id of a session. It raises `ValueError` or
    `RecursionError` if the record cannot be read.
    """
    search = _Search(line)
    search.run(budget)
    left = _MOST_READS * len(line)
    pending = search.whole[::-1]
    while pending and left > 0:
        found = pending.pop()
        left -= found.end - found.begin
        try:
            take(line[found.begin : found.end], not found.is_record)
        except (ValueError, RecursionError):
            search.is_lossy |= found.may_have_usage
            pending += reversed(found.inner)
        else:
            search.is_lossy |= found.is_rest
    return search.is_lossy or bool(pending)


class _Search:
    """The search of a line. `is_lossy`: there is more that may have usage than the objects in `whole`."""

    def __init__(self, line: bytes) -> None:
        self.is_lossy = False
        self._line = line
        # The objects that have no end yet, each inside the one before it. The first stands for the line.
        self._open = [_Object(0, is_record=False)]
        # Where the last record ended, the last usage began, and the last cut string ended.
        self._outside = 0
        self._usage_at = -1
        self._cut_at = -1

    def run(self, budget: Budget) -> None:
        """Search the line, as far as the budget allows."""
        for token in _TOKEN.finditer(self._line):
            budget.tokens -= 1
            if budget.tokens < 0:
                self.is_lossy = True
                break
            match token.lastgroup:
                case "open":
                    self._begin(token.start())
                case "close":
                    self._end(token.end())
                case "kind":
                    self._open[-1].kind = self._open[-1].kind or token["kind"]
                case "usage":
                    self._usage_at = token.start()
                case "cut":
                    self._cut_at = token.end()
        if len(self._open) == 1 or not self._open[1].is_record:
            self._look_outside(len(self._line))
        self.is_lossy |= any(cut.may_have_usage for cut in self._open)

    @property
    def whole(self) -> list[_Object]:
        """The objects with an end and with usage, but not those that are inside another one."""
        return [found for cut in self._open for found in cut.inner]

    def _begin(self, at: int) -> None:
        before = self._line[max(0, at - _SPACES) : at].rstrip()
        is_record = self._cut_at == at or not before.endswith(_VALUE_FOLLOWS)
        if is_record and len(self._open) == 1:
            self._look_outside(at)
        self._open.append(_Object(at, is_record=is_record))

    def _end(self, at: int) -> None:
        if len(self._open) == 1:
            return
        found = self._open.pop()
        found.end = at
        if self._usage_at > found.begin:
            self._open[-1].inner.append(found)
        if found.is_record and len(self._open) == 1:
            self._outside = at

    def _look_outside(self, end: int) -> None:
        """Note usage in what is left of a record whose beginning is missing."""
        self.is_lossy |= self._line.find(USAGE, self._outside, end) >= 0

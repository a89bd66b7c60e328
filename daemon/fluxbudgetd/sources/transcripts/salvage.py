r"""Finding the whole records in a damaged line.

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

#: At most this many tokens are looked at (some tenths of a second).
MOST_TOKENS = 1 << 19
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
_VALUE_FOLLOWS = (b":", b",", b"[")


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


def salvage(line: bytes, budget: Budget, take: Callable[[bytes, bool], None]) -> bool:
    """Call `take` with each whole record in a damaged line that has usage; return True if more usage may be lost.

    `take` gets the record, and True if it can only be a record if it has the id of a session. It raises `ValueError` or
    `RecursionError` if the record cannot be read.
    """
    top = _Object(0, is_record=False)
    is_lossy = _search(line, top, budget)
    left = _MOST_READS * len(line)
    pending = top.inner[::-1]
    while pending and left > 0:
        found = pending.pop()
        left -= found.end - found.begin
        try:
            take(line[found.begin : found.end], not found.is_record)
        except (ValueError, RecursionError):
            is_lossy |= found.may_have_usage
            pending += reversed(found.inner)
    return is_lossy or bool(pending)


def _search(line: bytes, top: _Object, budget: Budget) -> bool:
    """Add to `top` the objects with an end and with usage; return True if any other may have usage, too."""
    is_lossy = False
    stack = [top]
    usage_at = cut_at = -1
    for token in _TOKEN.finditer(line):
        budget.tokens -= 1
        if budget.tokens < 0:
            is_lossy = True
            break
        match token.lastgroup:
            case "open":
                begin = token.start()
                is_value = cut_at != begin and line[max(0, begin - 8) : begin].rstrip().endswith(_VALUE_FOLLOWS)
                stack.append(_Object(begin, is_record=not is_value))
            case "close" if len(stack) > 1:
                found = stack.pop()
                found.end = token.end()
                if usage_at > found.begin:
                    stack[-1].inner.append(found)
            case "kind":
                stack[-1].kind = stack[-1].kind or token["kind"]
            case "usage":
                usage_at = token.start()
                is_lossy |= len(stack) == 1
            case "cut":
                cut_at = token.end()
            case _:
                pass
    for cut in stack[1:]:
        is_lossy |= cut.may_have_usage
        top.inner += cut.inner
    return is_lossy

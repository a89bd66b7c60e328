"""Read YAML into nodes, and convert only the requested values to Python.

PyYAML scans, parses and composes. The rules below are enforced here, because versions of PyYAML and libyaml differ on
them (6.0.4 merges keys in another order than 6.0.3, and its libyaml refuses 1,000 levels):

- Size: a file has at most 1 MiB, or 64 KiB in a project; `reading.read_text` refuses a larger one before it is parsed.
  A number has at most 100 characters; a longer one is never computed.
- Depth: collections are nested at most 64 levels deep. Levels are counted from the parser's events, before anything is
  composed. If a file is nested too deeply and also has a syntax error further on, the depth is what is reported.
- Aliases are never expanded. An alias is the node that it refers to, and a map is merged into another at most once, so
  a file costs time and memory in proportion to its size.
- Duplicate keys: the last of equal keys counts. Keys that are not text are ignored.
- Merge keys (`<<`): a map's own keys override merged ones, wherever the `<<` is. In a list of maps, an earlier map
  overrides a later one. A merged map's own keys override those that it merges in turn. If a map has several `<<`, a
  later one overrides an earlier one. Merging anything but a map or a list of maps adds nothing.
- Tags: a tag that asks for Python code is refused anywhere in the file.
"""

import contextlib
import re
from collections.abc import Collection
from typing import Protocol

import yaml
from yaml.constructor import SafeConstructor

from fluxbudgetd.config.shown import shortened, shown_file
from fluxbudgetd.config.yaml_values import DIALECT, Other, Values
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.text import one_line

LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's safe loader, on libyaml if PyYAML was built with it."""

# PyYAML's composer recurses on the C stack: nested deeply enough, a file would crash the process.
_MAX_DEPTH = 64
# No allowed number is longer, and parsing a very long one takes very long.
_MAX_SCALAR = 100
_MOST_WORDS = 200
_STANDARD = "tag:yaml.org,2002:"
_CODE = f"{_STANDARD}python/"
_CONSTRUCTED = {f"{_STANDARD}{name}" for name in ("bool", "int", "float")}
# YAML also allows the byte-order mark, but the two loaders disagree about it.
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_HINT = "correct the line: the file must be YAML"


class _Mark(Protocol):
    """A place in the text, as both loaders give it. All three count from 0, in characters."""

    index: int
    line: int
    column: int


def values(text: str, path: str, keys: Collection[str]) -> Values:
    """Return the values of these keys of a document's top-level map; raise `ConfigError`."""
    nodes = top_level(text, path)
    return {key: value_of(nodes[key]) for key in sorted(keys) if key in nodes}


def top_level(text: str, path: str) -> dict[str, yaml.Node]:
    """Return a document's top-level map, which is empty if the document is; raise `ConfigError`."""
    found = _UNPRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise _broken(path, f"line {line}", f"the character {one_line(found[0])} cannot be in YAML")
    try:
        _require_shallow(text, path)
        root: yaml.Node | None = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as exc:
        what = ", ".join(filter(None, (exc.context, exc.problem)))
        raise _broken(path, _place(exc.problem_mark or exc.context_mark), what) from exc
    except yaml.YAMLError as exc:
        raise _broken(path, "somewhere", str(exc)) from exc
    if root is None:
        return {}
    _require_no_code(root, path)
    if isinstance(root, yaml.MappingNode):
        return entries(root)
    if root.tag == f"{_STANDARD}null":
        return {}
    found_instead = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
    raise _broken(path, _place(root.start_mark), f"the whole file is {found_instead}; allowed: a map")


def entries(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    """Return a map's entries whose key is text. Duplicate and merge keys follow the rules above."""
    found: dict[str, yaml.Node] = {}
    ahead: list[yaml.Node] = [node]
    seen: set[int] = set()
    # Maps are taken by precedence, highest first, so a map that is merged a second time can add nothing.
    while ahead:
        at = ahead.pop()
        if id(at) in seen or not isinstance(at, yaml.MappingNode):
            continue
        seen.add(id(at))
        own: dict[str, yaml.Node] = {}
        for key, value in at.value:
            if key.tag == f"{_STANDARD}merge":
                ahead += reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]
            elif key.tag == f"{_STANDARD}str" and _is_valid(key.value):
                own[key.value] = value
        found = {**own, **found}
    return found


def value_of(node: yaml.Node) -> object:
    """Return a node as a plain value, two levels deep. Deeper nodes and other types become an `Other`."""
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_STANDARD}map":
        return {key: _flat(item) for key, item in entries(node).items()}
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_STANDARD}seq":
        return [_flat(item) for item in node.value]
    return _flat(node)


def _flat(node: yaml.Node) -> object:
    if not isinstance(node, yaml.ScalarNode):
        standard = node.tag in (f"{_STANDARD}map", f"{_STANDARD}seq")
        kind = DIALECT.mapping if isinstance(node, yaml.MappingNode) else DIALECT.sequence
        return Other(kind if standard else f"{kind} with the tag {_short_tag(node)}")
    if node.tag == f"{_STANDARD}null":
        return None
    if node.tag == f"{_STANDARD}str" and _is_valid(node.value):
        return str(node.value)
    if node.tag in _CONSTRUCTED and len(node.value) <= _MAX_SCALAR:
        try:
            return SafeConstructor().construct_object(node)
        except (ValueError, LookupError):  # `!!int x` is tagged as a number but is not one
            pass
    return Other(f"{shortened(node.value)} ({_short_tag(node)})")


def _short_tag(node: yaml.Node) -> str:
    tag = str(node.tag)
    return f"!!{tag.removeprefix(_STANDARD)}" if tag.startswith(_STANDARD) else tag


def _is_valid(text: str) -> bool:
    """Return True if it is valid text: an escape can produce half a surrogate pair."""
    return not _HALF_A_PAIR.search(text)


def _require_shallow(text: str, path: str) -> None:
    try:
        too_deep = _too_deep(text)
    except yaml.MarkedYAMLError as exc:
        # The scanner reads up to 1,024 characters ahead of the events, and may fail there (newer versions of libyaml do
        # so at level 1,001). Before its error is reported, count the levels up to the end and the start of what failed.
        too_deep = None
        for failed_at in (exc.problem_mark, exc.context_mark):
            with contextlib.suppress(yaml.YAMLError):
                too_deep = too_deep or (failed_at and _too_deep(text[: failed_at.index]))
        if too_deep is None:
            raise
    if too_deep is not None:
        raise _broken(path, _place(too_deep), f"nested deeper than {_MAX_DEPTH} levels")


def _too_deep(text: str) -> _Mark | None:
    """Return where the first collection below the deepest allowed level starts, if there is one."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                return event.start_mark
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


def _require_no_code(root: yaml.Node, path: str) -> None:
    """Refuse a file with tags that run code. Nothing here would run it, but another reader of the file might."""
    ahead = [root]
    seen: set[int] = set()
    while ahead:
        node = ahead.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.tag.startswith(_CODE):
            raise _broken(path, _place(node.start_mark), f"the tag {_short_tag(node)}; allowed: plain values")
        if isinstance(node, yaml.MappingNode):
            ahead += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            ahead += node.value


def _place(mark: _Mark | None) -> str:
    return "somewhere" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"


def _broken(path: str, place: str, what: str) -> ConfigError:
    return ConfigError(f"{shown_file(path)}: {place}: {shortened(one_line(what), _MOST_WORDS)}", _HINT)

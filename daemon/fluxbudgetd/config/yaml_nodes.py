"""YAML as nodes. Only those that are needed are converted to values.

Nothing is expanded: aliases stay shared, and a merge key (`<<`) visits each map once. So a small file that expands to a
huge document costs no more than its own size.
"""

import re
from typing import Protocol

import yaml
from yaml.constructor import SafeConstructor

from fluxbudgetd.config.shown import Dialect, one_line, shortened, shown_file
from fluxbudgetd.errors import ConfigError

DIALECT = Dialect(text="text in YAML 1.1", mapping="a map", sequence="a list", nothing="null")

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# libyaml's composer recurses on the C stack, so deep nesting would crash the process.
_MAX_DEPTH = 64
# No allowed number is longer, and parsing a very long one takes very long.
_MAX_SCALAR = 100
_MOST_WORDS = 200
_STANDARD = "tag:yaml.org,2002:"
_CODE = f"{_STANDARD}python/"
_CONSTRUCTED = {f"{_STANDARD}{name}" for name in ("bool", "int", "float")}
# YAML also allows the byte order mark, but the two loaders disagree about it.
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_HINT = "correct the line: the file must be YAML"


class _Mark(Protocol):
    """A place in the file, as either loader gives it."""

    line: int
    column: int


class Other:
    """A value that none of our keys may have, as text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def top_level(text: str, path: str) -> dict[str, yaml.Node]:
    """Return a document's top-level map, which is empty if the document is; raise `ConfigError`."""
    found = _UNPRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise _broken(path, f"line {line}", f"the character {one_line(found[0])} cannot be in YAML")
    try:
        _require_shallow(text, path)
        root: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
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
    """Return a map's entries whose key is text. As in PyYAML, the last of equal keys wins; merge keys are applied."""
    found: dict[str, yaml.Node] = {}
    ahead: list[yaml.Node] = [node]
    seen: set[int] = set()
    # Entries with precedence come first, so a map that is merged a second time adds nothing.
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
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _broken(path, _place(event.start_mark), f"nested deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


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

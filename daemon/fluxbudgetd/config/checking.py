"""Convert a file's data, laid over the defaults, to a struct; name the key of a wrong value."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect

from fluxbudgetd.config.shown import Dialect, shortened, shown, shown_file, shown_key
from fluxbudgetd.errors import ConfigError

T = TypeVar("T")
Keys = tuple[str | int, ...]


class CombinationError(ValueError):
    """Values that are valid individually but not together. Raised by structs; `key` is one of theirs, or empty."""

    def __init__(self, key: str, what: str, allowed: str) -> None:
        super().__init__(f"{key} {what}; allowed: {allowed}")
        self.key = key
        self.what = what
        self.allowed = allowed


class _Wrong(NamedTuple):
    keys: Keys
    what: str
    allowed: str
    instead: str = ""
    """A better hint than the file's; may be empty."""


def overlay(below: object, above: object) -> object:
    """Return `above` laid over `below`: maps are merged key by key, other values are replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: overlay(below.get(key), value) for key, value in above.items()}}


def checked(data: object, kind: type[T], path: str, dialect: Dialect, hint: str) -> T:
    """Return the data as a struct of this kind; raise `ConfigError` naming the first wrong key."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError:
        wrong = _find(data, kind, (), dialect)
        key = shown_key(wrong.keys) or "the whole file"
        raise ConfigError(
            f"{shown_file(path)}: {key} {wrong.what}; allowed: {wrong.allowed}", wrong.instead or hint
        ) from None


def fits(value: object, kind: object) -> bool:
    """Return True if a value is of this kind."""
    return _refusal(value, kind) is None


def _refusal(value: object, kind: object) -> msgspec.ValidationError | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        return exc
    return None


def _find(value: object, kind: object, keys: Keys, dialect: Dialect) -> _Wrong:
    """Return the error to report about a value that is not of this kind: the deepest, and of those the first."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct) and isinstance(value, Mapping):
        return _find_in_struct(value, bare, keys, dialect)
    for key, item, of_item in _items(value, bare):
        if not fits(item, of_item):
            return _find(item, of_item, (*keys, key), dialect)
        if isinstance(key, str) and not fits(key, get_args(bare)[0]):
            return _Wrong((*keys, key), "is not an allowed name", _allowed(get_args(bare)[0], key, dialect))
    if get_origin(bare) is tuple and isinstance(value, list | tuple):  # each value is valid individually
        return _Wrong(keys, f"has {len(value)} values", _allowed(kind, value, dialect))
    return _Wrong(keys, f"is {_found(value, kind, dialect)}", _allowed(kind, value, dialect))


def _find_in_struct(value: Mapping[str, object], kind: type[msgspec.Struct], keys: Keys, dialect: Dialect) -> _Wrong:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, item in value.items():
        field = fields.get(key)
        if field is None and kind.__struct_config__.forbid_unknown_fields:
            return _unknown(key, keys, fields)
        if field is not None and not fits(item, field.type):
            return _find(item, field.type, (*keys, key), dialect)
    for name, field in fields.items():
        if field.required and name not in value:
            return _Wrong((*keys, name), "is missing", _allowed(field.type, None, dialect))
    refusal = _refusal(value, kind)
    cause = None if refusal is None else refusal.__cause__
    if isinstance(cause, CombinationError):
        return _Wrong((*keys, cause.key) if cause.key else keys, cause.what, cause.allowed)
    return _Wrong(keys, f"is {shown(value, dialect)}", _allowed(kind, value, dialect))


def _items(value: object, bare: object) -> Iterable[tuple[str | int, object, object]]:
    """Return key, value and kind of each item of a map or list; nothing for other kinds or values."""
    if get_origin(bare) is dict and isinstance(value, Mapping):
        return ((key, item, get_args(bare)[1]) for key, item in value.items())
    if get_origin(bare) is tuple and isinstance(value, list | tuple):
        return ((index, item, get_args(bare)[0]) for index, item in enumerate(value))
    return ()


def _unknown(key: str, keys: Keys, known: Iterable[str]) -> _Wrong:
    names = sorted(known)
    near = get_close_matches(shortened(key), names, n=1)
    hint = f"did you mean {shown_key((*keys, near[0]))}?" if near else "remove it, or update fluxbudget"
    return _Wrong((*keys, key), "is not a key", ", ".join(names), hint)


def _found(value: object, kind: object, dialect: Dialect) -> str:
    numeric = isinstance(inspect.type_info(kind), inspect.IntType | inspect.FloatType)
    return shown(value, dialect) + (f" ({dialect.text})" if numeric and isinstance(value, str) else "")


def _allowed(kind: object, value: object, dialect: Dialect) -> str:
    """Return what is allowed instead of this value, in words."""
    return _described(inspect.type_info(kind), value, dialect)


def _described(info: inspect.Type, value: object, dialect: Dialect) -> str:
    words = "text"
    match info:
        case inspect.Metadata(extra_json_schema={"description": str(description)}):
            words = description
        case inspect.IntType() | inspect.FloatType():
            words = _numbers(info, value)
        case inspect.LiteralType(values=values):
            words = ", ".join(shown(literal, dialect) for literal in values)
        case inspect.UnionType(types=types):
            words = ", or ".join(_described(kind, value, dialect) for kind in types)
        case inspect.StructType(fields=fields):
            words = f"{dialect.mapping} with {', '.join(sorted(field.encode_name for field in fields))}"
        case inspect.DictType():
            words = dialect.mapping
        case inspect.VarTupleType(item_type=item):
            words = f"{dialect.sequence} of: {_described(item, None, dialect)}"
        case inspect.NoneType():
            words = dialect.nothing
        case inspect.StrType(min_length=int()):
            words = "text that is not empty"
    return words


def _numbers(info: inspect.IntType | inspect.FloatType, value: object) -> str:
    if info.gt is not None:
        bounds = f"above {info.gt}, at most {info.le}"
    else:
        bounds = f"at least {info.ge}" if info.le is None else f"{info.ge} to {info.le}"
    if isinstance(info, inspect.FloatType):
        return f"a number, {bounds}"
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return bounds if is_whole else f"a whole number, {bounds}"

"""Convert between structs with mostly the same fields."""

from functools import cache
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def converted(value: msgspec.Struct, kind: type[T], **others: object) -> T:
    """Return a struct of this kind, with the fields that `value` has under the same names.

    `others` are the fields that differ or are missing there. Raises `TypeError` if a field is left without a value.
    """
    fields = msgspec.structs.asdict(value)
    for name in _without(type(value), kind):
        del fields[name]
    return kind(**{**fields, **others})


@cache
def _without(source: type[msgspec.Struct], kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the names of the fields that `kind` does not have."""
    return tuple(name for name in source.__struct_fields__ if name not in kind.__struct_fields__)

"""One sample of every message of the protocol, each field filled according to its type."""

from collections.abc import Callable, Iterator
from typing import TypeVar, get_args

import msgspec
from msgspec import inspect

from fluxbudgetd.wire import messages

T = TypeVar("T", bound=msgspec.Struct)


def samples() -> Iterator[tuple[str, msgspec.Struct]]:
    """Yield `request OP` or `answer OP`, and a message in which no field has its default."""
    for kind, union in (("request", messages.AnyRequest), ("answer", messages.AnyAnswer)):
        for struct in get_args(union):
            yield f"{kind} {struct.__struct_config__.tag}", sample(struct)
    yield "answer error", sample(messages.ErrorAnswer)


def sample(kind: type[T]) -> T:
    """Return a struct with a value in every field."""
    return kind(
        **{field.name: _value(field.name, inspect.type_info(field.type)) for field in msgspec.structs.fields(kind)}
    )


def _value(name: str, info: inspect.Type) -> object:
    match info:
        case inspect.UnionType(types=types):
            return _value(name, next(one for one in types if not isinstance(one, inspect.NoneType)))
        case inspect.StructType(cls=cls):
            return sample(cls)
        case inspect.VarTupleType(item_type=item):
            return (_value(name, item),)
        case inspect.DictType(value_type=value):
            return {f"a {name}": _value(name, value)}
        case inspect.LiteralType(values=values):
            return values[-1]
    return _SCALARS[type(info)](name)


_SCALARS: dict[type[inspect.Type], Callable[[str], object]] = {
    inspect.BoolType: lambda _name: True,
    inspect.IntType: lambda name: 300 + len(name),
    inspect.FloatType: lambda name: len(name) / 2,
    inspect.StrType: lambda name: f"some {name}",
    inspect.BytesType: str.encode,
}

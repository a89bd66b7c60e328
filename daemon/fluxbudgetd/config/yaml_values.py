"""Plain values from YAML, and how they are written as JSON for another process."""

from typing import TypeAlias

from fluxbudgetd.config.shown import Dialect

DIALECT = Dialect(text="a string in YAML 1.1", mapping="a map", sequence="a list", nothing="null")


class Other:
    """A value of a type that none of our keys allows, as text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


#: By key: a scalar or an `Other`, or a map or a list of those.
Values: TypeAlias = dict[str, object]


def encoded(values: Values) -> object:
    """Return the values as JSON can hold them. A scalar is itself, anything else a map with one key."""
    return {key: _encoded(value) for key, value in values.items()}


def decoded(data: object) -> Values:
    """Return the values that were encoded; raise `ValueError` if this is anything else."""
    match data:
        case dict():
            return {str(key): _decoded(value) for key, value in data.items()}
    raise ValueError("not a map of values")


def _encoded(value: object) -> object:
    if isinstance(value, Other):
        return {"other": str(value)}
    if isinstance(value, dict):
        return {"map": encoded(value)}
    if isinstance(value, list):
        return {"list": list(map(_encoded, value))}
    return value


def _decoded(data: object) -> object:
    match data:
        case {"other": str(text)}:
            return Other(text)
        case {"map": content}:
            return decoded(content)
        case {"list": list(items)}:
            return list(map(_decoded, items))
        case dict() | list():
            raise ValueError("neither a value nor a map or a list of values")
    return data

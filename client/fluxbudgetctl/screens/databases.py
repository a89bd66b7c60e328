"""The line that `status` and `doctor` print for each of intercore's databases."""

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.text import one_line

_MOST_RUNS = 5


def database_line(database: messages.DatabaseInfo) -> str:
    """Return one line with a database's state, its schema, its runs, and the result of the last write-back."""
    schema = "" if database.schema is None else f", schema {database.schema}"
    parts = [f"{database.state}{schema}", _runs(database.runs), _written(database)]
    if database.portfolios:
        parts.insert(2, f"{len(database.portfolios)} portfolios, not adopted")
    return one_line(f"intercore {database.path}: {'; '.join(filter(None, parts))}")


def _runs(runs: tuple[str, ...]) -> str:
    if not runs:
        return "no runs"
    left = len(runs) - _MOST_RUNS
    more = f" and {left} more" if left > 0 else ""
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {', '.join(runs[:_MOST_RUNS])}{more}"


def _written(database: messages.DatabaseInfo) -> str:
    last = f"written back {database.written_at}" if database.written_at else "not written back yet"
    if database.write_state in ("", "ok", "waiting"):
        return last if database.runs else ""
    why = f"{database.write_state}: {database.write_fault}" if database.write_fault else database.write_state
    return f"not written back ({why})" if database.runs else ""

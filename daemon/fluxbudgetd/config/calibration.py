"""calibration.json: costs measured so far. The client writes it, the daemon reads it.

The structs are the protocol's, with constraints: counts are not negative, multipliers are in their range.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fluxbudgetd.config.checking import checked
from fluxbudgetd.config.reading import read_text
from fluxbudgetd.config.schema import Multiplier
from fluxbudgetd.config.shown import Dialect, shown_file
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.messages import MAX_TOKENS

_JSON = Dialect(text="a string", mapping="an object", sequence="an array", nothing="null")
_BYTE = re.compile(r" \(byte (\d+)\)\Z")
_HINT = "write it again with 'fluxbudgetctl calibrate --write', or remove it"

Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class Spread(messages.Spread, frozen=True, kw_only=True):
    """The distribution of a cost, in tokens."""

    mean: Count
    p50: Count
    p90: Count


class PhaseCalibration(messages.PhaseCalibration, frozen=True, kw_only=True):
    """What runs have spent in a phase."""

    billing: Spread
    total: Spread
    sample_size: Count


class AgentCalibration(messages.AgentCalibration, frozen=True, kw_only=True):
    """What an agent has cost when it was given whole documents."""

    billing: Spread
    total: Spread
    sample_size: Count


class SlicingCalibration(messages.SlicingCalibration, frozen=True, kw_only=True):
    """What slicing saves. `multiplier` is None if no new one is proposed."""

    multiplier: Multiplier | None
    median: Annotated[float, Meta(ge=0)] | None
    sliced_runs: Count
    full_runs: Count
    was: Multiplier
    sliced_reviews: Count = 0


class ReviewCalibration(messages.ReviewCalibration, frozen=True, kw_only=True):
    """How the reviews of an input type went."""

    reviews: Count
    measured: Count
    median_billing: Count | None
    median_pct: Count | None
    deferred: Count
    ran_anyway: Count
    overridden: Count


class Provenance(messages.Provenance, frozen=True, kw_only=True):
    """The data that a calibration is based on."""

    runs: Count
    rows: Count
    triages: Count


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of calibration.json. Fields with a default are missing in files that 0.1.0 wrote."""

    v: Literal[1] = 1
    provenance: Provenance
    phases: dict[str, PhaseCalibration]
    agents: dict[str, AgentCalibration]
    slicing: SlicingCalibration
    reviews: dict[str, ReviewCalibration] = {}


def load_calibration(path: str) -> Calibration | None:
    """Return the calibration, or None if the file does not exist; raise `ConfigError`.

    Blocks: call it in a worker thread.
    """
    text = read_text(path)
    return None if text is None else checked(_parsed(text, path), Calibration, path, _JSON, _HINT)


def _parsed(text: str, path: str) -> Any:
    data = text.encode()
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        at = _BYTE.search(str(exc))
        before = data[: int(at[1])] if at else data
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        what = _BYTE.sub("", str(exc))
        raise ConfigError(f"{shown_file(path)}: line {line}, column {column}: {what}", _HINT) from exc

"""Calibration: what phases and agents have cost."""

import msgspec

from fluxbudgetd.wire.messages.base import Answer, Request


class Calibrate(Request, frozen=True, tag="calibrate"):
    """Return what phases and agents have cost, and what slicing saves."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution of a cost, in tokens."""

    mean: int
    p50: int
    p90: int


class PhaseCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What runs have spent in a phase; used if at least three runs were measured."""

    billing: Spread
    total: Spread
    sample_size: int


class AgentCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's rows have cost."""

    billing: Spread
    total: Spread
    sample_size: int


class SlicingCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What slicing saves: sliced runs against the median of the same agents' full runs."""

    multiplier: float | None
    """The proposed multiplier; null: too few runs, or the current one is close enough."""
    median: float | None
    sliced_runs: int
    full_runs: int
    was: float


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The data that a calibration is based on."""

    at: str
    version: str
    ledger: str
    interstat: str
    runs: int
    rows: int
    triages: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A calibration; stored as `calibration.json` beside the configuration."""

    provenance: Provenance
    phases: dict[str, PhaseCalibration]
    agents: dict[str, AgentCalibration]
    slicing: SlicingCalibration
    v: int = 1


class CalibrateAnswer(Answer, frozen=True, kw_only=True, tag="calibrate"):
    """A new calibration. The daemon does not write it; the client may, to `path`."""

    calibration: Calibration
    path: str
    stale_why: str | None

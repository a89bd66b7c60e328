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
    """What an agent has cost when it was given whole documents."""

    billing: Spread
    total: Spread
    sample_size: int


class SlicingCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """What slicing saves: sliced sub-agents against the median of the same agents' unsliced samples, by review."""

    multiplier: float | None
    """The proposed multiplier; null: too few reviews, or the configured one is close enough."""
    median: float | None
    """Of the reviews' ratios; null without any."""
    sliced_runs: int
    """How many sliced sub-agents were compared."""
    full_runs: int
    """How many unsliced samples they were compared with."""
    was: float
    """The configured multiplier."""
    sliced_reviews: int = 0
    """How many reviews these sub-agents belong to."""


class ReviewCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """The reviews of an input type in which at least one agent ran."""

    reviews: int
    measured: int
    """Those with a sample of each launched agent; the medians are over these."""
    median_billing: int | None
    """The median cost, in billing tokens; null without a measured review."""
    median_pct: int | None
    """The median cost in percent of the review's budget, in tokens of the review's cost basis."""
    deferred: int
    """How many agents were deferred."""
    ran_anyway: int
    """How many agents ran although they were deferred."""
    overridden: int
    """How many agents only an override has launched."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The data that a calibration is based on."""

    at: str
    version: str
    ledger: str
    interstat: str
    runs: int
    rows: int
    """How many samples the agents' costs are based on."""
    triages: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A calibration; stored as `calibration.json` beside the configuration."""

    provenance: Provenance
    phases: dict[str, PhaseCalibration]
    agents: dict[str, AgentCalibration]
    slicing: SlicingCalibration
    reviews: dict[str, ReviewCalibration] = {}
    """By input type."""
    v: int = 1


class CalibrateAnswer(Answer, frozen=True, kw_only=True, tag="calibrate"):
    """A new calibration. The daemon does not write it; the client may, to `path`."""

    calibration: Calibration
    path: str
    stale_why: str | None

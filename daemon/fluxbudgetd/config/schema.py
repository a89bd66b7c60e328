"""config.toml: every key with its allowed values and its default."""

from collections import Counter
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fluxbudgetd.config.checking import CombinationError
from fluxbudgetd.wire.messages import MAX_TOKENS, CostBasis, Enforcement

_PHASES = 64
_ALL = 100
_PATH = r"^((/|~/)[^\x00]*)?\Z"
_NAME = "1 to 64 letters, digits, dots, colons, underscores or hyphens"

Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Estimate = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
#: Phases are separated by bars in refusal lines and by commas on the command line.
PhaseName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z", description=_NAME)]
Phases = Annotated[
    tuple[PhaseName, ...], Meta(min_length=1, max_length=_PHASES, description=f"1 to {_PHASES} different names")
]
Multiplier = Annotated[float, Meta(gt=0, le=10)]
Threshold = Annotated[int, Meta(ge=1, le=1000)] | Literal["warn_pct"]
ChannelThresholds = Literal["all"] | tuple[Threshold, ...]
Seconds = Annotated[float, Meta(ge=0.1, le=60)]
Directory = Annotated[
    str,
    Meta(
        pattern=_PATH,
        description="an absolute path, one that begins with ~/, or nothing for the default",
    ),
]
ClaudeDirectory = Annotated[
    str,
    Meta(pattern=r"^[/~][^\x00]*\Z", description="an absolute path, or one that begins with ~/ or ~user/"),
]
DatabasePath = Annotated[
    str,
    Meta(pattern=r"^(/|~/)[^\x00]*\Z", description="an absolute path, or one that begins with ~/"),
]
BudgetFile = Annotated[
    str,
    Meta(
        pattern=_PATH,
        description="an absolute path, one that begins with ~/, or nothing for the installed plugin's",
    ),
]


def _require_different(key: str, values: tuple[int | str, ...], allowed: str) -> None:
    value, count = max(Counter(values).items(), key=lambda entry: entry[1], default=("", 1))
    if count > 1:
        raise CombinationError(key, f"has {value} more than once", allowed)


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run's budget by its complexity, in tokens of its cost basis."""

    trivial: Tokens = msgspec.field(name="1", default=50_000)
    small: Tokens = msgspec.field(name="2", default=100_000)
    medium: Tokens = msgspec.field(name="3", default=250_000)
    large: Tokens = msgspec.field(name="4", default=500_000)
    huge: Tokens = msgspec.field(name="5", default=1_000_000)

    def of_complexity(self, complexity: int) -> int:
        """Return the budget of a complexity, 1 to 5."""
        by_complexity = {1: self.trivial, 2: self.small, 3: self.medium, 4: self.large, 5: self.huge}
        return by_complexity[complexity]


class RunDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a new run, unless the request gives others."""

    complexity: Annotated[int, Meta(ge=1, le=5)] = 3
    warn_pct: Annotated[int, Meta(ge=1, le=99)] = 80
    enforcement: Enforcement = "soft"
    cost_basis: CostBasis = "billing"
    phases: Phases = (
        "brainstorm",
        "brainstorm-reviewed",
        "strategized",
        "planned",
        "plan-reviewed",
        "executing",
        "shipping",
        "reflect",
        "done",
    )
    budgets: Budgets = Budgets()

    def __post_init__(self) -> None:
        _require_different("phases", self.phases, f"1 to {_PHASES} different names")


class PhaseEstimates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a phase is expected to cost before it is measured, in tokens."""

    default: Estimate = 30_000
    """For phases that `estimates` does not name."""
    estimates: dict[PhaseName, Estimate] = msgspec.field(
        default_factory=lambda: {
            "brainstorm": 30_000,
            "brainstorm-reviewed": 15_000,
            "strategized": 25_000,
            "planned": 35_000,
            "plan-reviewed": 50_000,
            "executing": 150_000,
            "shipping": 100_000,
            "reflect": 10_000,
            "done": 5_000,
        }
    )

    def of(self, phase: str) -> int:
        """Return a phase's estimate."""
        return self.estimates.get(phase, self.default)


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A macro-stage's share of a run's budget in percent, and its minimum in tokens."""

    share: Annotated[int, Meta(ge=0, le=_ALL)]
    floor: Estimate


class Stages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The macro-stages that share a budget."""

    discover: Stage = Stage(10, 2_000)
    design: Stage = Stage(25, 5_000)
    build: Stage = Stage(40, 10_000)
    ship: Stage = Stage(20, 5_000)
    reflect: Stage = Stage(5, 1_000)

    def __post_init__(self) -> None:
        together = sum(stage.share for stage in (self.discover, self.design, self.build, self.ship, self.reflect))
        if together > _ALL:
            raise CombinationError("", f"has shares of {together} in total", f"shares of at most {_ALL} in total")


class Warnings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The percentages of a budget that fire an event; `warn_pct` means the run's own."""

    thresholds: tuple[Threshold, ...] = (50, "warn_pct", 95, 100)

    def __post_init__(self) -> None:
        _require_different("thresholds", self.thresholds, "each threshold once")


class ChannelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A channel that delivers warnings, and the percentages that it delivers (`all`: those of `warnings`)."""

    enabled: bool = True
    thresholds: ChannelThresholds = ("warn_pct", 100)

    def __post_init__(self) -> None:
        if self.thresholds != "all":
            _require_different("thresholds", self.thresholds, "each threshold once")


class DesktopConfig(ChannelConfig, frozen=True, kw_only=True):
    """Desktop notifications."""

    timeout: Seconds = 5.0


class InterbandConfig(ChannelConfig, frozen=True, kw_only=True):
    """The files for interline, the status line of the Interverse plugins for Claude Code."""

    thresholds: ChannelThresholds = "all"
    root: Directory = ""
    """Empty: `$INTERBAND_ROOT`, else `~/.interband`."""


class CommandConfig(ChannelConfig, frozen=True, kw_only=True):
    """A program that is started for each warning; none if `argv` is empty."""

    argv: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^\x00]*\Z")], ...], Meta(max_length=64, description="up to 64 strings")
    ] = ()
    timeout: Seconds = 10.0


class LogConfig(ChannelConfig, frozen=True, kw_only=True):
    """The daemon's log."""

    thresholds: ChannelThresholds = "all"


class Channels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The channels that deliver warnings. `hook`: in Claude Code's sessions, by its hooks."""

    desktop: DesktopConfig = DesktopConfig()
    interband: InterbandConfig = InterbandConfig()
    command: CommandConfig = CommandConfig()
    hook: ChannelConfig = ChannelConfig()
    log: LogConfig = LogConfig()


class AdmissionRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for sub-agents."""

    subagent_ceiling: Annotated[float, Meta(ge=1, le=1000)] = 3.0
    """How many times its estimate a sub-agent may use."""


class FluxDrive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where flux-drive's settings are."""

    budget_file: BudgetFile = ""
    """Empty: the installed interflux plugin's."""


class Intercore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """intercore's sprints: whether they are adopted, and what is written into intercore's databases."""

    adopt: bool = True
    write_back: bool = True
    rearm: bool = False
    """Make intercore's own budget check refuse every time while a budget is exhausted, not only once."""
    databases: Annotated[tuple[DatabasePath, ...], Meta(max_length=64, description="up to 64 different databases")] = ()
    """Databases to follow in addition to those that are found from sessions and runs."""

    def __post_init__(self) -> None:
        _require_different("databases", self.databases, "up to 64 different databases")


class Beads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The labels of beads: whether they are read, and whether `tokens_spent` is written."""

    read: bool = True
    write_back: bool = False


class Clavain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Clavain's shell."""

    shell: bool = False
    """Load the functions of `fluxbudgetctl shell-init` in each session's shells."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of config.toml."""

    claude_dirs: Annotated[
        tuple[ClaudeDirectory, ...], Meta(max_length=64, description="up to 64 different directories")
    ] = ()
    """Claude Code's directories; empty: `$CLAUDE_CONFIG_DIR`, else the defaults."""
    runs: RunDefaults = RunDefaults()
    phases: PhaseEstimates = PhaseEstimates()
    stages: Stages = Stages()
    admission: AdmissionRules = AdmissionRules()
    warnings: Warnings = Warnings()
    channels: Channels = Channels()
    flux_drive: FluxDrive = FluxDrive()
    intercore: Intercore = Intercore()
    beads: Beads = Beads()
    clavain: Clavain = Clavain()

    def __post_init__(self) -> None:
        _require_different("claude_dirs", self.claude_dirs, "up to 64 different directories")

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Return every percentage that `warnings` or a channel names.

        `budget.warning` and `budget.exceeded` fire regardless of this list.
        """
        channels = self.channels
        wanted: dict[Threshold, None] = dict.fromkeys(self.warnings.thresholds)
        for channel in (channels.desktop, channels.interband, channels.command, channels.hook, channels.log):
            if channel.enabled and channel.thresholds != "all":
                wanted.update(dict.fromkeys(pct for pct in channel.thresholds if pct not in ("warn_pct", _ALL)))
        return tuple(wanted)

"""flux-drive's budgets: built-in defaults, the plugin's file, the calibrated multiplier, the project's file.

Each is laid over the previous one, key by key.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from fluxbudgetd.config.checking import checked, fits, overlay
from fluxbudgetd.config.reading import LARGEST, read_text
from fluxbudgetd.config.schema import Estimate, Multiplier, Tokens
from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.config.yaml_values import DIALECT, Values
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.messages import CostBasis, Enforcement
from fluxbudgetd.wire.text import shown_path, unfold

_PLUGIN = "interflux"
_IN_PLUGIN = os.path.join("config", "flux-drive", "budget.yaml")
_IN_PROJECT = os.path.join(".claude", "flux-drive-budget.yaml")
IN_CACHE = os.path.join("plugins", "cache", "*", _PLUGIN, "*", _IN_PLUGIN)
"""Where the installed plugin's file is, below Claude's directory."""

LARGEST_OF_PROJECT = 64 << 10
"""The size limit of a project's file, in bytes. It comes with any project, so it may be malicious."""

_HINT = "write an allowed value, or remove the key"
_MAX_VERSION = 64
_VERSION_PART = re.compile(r"([0-9]*)(.*)", re.DOTALL)

MinAgents = Annotated[int, Meta(ge=0, le=1000)]


class ReactionBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What the reaction round may cost, as a fraction of the review's budget."""

    fraction: Annotated[float, Meta(ge=0, le=1)] = 0.25
    min_agents: MinAgents = 2


class ReviewBudget(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets of reviews by input type, and estimates of agents by category; in tokens."""

    budgets: dict[str, Tokens] = msgspec.field(
        default_factory=lambda: {
            "plan": 150_000,
            "brainstorm": 80_000,
            "prd": 120_000,
            "spec": 150_000,
            "diff-small": 60_000,
            "diff-large": 200_000,
            "repo": 300_000,
            "other": 150_000,
        }
    )
    agent_defaults: dict[str, Estimate] = msgspec.field(
        default_factory=lambda: {
            "review": 40_000,
            "cognitive": 35_000,
            "research": 15_000,
            "oracle": 80_000,
            "generated": 40_000,
            "reaction": 15_000,
        }
    )
    slicing_multiplier: Multiplier = 0.5
    min_agents: MinAgents = 2
    enforcement: Enforcement = "soft"
    cost_basis: CostBasis = "billing"
    exempt_agents: tuple[Annotated[str, Meta(min_length=1)], ...] = ("fd-safety", "fd-correctness")
    reaction_budget: ReactionBudget = ReactionBudget()
    files: tuple[str, ...] = ()
    """The files that it was made from, lowest precedence first."""


KEYS = frozenset(ReviewBudget.__struct_fields__) - {"files"}
"""Our keys. The files are flux-drive's, which has others."""

#: map → the kind of its values, and its known names. Unknown names count if their value is of that kind.
_OPEN_MAPS = {
    "budgets": (Tokens, ReviewBudget().budgets.keys()),
    "agent_defaults": (Estimate, ReviewBudget().agent_defaults.keys()),
}


def load_review_budget(
    plugin_file: str | None, project_dir: str | None, slicing_multiplier: float | None = None
) -> ReviewBudget:
    """Return the budgets that apply in a project. Arguments that are None and missing files change nothing.

    The files are parsed in this process; the daemon uses `BudgetFiles` instead. `project_dir` is a run's (see
    `wire.text`). Raises `ConfigError`. Blocks.
    """
    review = ReviewBudget()
    if plugin_file is not None:
        review = laid_over(review, _loaded(plugin_file, LARGEST), plugin_file)
    review = with_multiplier(review, slicing_multiplier)
    if project_dir is not None:
        path = project_file(project_dir)
        review = laid_over(review, _loaded(path, LARGEST_OF_PROJECT), path)
    return review


def project_file(project_dir: str) -> str:
    """Return the path of a project's file. `project_dir` is a run's (see `wire.text`)."""
    return os.path.join(os.fsdecode(unfold(project_dir)), _IN_PROJECT)


def with_multiplier(review: ReviewBudget, slicing_multiplier: float | None) -> ReviewBudget:
    """Return the budgets with the calibrated multiplier; None changes nothing."""
    if slicing_multiplier is None:
        return review
    return msgspec.structs.replace(review, slicing_multiplier=slicing_multiplier)


def laid_over(below: ReviewBudget, values: Values | None, path: str) -> ReviewBudget:
    """Return the budgets with a file's values laid over them, key by key; None is a missing file.

    Raises `ConfigError` if a value is not allowed.
    """
    if values is None:
        return below
    data = overlay(msgspec.to_builtins(below), _relevant(values))
    review = checked(data, ReviewBudget, path, DIALECT, _HINT)
    return msgspec.structs.replace(review, files=(*below.files, shown_path(path)))


def budget_file(chosen: str, claude_dirs: Sequence[str]) -> str | None:
    """Return the chosen file (which may start with `~/`), else the installed plugin's, if there is one.

    Raises `ConfigError` if the chosen file does not exist. Blocks.
    """
    if not chosen:
        return next(filter(None, map(installed_budget_file, claude_dirs)), None)
    path = os.path.expanduser(chosen)
    if not os.path.lexists(path):
        raise ConfigError(
            f"{shown_file(path)}: the file does not exist",
            "correct flux_drive.budget_file in config.toml, or leave it out",
        )
    return path


def installed_budget_file(claude_dir: str) -> str | None:
    """Return the path of the budget file of the plugin that is installed in a Claude directory, or None.

    Claude's list of installed plugins is often stale; then the newest version in its cache is used. Blocks.
    """
    listed = [(version, os.path.join(root, _IN_PLUGIN)) for version, root in _listed(claude_dir)]
    cached = [(path.split(os.sep)[-4], path) for path in glob.glob(os.path.join(glob.escape(claude_dir), IN_CACHE))]
    return _newest(listed) or _newest(cached)


def _loaded(path: str, most: int) -> Values | None:
    from fluxbudgetd.config import yaml_nodes  # noqa: PLC0415  loads PyYAML, which the daemon must not

    text = read_text(path, most)
    return None if text is None else yaml_nodes.values(text, path, KEYS)


def _relevant(values: Values) -> Values:
    """Return the values without those that set nothing, and without the plugin's name in the names of agents."""
    relevant: Values = {}
    for name, value in values.items():
        if isinstance(value, dict):
            relevant[name] = {
                key: item for key, item in value.items() if item is not None and _is_ours(name, key, item)
            }
        elif isinstance(value, list):
            relevant[name] = [item.removeprefix(f"{_PLUGIN}:") if isinstance(item, str) else item for item in value]
        elif value is not None:
            relevant[name] = value
    return relevant


def _is_ours(name: str, key: str, value: object) -> bool:
    if name in _OPEN_MAPS:
        kind, known = _OPEN_MAPS[name]
        return key in known or fits(value, kind)
    return key in ReactionBudget.__struct_fields__


def _listed(claude_dir: str) -> Iterator[tuple[str, str]]:
    """Yield the version and directory of each listed installation of the plugin; ignore unknown formats."""
    try:
        text = read_text(os.path.join(claude_dir, "plugins", "installed_plugins.json"))
        content = msgspec.json.decode(text or "{}")
    except (ConfigError, msgspec.DecodeError, RecursionError):
        return
    plugins = content.get("plugins") if isinstance(content, dict) else None
    for name, entry in plugins.items() if isinstance(plugins, dict) else ():
        for installation in entry if isinstance(entry, list) else [entry]:
            if name.partition("@")[0] == _PLUGIN and isinstance(installation, dict):
                root, version = installation.get("installPath"), installation.get("version")
                if isinstance(root, str) and os.path.isabs(root):
                    yield version if isinstance(version, str) else "", root


def _newest(candidates: list[tuple[str, str]]) -> str | None:
    existing = [(_order(version), _written(path), path) for version, path in candidates if os.path.exists(path)]
    return max(existing)[-1] if existing else None


def _order(version: str) -> list[tuple[int, bool, str]]:
    """Return a version's sort key: 0.2.10 is above 0.2.10-rc1, which is above 0.2.9."""
    parts = (_VERSION_PART.fullmatch(part) for part in version[:_MAX_VERSION].split("."))
    return [(int(part[1] or -1), not part[2], part[2]) for part in parts if part is not None]


def _written(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0

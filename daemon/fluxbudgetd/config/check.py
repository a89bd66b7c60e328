"""What `fluxbudgetd --check-config` checks, without a daemon."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

from fluxbudgetd.config.calibration import load_calibration
from fluxbudgetd.config.flux_drive import IN_CACHE, budget_file, load_review_budget
from fluxbudgetd.config.loading import load_config
from fluxbudgetd.config.locations import Locations
from fluxbudgetd.config.schema import Config
from fluxbudgetd.config.settings import calibration_path
from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ConfigError

T = TypeVar("T")


class Checked(NamedTuple):
    """The result for one file: a line to print, or an error."""

    line: str
    error: ConfigError | None


def check(locations: Locations) -> Iterator[Checked]:
    """Yield the results for config.toml, calibration.json and flux-drive's file."""
    config, result = _tried(
        locations.config, partial(load_config, locations.config, required=locations.config_is_chosen)
    )
    yield result
    calibration = calibration_path(locations.config)
    yield _tried(calibration, partial(load_calibration, calibration))[1]
    chosen = (config or Config()).flux_drive.budget_file
    directories = locations.claude_dirs.used((config or Config()).claude_dirs)
    try:
        found = budget_file(chosen, directories)
    except ConfigError as exc:
        yield Checked("", exc)
        return
    path = os.path.join(directories[0], IN_CACHE) if found is None else found
    yield _tried(path, partial(load_review_budget, found, None))[1]


def _tried(path: str, load: Callable[[], T]) -> tuple[T | None, Checked]:
    try:
        value = load()
    except ConfigError as exc:
        return None, Checked("", exc)
    shown = shown_file(path)
    return value, Checked(f"ok: {shown}" if os.path.exists(path) else f"absent: {shown} (defaults)", None)

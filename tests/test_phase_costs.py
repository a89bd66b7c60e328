"""Clavain's calibration file: it applies where our own calibration has too few runs, and cannot do any harm."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from fluxbudgetd.config.phase_costs import PhaseCosts
from fluxbudgetd.config.schema import PhaseEstimates
from fluxbudgetd.policy import phases
from fluxbudgetd.wire.messages import PhaseCalibration, Spread
from harness.daemon import Daemon, Home, started

TABLE = PhaseEstimates()


def entry(runs: object, input_tokens: object, output_tokens: object) -> dict[str, object]:
    return {"runs": runs, "input_tokens": input_tokens, "output_tokens": output_tokens}


def write(project: Path, content: object) -> Path:
    path = project / ".clavain" / "phase-cost-calibration.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def in_phases(**entries: Any) -> dict[str, object]:
    return {"calibrated_at": "2026-03-01T00:00:00Z", "run_count": 5, "phases": entries}


async def refreshed(costs: PhaseCosts, project: Path) -> dict[str, tuple[int, int]]:
    """Return the tokens and the runs of each phase, after the file was checked again."""
    await costs.refresh(str(project))
    return means(costs.known(str(project)))


def means(known: Mapping[str, PhaseCalibration]) -> dict[str, tuple[int, int]]:
    return {phase: (one.billing.mean, one.sample_size) for phase, one in known.items()}


def first_read(project: Path) -> dict[str, tuple[int, int]]:
    """Return what is read for a project that was not read before."""
    costs = PhaseCosts()
    try:
        return anyio.run(refreshed, costs, project)
    finally:
        costs.close()


def test_order_of_the_calibrations() -> None:
    """Ours comes first, if it is based on three runs; then Clavain's, if that is; then the table."""

    def known(runs: int, tokens: int) -> dict[str, PhaseCalibration]:
        spread = Spread(mean=tokens, p50=tokens, p90=tokens)
        return {"executing": PhaseCalibration(billing=spread, total=spread, sample_size=runs)}

    for ours, theirs, estimate in (
        (known(3, 7), known(9, 120_000), (7, "calibration", 3)),
        (known(2, 7), known(3, 120_000), (120_000, "calibration", 3)),
        ({}, known(3, 120_000), (120_000, "calibration", 3)),
        (known(2, 7), known(2, 120_000), (150_000, "table", 0)),
    ):
        assert phases.estimate("executing", "billing", TABLE, ours, theirs) == estimate
        assert phases.estimate("executing", "total", TABLE, ours, theirs) == estimate


def test_entries_that_are_no_counts_are_ignored(tmp_path: Path) -> None:
    """The others still count."""
    counts: list[object] = [-1, 1.5, "9", None, True, [], 2**63, 10**400]
    values: list[object] = [*(entry(3, bad, 1) for bad in counts), *(entry(bad, 1, 1) for bad in (-1, "3", None))]
    values += [entry(3, 0, 0), entry(3, 2**63 - 1, 1), {"runs": 3}, [], None, "executing"]
    odd = {f"odd-{number}": value for number, value in enumerate(values)}
    write(tmp_path, in_phases(executing=entry(5, 80_000, 40_000) | {"models": {"m": 1}}, **odd))
    assert first_read(tmp_path) == {"executing": (120_000, 5)}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'{"phases": []}', b"[" * 60_000, b"\xff\xfe",
        b'{"phases": {"executing": {"runs": 3, "input_tokens": 1, "output_tokens": 1}}}' + b" " * (64 << 10),
    ],
    ids=range(8),
)  # fmt: skip
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    """It changes nothing: the last good one still applies."""

    async def run() -> None:
        costs = PhaseCosts()
        path = write(tmp_path, content)
        assert await refreshed(costs, tmp_path) == {}
        write(tmp_path, in_phases(executing=entry(3, 1, 1)))
        assert await refreshed(costs, tmp_path) == {"executing": (2, 3)}
        write(tmp_path, content)
        assert await refreshed(costs, tmp_path) == {"executing": (2, 3)}
        write(tmp_path, in_phases(executing=entry(4, 1, 1)))
        assert await refreshed(costs, tmp_path) == {"executing": (2, 4)}
        path.unlink()
        assert await refreshed(costs, tmp_path) == {}
        costs.close()

    anyio.run(run)


def test_places_that_are_not_followed(tmp_path: Path) -> None:
    """`.clavain` must be a directory of the project, and the file a regular one. A FIFO is not waited for."""
    elsewhere, linked, fifo = (tmp_path / name for name in ("elsewhere", "linked", "fifo"))
    for project in (elsewhere, linked, fifo):
        project.mkdir()
    write(elsewhere, in_phases(executing=entry(3, 1, 1)))
    (linked / ".clavain").symlink_to(elsewhere / ".clavain")
    (fifo / ".clavain").mkdir()
    os.mkfifo(fifo / ".clavain" / "phase-cost-calibration.json")
    assert first_read(elsewhere) == {"executing": (2, 3)}
    assert first_read(linked) == first_read(fifo) == first_read(tmp_path / "absent") == {}
    assert first_read(Path("\0")) == {}


def test_estimates_of_a_run(home: Home, daemon: Daemon) -> None:
    """Its phases are estimated from its project's file, and a phase that it leaves counts with that estimate."""
    path = write(home.project, in_phases(brainstorm=entry(3, 900, 99), planned=entry(2, 1, 1)))
    run = started(home)
    shown = {line.name: (line.estimate, line.estimate_source, line.sample_size) for line in home.details(run).by_phase}
    assert shown["brainstorm"] == (999, "calibration", 3)
    assert shown["planned"] == (35_000, "table", 0)
    home.ok("advance", "--run", run, "--from", "brainstorm")
    path.unlink()
    assert home.spend(run).provisional == 999

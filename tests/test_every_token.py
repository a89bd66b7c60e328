"""Random histories of sessions and runs: every billed token counts once, whatever happens to the files.

After each step in which everything was read, the numbers of every run are compared with a recount of the files as they
were read, and with what was billed, as far as the files tell.
"""

from pathlib import Path

import pytest

from harness.counting import RealDaemon, in_process
from harness.daemon import Home
from harness.histories import History

#: whole (every session belongs to a run from its beginning), odd times
WORLDS = [(True, False), (False, False), (False, True)]
NAMES = ["whole", "windows", "odd-times"]


def history_in_process(directory: Path, seed: str, acts: int, *, whole: bool, odd_times: bool) -> None:
    with in_process(directory) as daemon:
        History(daemon, seed, whole=whole, odd_times=odd_times).go(acts)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("whole", "odd_times"), WORLDS, ids=NAMES)
def test_runs_have_what_was_billed(tmp_path: Path, seed: int, whole: bool, odd_times: bool) -> None:
    history_in_process(tmp_path, f"quick {seed} {whole:d}{odd_times:d}", 60, whole=whole, odd_times=odd_times)


@pytest.mark.soak
@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize(("whole", "odd_times"), WORLDS, ids=NAMES)
def test_runs_have_what_was_billed_in_many_histories(tmp_path: Path, batch: int, whole: bool, odd_times: bool) -> None:
    for number in range(5):
        directory = tmp_path / str(number)
        directory.mkdir()
        history_in_process(
            directory, f"many {batch} {number} {whole:d}{odd_times:d}", 120, whole=whole, odd_times=odd_times
        )


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_runs_have_what_was_billed_across_kills(home: Home, seed: int) -> None:
    """A real daemon reads whenever a file changes, and is killed at any moment."""
    history = History(RealDaemon(home), f"kills {seed}", whole=seed % 2 == 0, odd_times=False)
    history.go(80)

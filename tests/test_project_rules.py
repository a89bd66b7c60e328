"""A project's file may demand hard enforcement: for runs that start in the project or below it."""

import json
import os
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home
from harness.worktrees import add_worktree


def says(directory: Path, text: str) -> Path:
    """Write a project's file, and return it."""
    path = directory / ".claude" / "flux-drive-budget.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def enforcement(home: Home, directory: Path, *arguments: str) -> str:
    """Start a run in a directory, and return its enforcement."""
    directory.mkdir(parents=True, exist_ok=True)
    found: str = home.json("run", "start", "--project", str(directory), *arguments)["run"]["enforcement"]
    return found


def test_runs_below_are_hard(home: Home, daemon: Daemon) -> None:
    """They are hard, whatever `run start` or a file in between says. Outside the project, the rule does not apply."""
    path = says(home.project, "enforcement: hard\n")
    deep = home.project / "a" / "b"
    says(deep.parent, "enforcement: soft\n")
    result = home.ctl("run", "start", "--id", "r1", "--enforcement", "soft")
    assert (result.returncode, result.stdout) == (0, "r1\n")
    assert result.stderr == f"fluxbudgetctl: the run is hard, because {path} says so\n"
    assert enforcement(home, deep) == enforcement(home, deep, "--enforcement", "soft") == "hard"
    assert enforcement(home, home.root / "beside") == "soft"
    assert home.json("run", "start", "--id", "r2")["hard_by"] == str(path)


def test_repeated_start_finds_the_run(home: Home, daemon: Daemon) -> None:
    """The arguments are the same as before, although the run is hard, and after a person has softened it."""
    path = says(home.project, "enforcement: hard\n")
    start = ("run", "start", "--id", "r1", "--enforcement", "soft")
    assert home.json(*start)["changed"]
    found = home.json(*start)
    assert (found["changed"], found["run"]["enforcement"], "hard_by" in found) == (False, "hard", False)
    assert home.ok("run", "start", "--id", "r1") == "r1"
    home.ok("run", "set", "--run", "r1", "--enforcement", "soft")
    assert home.json(*start)["run"]["enforcement"] == "soft"
    path.unlink()
    assert home.json(*start)["run"]["enforcement"] == "soft"
    daemon.stop()
    home.start()
    assert not home.json(*start)["changed"]


def test_run_that_asks_for_hard_is_not_reported(home: Home, daemon: Daemon) -> None:
    says(home.project, "enforcement: hard\n")
    assert home.ctl("run", "start", "--enforcement", "hard").stderr == ""


def test_rule_applies_in_worktrees(home: Home, daemon: Daemon) -> None:
    """It applies even if the file is not part of the repository."""
    tree = add_worktree(home.project / ".git", home.root / "tree")
    says(home.project, "enforcement: hard\n")
    assert enforcement(home, tree / "src") == "hard"


@pytest.mark.parametrize(
    "text", ["enforcement: [", "enforcement: harder\n", "budgets: {plan: -1}\nenforcement: hard\n", "#" * 70_000]
)
def test_file_that_is_wrong_is_reported(home: Home, daemon: Daemon, text: str) -> None:
    """Its rule is not applied, and the run starts all the same. A rule above it applies."""
    path = says(home.project / "a", text)
    result = home.ctl("run", "start", "--project", str(home.project / "a"))
    assert result.returncode == 0
    assert result.stderr.startswith(f"fluxbudgetctl: a project's rule about enforcement is not applied: {path}: ")
    says(home.project, "enforcement: hard\n")
    assert enforcement(home, home.project / "a") == "hard"


def test_file_that_is_no_file_is_reported(home: Home, daemon: Daemon) -> None:
    path = says(home.project, "")
    path.unlink()
    os.mkfifo(path)
    result = home.ctl("run", "start")
    assert result.returncode == 0
    assert f"{path}: it is not a regular file" in result.stderr


def test_rule_of_a_known_project_is_read_again(home: Home, daemon: Daemon) -> None:
    path = says(home.project, "enforcement: soft\n")
    assert enforcement(home, home.project) == "soft"
    path.write_text("enforcement: hard\n")
    assert enforcement(home, home.project) == "hard"


def test_directory_that_is_no_path_is_refused_as_before(home: Home, daemon: Daemon) -> None:
    for directory in ("relative", "/nul\0"):
        answer = home.ask(messages.RunStart(project_dir=directory))
        assert isinstance(answer, messages.ErrorAnswer)
        assert answer.error.code == "bad_input", json.dumps(answer.error.message)

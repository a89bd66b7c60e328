"""Which of intercore's databases belongs to a directory, and which must not be used."""

import os
import sqlite3
from pathlib import Path

import pytest

from fluxbudgetd.sources.intercore import Found, IntercoreDatabase, find, found_at
from fluxbudgetd.sources.worktrees import places
from fluxbudgetd.wire.text import shown_path
from harness.intercore import IcProject
from harness.privilege import needs_root


def found_from(directory: Path) -> Found | None:
    return find(places(shown_path(str(directory))))


def state(path: Path) -> tuple[str, str]:
    status = IntercoreDatabase(str(path)).read({}).status
    assert status.hint
    return status.state, status.detail


def test_nearest_database_is_found(tmp_path: Path) -> None:
    """It may be in a parent directory."""
    outer, inner = IcProject(tmp_path), IcProject(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "c").mkdir()
    assert found_from(tmp_path / "a") == Found(str(outer.database), None)
    assert found_from(tmp_path / "a" / "b" / "c") == Found(str(inner.database), None)
    assert find([]) is None


def test_directory_without_a_database_is_passed_over(tmp_path: Path) -> None:
    """Looking there creates nothing, in contrast to `ic`."""
    outer = IcProject(tmp_path)
    (tmp_path / "a" / ".clavain").mkdir(parents=True)
    (tmp_path / "b" / ".clavain").mkdir(parents=True)
    (tmp_path / "b" / ".clavain" / "intercore.db").symlink_to("nowhere")
    for name in ("a", "b"):
        assert found_from(tmp_path / name) == Found(str(outer.database), None)
    assert os.listdir(tmp_path / "a" / ".clavain") == []


def test_worktree_finds_the_database_of_the_main_checkout(tmp_path: Path) -> None:
    main, worktree = IcProject(tmp_path / "main"), tmp_path / "worktree"
    administrative = main.root / ".git" / "worktrees" / "worktree"
    administrative.mkdir(parents=True)
    (administrative / "commondir").write_text("../..\n")
    worktree.mkdir()
    (worktree / ".git").write_text(f"gitdir: {administrative}\n")
    assert found_from(worktree) == Found(str(main.database), None)


def test_path_is_real_and_may_be_odd(tmp_path: Path) -> None:
    """Symbolic links above `.clavain` are resolved. The path need not be UTF-8."""
    project = IcProject(tmp_path / os.fsdecode(b"odd-\xff ?#%41"))
    run = project.run_create(project_dir="/p")
    (tmp_path / "link").symlink_to(project.root)
    found = found_from(tmp_path / "link")
    assert found == Found(shown_path(str(project.database)), None)
    assert list(IntercoreDatabase(found.path).read({}).runs) == [run]


def test_linked_clavain_directory_is_refused(tmp_path: Path) -> None:
    """`ic` refuses it, too: it would lead to another project's database."""
    project = IcProject(tmp_path / "other")
    IcProject(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    (here / ".clavain").symlink_to(project.directory)
    found = found_from(here)
    assert found is not None
    assert found.path == str(project.database)
    assert found.fault == f"{here}/.clavain is a symbolic link"
    assert found_at(f"{here}/.clavain/intercore.db") == found
    assert state(here / ".clavain" / "intercore.db") == ("unreadable", found.fault)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_its_place(tmp_path: Path, make: object) -> None:
    """A FIFO is not opened, which would block."""
    assert callable(make)
    path = tmp_path / ".clavain" / "intercore.db"
    path.parent.mkdir()
    make(path)
    assert found_from(tmp_path) == Found(str(path), "it is not a regular file")
    assert state(path) == ("unreadable", "it is not a regular file")


@needs_root("give files away")
def test_database_of_another_user_is_refused(tmp_path: Path) -> None:
    project = IcProject(tmp_path)
    os.chown(project.database, 12345, 12345)
    assert found_from(tmp_path) == Found(str(project.database), "it belongs to another user (uid 12345)")
    assert state(project.database) == ("unreadable", "it belongs to another user (uid 12345)")


def test_configured_database_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "x" / ".clavain" / "intercore.db"
    assert found_at(str(path)) == Found(str(path), None)
    assert state(path) == ("absent", "the file does not exist")


def test_configured_database_may_be_a_link(tmp_path: Path) -> None:
    """SQLite puts the WAL beside the file that the link points to, so that is the path."""
    project = IcProject(tmp_path / "one")
    link = tmp_path / "link.db"
    link.symlink_to(project.database)
    assert found_at(str(link)) == Found(str(project.database), None)
    assert state(link) == ("unreadable", "it is not a regular file")


@pytest.mark.parametrize("directory", ["", "relative", "/nul\0byte", "/\ud800", "/not/there", "/dev/null"])
def test_directories_without_any_database(directory: str) -> None:
    assert find([directory]) is None


def test_nothing_is_found_by_sqlite_itself(tmp_path: Path) -> None:
    """Characters that have a meaning in SQLite's file names belong to the name."""
    project = IcProject(tmp_path / "a?mode=memory")
    run = project.run_create()
    assert list(IntercoreDatabase(str(project.database)).read({}).runs) == [run]
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"file:{project.root.parent}/a?mode=rw", uri=True)

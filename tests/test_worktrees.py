"""Which directories a directory belongs to: its parents, and a worktree's main checkout. The files are real."""

import os
import subprocess
import threading
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from fluxbudgetd.sources import worktrees
from fluxbudgetd.totals.places import Places
from harness.worktrees import add_worktree

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgSign=false")


def places(directory: Path) -> list[Path]:
    """Return the directories that a directory belongs to, without the parents of the test's own directory."""
    return [Path(place) for place in worktrees.places(str(directory))]


def below(root: Path, directory: Path) -> list[str]:
    return [str(place.relative_to(root)) for place in places(directory) if place.is_relative_to(root)]


def made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_directory_is_followed_by_its_parents(tmp_path: Path) -> None:
    assert places(made(tmp_path / "a" / "b")) == [tmp_path / "a" / "b", tmp_path / "a", tmp_path, *tmp_path.parents]
    assert worktrees.places("/") == ("/",)


def test_worktree_that_git_has_made(tmp_path: Path) -> None:
    repo = made(tmp_path / "repo")
    for arguments in (["init", "--quiet"], [*AUTHOR, "commit", "--quiet", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=repo, check=True)
    subprocess.run(["git", "worktree", "add", "--quiet", "../trees/x"], cwd=repo, check=True)
    assert below(tmp_path, tmp_path / "trees" / "x") == ["trees/x", "repo", ".", "trees"]


@pytest.mark.parametrize("relative", [False, True])
def test_worktree_is_followed_by_its_main_checkout(tmp_path: Path, relative: bool) -> None:
    """A directory in it is followed by the same one in the main checkout. Git 2.48 may write relative paths."""
    made(tmp_path / "repo" / "src")
    tree = add_worktree(made(tmp_path / "repo" / ".git"), tmp_path / "trees" / "x", relative=relative)
    expected = ["trees/x/src", "trees/x", "repo/src", "repo", ".", "trees"]
    assert below(tmp_path, made(tree / "src")) == expected


def test_worktree_inside_its_main_checkout(tmp_path: Path) -> None:
    """Claude Code makes its own ones there."""
    tree = add_worktree(made(tmp_path / ".git"), tmp_path / ".claude" / "worktrees" / "x")
    assert below(tmp_path, made(tree / "src")) == [
        *(".claude/worktrees/x/src", ".claude/worktrees/x", "src", "."),
        *(".claude/worktrees", ".claude"),
    ]


def test_bare_repository_stands_for_itself(tmp_path: Path) -> None:
    """Many people keep it in a directory with its worktrees."""
    tree = add_worktree(made(tmp_path / "project" / ".bare"), tmp_path / "elsewhere" / "x")
    assert below(tmp_path, tree) == ["elsewhere/x", "project/.bare", "project", ".", "elsewhere"]


def test_links_are_resolved(tmp_path: Path) -> None:
    """The working directory may be reached through a link, and so may the repository."""
    made(tmp_path / "real" / "repo" / ".git")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    add_worktree(tmp_path / "link" / "repo" / ".git", tmp_path / "tree")
    (tmp_path / "t").symlink_to(tmp_path / "tree")
    assert below(tmp_path, tmp_path / "t") == ["tree", "real/repo", "real", "."]


def test_submodule_of_a_worktree(tmp_path: Path) -> None:
    """A submodule has a file `.git`, too, but no `commondir`: it belongs to the worktree that it is in."""
    tree = add_worktree(made(tmp_path / "repo" / ".git"), tmp_path / "tree")
    modules = made(tmp_path / "repo" / ".git" / "worktrees" / "tree" / "modules" / "sub")
    (made(tree / "sub") / ".git").write_text(f"gitdir: {modules}\n")
    assert below(tmp_path, tree / "sub") == ["tree/sub", "tree", "repo/sub", "repo", "."]


def test_worktrees_that_lie_in_each_other_end(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    add_worktree(made(two / ".git-of-two"), one)
    add_worktree(made(one / ".git-of-one"), two)
    assert {"one", "two", "."} <= set(below(tmp_path, one))


def hostile(path: Path, kind: str) -> None:
    """Make a `.git` that is no worktree's."""
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "huge":
            with path.open("wb") as file:
                file.write(b"gitdir: ")
                file.truncate(1 << 34)
        case _:
            path.write_bytes(kind.encode("latin-1"))


@pytest.mark.parametrize(
    "kind",
    [
        *("fifo", "loop", "device", "huge"),
        *("", "gitdir:", "gitdir: \n", "gitdir: /\n", "gitdir: a\0b\n", "gitdir: .git\n", "gitdir: \xff\n"),
        *("gitdir: /proc/self/fd/0\n", f"gitdir: {'x/' * 4000}\n", f"gitdir: {'y' * 9000}\n"),
    ],
)
def test_unusual_file_is_no_worktree(tmp_path: Path, kind: str) -> None:
    hostile(tmp_path / ".git", kind)
    assert places(tmp_path) == [tmp_path, *tmp_path.parents]


@pytest.mark.parametrize("kind", ["fifo", "loop", "huge", "device", "", "..", "../../../..", "/", "\0"])
def test_unusual_commondir_is_no_worktree(tmp_path: Path, kind: str) -> None:
    """A worktree's own directory must lie in `worktrees/` of the repository."""
    tree = add_worktree(made(tmp_path / "repo" / ".git"), tmp_path / "tree")
    common = tmp_path / "repo" / ".git" / "worktrees" / "tree" / "commondir"
    common.unlink()
    hostile(common, kind)
    assert below(tmp_path, tree) == ["tree", "."]


@pytest.mark.parametrize("directory", ["/no/such/place", "relative", "", "/nul\0", f"/{'x' * 5000}", "/\ud800"])
def test_any_text_has_places(directory: str) -> None:
    assert worktrees.places(directory)


def test_hanging_directory_costs_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parents are used meanwhile, and other directories are looked up. A real file system cannot hang on demand."""
    hanging, resume = str(tmp_path / "hanging"), threading.Event()
    begun: list[str] = []
    really = worktrees.places

    def slow(directory: str) -> tuple[str, ...]:
        begun.append(directory)
        if directory == hanging:
            resume.wait()
        return really(directory)

    monkeypatch.setattr(worktrees, "places", slow)
    tree = add_worktree(made(tmp_path / "repo" / ".git"), tmp_path / "tree")

    async def body() -> None:
        known = Places()
        for _ in range(3):
            assert await known.of(hanging, anyio.current_time() + 0.05) == worktrees.parents(hanging)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(known.of, hanging, anyio.current_time() + 0.05)
        assert begun == [hanging]
        assert str(tmp_path / "repo") in await known.of(str(tree), anyio.current_time() + 60)
        resume.set()
        with anyio.fail_after(60):
            while begun.count(hanging) == 1:
                await known.of(hanging, anyio.current_time() + 60)
                await anyio.lowlevel.checkpoint()

    try:
        anyio.run(body)
    finally:
        resume.set()

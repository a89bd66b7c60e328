"""Git's files of a linked worktree, without git."""

import os
from pathlib import Path


def add_worktree(repository: Path, root: Path, *, relative: bool = False) -> Path:
    """Make `root` a linked worktree of a repository (`…/.git`, or a bare one), and return it."""
    administrative = repository / "worktrees" / root.name
    administrative.mkdir(parents=True)
    root.mkdir(parents=True, exist_ok=True)
    there = os.path.relpath(administrative, root) if relative else administrative
    (root / ".git").write_text(f"gitdir: {there}\n")
    (administrative / "commondir").write_text("../..\n")
    (administrative / "gitdir").write_text(f"{root / '.git'}\n")
    (administrative / "HEAD").write_text("ref: refs/heads/feature\n")
    return root

"""`service install --sprints`: which directories are found, and what the drop-in says. Nothing is installed."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxbudgetctl.service import sprints, units
from fluxbudgetctl.service.units import State
from harness.daemon import Home

FOUND = sprints.Found(("/p/.clavain", "/p/.beads"))


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def found(root: Path) -> list[str]:
    return [os.path.relpath(place, root) for place in sprints.find([str(root)], os.geteuid()).places]


def test_projects_at_several_levels_are_found(tmp_path: Path) -> None:
    """The directory itself, projects, and projects inside projects."""
    made(tmp_path, ".clavain", "a/.clavain", "a/.beads", "b/src", "c/d/e/f/.beads", "c/d/e/f/g/.beads")
    assert found(tmp_path) == [".clavain", "a/.beads", "a/.clavain", "c/d/e/f/.beads"]


def test_what_is_not_a_project_is_left_out(tmp_path: Path) -> None:
    """Files, symlinks, hidden directories, installed packages, odd names, and directories without permission."""
    made(
        tmp_path,
        ".cache/a/.clavain",
        "node_modules/a/.clavain",
        "locked/.clavain",
        "real/.clavain",
        "x",
        "y",
        "z\n/.beads",
    )
    (tmp_path / "x" / ".clavain").symlink_to(tmp_path / "real" / ".clavain")
    (tmp_path / "y" / ".beads").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "locked").chmod(0o000 if os.geteuid() else 0o700)
    (tmp_path / "loop").symlink_to(tmp_path)
    try:
        assert [name for name in found(tmp_path) if not name.startswith("locked")] == ["real/.clavain"]
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_another_users_directories_are_left_out(tmp_path: Path) -> None:
    made(tmp_path, "a/.clavain")
    assert sprints.find([str(tmp_path)], os.geteuid() + 1).places == ()


def test_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprints, "_MOST_SEARCHED", 3)
    made(tmp_path, ".clavain", *(f"p{number}/.beads" for number in range(9)))
    searched = sprints.find([str(tmp_path)], os.geteuid())
    assert (len(searched.places), searched.is_all) == (3, False)


def test_drop_in_opens_what_was_found_and_what_may_come() -> None:
    """Without beads the network stays closed: only bd's server needs it."""
    text = sprints.render(["/p", "/q"], FOUND, ["/opt/bd", "/usr/bin"], "1.2.3")
    assert text.splitlines()[1:] == [
        "[X-Fluxbudget]",
        "Directory=/p",
        "Directory=/q",
        "",
        "[Service]",
        "ReadWritePaths=-/p/.clavain",
        "ReadWritePaths=-/p/.beads",
        "ReadWritePaths=-/q/.clavain",
        "ReadWritePaths=-/q/.beads",
        "Environment=PATH=/opt/bd:/usr/bin",
        "RestrictAddressFamilies=AF_INET",
        "IPAddressAllow=localhost",
    ]
    without = sprints.render(["/p"], sprints.Found(("/p/.clavain",)), [], "1.2.3")
    assert "AF_INET" not in without
    assert "localhost" not in without
    assert "PATH=" not in without.replace("Paths=", "")


def test_projects_in_tmp_are_bound() -> None:
    """The service has a /tmp of its own."""
    text = sprints.render(["/tmp/a:b"], sprints.Found(()), [], "1")  # noqa: S108  nothing is created there
    assert r'BindPaths="-/tmp/a\\:b/.clavain"' in text
    assert "ReadWritePaths" not in text


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"))), min_size=1, max_size=3))
@example(["a b", "\"'\\%h $x", ""])
def test_directories_with_odd_names_are_read_back(names: list[str]) -> None:
    directories = list(dict.fromkeys(f"/{name}" for name in names))
    text = sprints.render(directories, sprints.Found(()), [], "1")
    file = units.File(path="/x", state=State.OURS, text=text)
    assert sprints.directories_in(file) == directories


def test_drop_in_is_recognized(tmp_path: Path) -> None:
    directory = made(tmp_path, sprints.DIRECTORY)
    assert sprints.read(str(directory)).state is State.MISSING
    file = directory / sprints.DIRECTORY / sprints.NAME
    file.write_text(sprints.render(["/p"], FOUND, [], "1.2.3"))
    installed = sprints.read(str(directory))
    assert (installed.state, installed.version) == (State.OURS, "1.2.3")
    assert sprints.opened_in(installed) == ["/p/.clavain", "/p/.beads"]
    file.write_text(file.read_text() + "ReadWritePaths=/\n")
    assert sprints.read(str(directory)).state is State.EDITED


def test_path_has_the_directories_of_bd_first(tmp_path: Path) -> None:
    for name in ("bd", "dolt"):
        program = made(tmp_path, f"{name}-bin") / f"{name}-bin" / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    shell = {"PATH": f"{tmp_path}/dolt-bin:{tmp_path}/bd-bin"}
    expected = [f"{tmp_path}/bd-bin", f"{tmp_path}/dolt-bin", "/usr/bin"]
    assert sprints.search_path(shell, f"/usr/bin:{tmp_path}/bd-bin") == expected
    assert sprints.search_path({"PATH": "/nowhere"}, "/usr/bin") == []


def test_directories_must_exist(home: Home) -> None:
    ended = home.ctl("service", "install", "--print", "--sprints", "nowhere")
    assert (ended.returncode, ended.stdout) == (65, "")
    assert "nowhere is not a directory; nothing was written" in ended.stderr


def test_print_shows_the_drop_in(home: Home) -> None:
    made(home.project, "a/.clavain")
    shown = home.ok("service", "install", "--print", "--sprints", ".", "a", "--sprints", str(home.root / "project"))
    _, _, drop_in = shown.partition(f"{sprints.DIRECTORY}/{sprints.NAME}\n")
    opened = f"{home.project.resolve()}/a/.clavain"
    assert opened in drop_in
    assert drop_in.count("Directory=") == 2
    without = home.ok("service", "install", "--print", "--no-sprints")
    assert sprints.NAME not in without

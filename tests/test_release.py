"""A release: its version, its changelog section, and the checks of `make release-check`."""

import io
import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import msgspec
import pytest

from harness.distributions import (
    IN_SDIST,
    differences,
    sbom_problems,
    sdist_files,
    sdist_problems,
    wheel_files,
    wheel_problems,
)
from release_check import ReleaseError, expect, refuse, run

ROOT = Path(__file__).parents[1]
SOURCES = {
    "daemon/fluxbudgetd/__init__.py": b"d",
    "client/fluxbudgetctl/main.py": b"c",
    "client/native/pipe.c": b"n",
    "config/fluxbudget.toml": b"t",
    "systemd/fluxbudgetd.socket": b"s",
    "tests/conftest.py": b"x",
}
WHEEL = {
    "fluxbudgetd/__init__.py": b"d",
    "fluxbudgetctl/main.py": b"c",
    "fluxbudgetd/config/fluxbudget.toml": b"t",
    "fluxbudgetctl/systemd/fluxbudgetd.socket": b"s",
    "fluxbudget-1.data/scripts/fluxbudgetctl": b"\x7fELF",
    "fluxbudget-1.dist-info/METADATA": b"m",
}
DEPENDENCIES = {"anyio": "4.14.0", "pyyaml": "6.0.3"}


def sbom(version: str = "1", **changed: str | None) -> bytes:
    """Return an SBOM of this version. `changed` replaces versions of dependencies; None leaves one out."""
    versions = {"anyio": "4.14.0", "PyYAML": "6.0.3", **changed}
    components = [{"name": name, "version": version} for name, version in versions.items() if version is not None]
    root = {"name": "fluxbudget", **({"version": version} if version else {})}
    return msgspec.json.encode({"bomFormat": "CycloneDX", "metadata": {"component": root}, "components": components})


def test_changelog_has_a_dated_and_linked_section_for_each_release() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased, *released = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert unreleased == "[Unreleased]"
    versions = []
    for title in released:
        matched = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}", title)
        assert matched, title
        versions.append(matched[1])
    links = dict(re.findall(r"^\[(\S+)\]: (\S+)$", text, re.MULTILINE))
    assert list(links) == ["Unreleased", *versions]
    with (ROOT / "pyproject.toml").open("rb") as file:
        source = tomllib.load(file)["project"]["urls"]["Source"]
    assert links["Unreleased"] == f"{source}/compare/v{versions[0]}...HEAD"
    assert all(link.startswith(f"{source}/") for link in links.values())


def test_contents_of_archives(tmp_path: Path) -> None:
    """Paths in an sdist are relative to its top directory. Directories are ignored."""
    sdist, wheel = tmp_path / "x.tar.gz", tmp_path / "x.whl"
    with tarfile.open(sdist, "w:gz") as archive:
        for path, kind in (("x-1/tests", tarfile.DIRTYPE), ("x-1/tests/a.py", tarfile.REGTYPE)):
            member = tarfile.TarInfo(path)
            member.type, member.size = kind, 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"abc"))
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("x/a.py", "abc")
    assert sdist_files(sdist) == {"tests/a.py": b"abc"}
    assert wheel_files(wheel) == {"x/a.py": b"abc"}


def test_sdist_is_what_git_tracks() -> None:
    tracked = {*IN_SDIST, "tests/test_new.py"}
    assert sdist_problems({*tracked, "PKG-INFO"}, tracked) == []
    assert sdist_problems({*IN_SDIST, "PKG-INFO"}, tracked) == ["the sdist lacks tests/test_new.py"]
    assert sdist_problems({*tracked, "PKG-INFO", ".venv/x"}, tracked) == [
        "the sdist contains .venv/x, which git does not track"
    ]


def test_sdist_needs_some_files_even_if_git_does_not_track_them() -> None:
    assert sdist_problems({"PKG-INFO"}, []) == [f"the sdist lacks {path}" for path in sorted(IN_SDIST)]


def test_wheel_has_the_packages_and_their_data() -> None:
    """Tests and the client's C sources stay in the sdist; metadata and scripts come from the build."""
    assert wheel_problems(WHEEL, SOURCES) == []
    config = "fluxbudgetd/config/fluxbudget.toml"
    assert wheel_problems({path: WHEEL[path] for path in WHEEL if path != config}, SOURCES) == [
        f"the wheel lacks {config}"
    ]
    assert wheel_problems({**WHEEL, "fluxbudgetd/__pycache__/x.pyc": b""}, SOURCES) == [
        "the wheel has fluxbudgetd/__pycache__/x.pyc in addition"
    ]
    assert wheel_problems({**WHEEL, config: b"T"}, SOURCES) == [f"the wheel has another {config}"]


def test_wheels_of_the_tree_and_the_sdist_are_compared_byte_by_byte() -> None:
    assert differences(WHEEL, dict(WHEEL), "it") == []
    script = "fluxbudget-1.data/scripts/fluxbudgetctl"
    assert differences(WHEEL, {**WHEEL, script: b"#!/bin/sh"}, "it") == [f"it has another {script}"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sbom(), []),
        (sbom(version="2"), ["the SBOM describes fluxbudget 2, not 1"]),
        (sbom(version=""), ["the SBOM describes fluxbudget without a version, not 1"]),
        (sbom(anyio=None), ["the SBOM lists no version of anyio, but 4.14.0 is installed"]),
        (sbom(PyYAML="6.0.4"), ["the SBOM lists 6.0.4 of pyyaml, but 6.0.3 is installed"]),
        (sbom(pytest="9"), ["the SBOM lists 9 of pytest, but no version is installed"]),
    ],
    ids=["right", "another version", "no version", "missing", "another dependency", "additional"],
)
def test_sbom_lists_what_is_installed(content: bytes, said: list[str]) -> None:
    assert sbom_problems(content, "1", DEPENDENCIES) == said


def test_failed_command_ends_the_check_with_its_output() -> None:
    script = "import sys; print('out'); sys.exit('err')"
    with pytest.raises(ReleaseError, match=r"exit code 1\nout\nerr"):
        run([sys.executable, "-c", script])
    assert run([sys.executable, "-c", "print('out')"]) == "out\n"


def test_problems_end_the_check() -> None:
    refuse([])
    with pytest.raises(ReleaseError, match=r"a\nb"):
        refuse(["a", "b"])
    expect("it", "x", "x")
    with pytest.raises(ReleaseError, match="it: 'x', expected 'y'"):
        expect("it", "x", "y")

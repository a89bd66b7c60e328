"""The contents of sdists, wheels and SBOMs, compared with what they should contain."""

import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import msgspec
from packaging.utils import canonicalize_name

#: Directories of the source tree whose files a wheel contains, and where it has them.
IN_WHEEL = {
    "daemon/fluxbudgetd": "fluxbudgetd",
    "client/fluxbudgetctl": "fluxbudgetctl",
    "systemd": "fluxbudgetctl/systemd",
    "config": "fluxbudgetd/config",
}
#: Files that every sdist must have, whether or not git tracks them: one of each kind that its users need.
IN_SDIST = (
    "LICENSE",
    "README.md",
    "bench/run.py",
    "client/native/compile.py",
    "config/fluxbudget.toml",
    "docs/protocol.md",
    "hatch_build.py",
    "pyproject.toml",
    "systemd/fluxbudgetd.socket",
    "tests/conftest.py",
)


def sdist_files(sdist: Path) -> dict[str, bytes]:
    """Return the contents of an sdist's files by their paths below its top directory."""
    with tarfile.open(sdist) as archive:
        found = {}
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found[str(PurePosixPath(*PurePosixPath(member.name).parts[1:]))] = file.read()
    return found


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """Return the contents of a wheel's files by their paths."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sdist_problems(sdist: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Return what is wrong with an sdist's paths: it must contain what is under version control, and PKG-INFO."""
    found, expected = set(sdist), {*tracked, *IN_SDIST, "PKG-INFO"}
    missing = [f"the sdist lacks {path}" for path in sorted(expected - found)]
    return missing + [f"the sdist contains {path}, which git does not track" for path in sorted(found - expected)]


def wheel_problems(wheel: Mapping[str, bytes], sdist: Mapping[str, bytes]) -> list[str]:
    """Return what is wrong with a wheel: it must contain metadata, scripts and the sdist's files in their places."""
    places = {place: content for path, content in sdist.items() if (place := _place(path)) is not None}
    found = {path: content for path, content in wheel.items() if not _is_made_by_the_build(path)}
    return differences(places, found, "the wheel")


def differences(expected: Mapping[str, bytes], found: Mapping[str, bytes], where: str) -> list[str]:
    """Return how the files found at `where` differ from the expected ones."""
    missing = [f"{where} lacks {path}" for path in sorted(expected.keys() - found.keys())]
    extra = [f"{where} has {path} in addition" for path in sorted(found.keys() - expected.keys())]
    common = sorted(expected.keys() & found.keys())
    return missing + extra + [f"{where} has another {path}" for path in common if expected[path] != found[path]]


class _Component(msgspec.Struct):
    name: str
    version: str = ""


class _Metadata(msgspec.Struct):
    component: _Component


class _Sbom(msgspec.Struct):
    metadata: _Metadata
    components: list[_Component] = []


def sbom_problems(sbom: bytes, version: str, dependencies: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a CycloneDX SBOM: it describes one version of fluxbudget and lists its dependencies.

    `dependencies` has the versions by canonical name.
    """
    read = msgspec.json.decode(sbom, type=_Sbom)
    root = read.metadata.component
    listed: dict[str, str] = {canonicalize_name(one.name): one.version for one in read.components}
    problems = []
    if (root.name, root.version) != ("fluxbudget", version):
        problems.append(f"the SBOM describes {root.name} {root.version or 'without a version'}, not {version}")
    for name in sorted(listed.keys() | dependencies.keys()):
        found, expected = listed.get(name, "no version"), dependencies.get(name, "no version")
        if found != expected:
            problems.append(f"the SBOM lists {found} of {name}, but {expected} is installed")
    return problems


def _place(path: str) -> str | None:
    for above, place in IN_WHEEL.items():
        if path.startswith(f"{above}/"):
            return place + path.removeprefix(above)
    return None


def _is_made_by_the_build(path: str) -> bool:
    return PurePosixPath(path).parts[0].endswith((".dist-info", ".data"))

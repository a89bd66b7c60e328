"""Unit files: rendering them from the templates, and recognizing what is at their paths."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxbudgetctl.failure import Failure
from fluxbudgetctl.service import package, quoting, units
from fluxbudgetctl.service.units import SERVICE, SOCKET, UNITS, State

TEMPLATES = {name: package.template(name) for name in UNITS}
PROGRAM = ("/opt/venv/bin/fluxbudgetd",)
#: Text that a unit can contain.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.sampled_from(" \\\"'%$;#:=-"))
NAMES = TEXT.map(lambda text: f"/{text}")


def rendered(
    carried: Mapping[str, str] | None = None, code: tuple[str, ...] = (), version: str = "1.2.3"
) -> dict[str, str]:
    return units.render(TEMPLATES, PROGRAM, carried or {}, code, version)


def written(directory: Path, texts: Mapping[str, str]) -> dict[str, units.File]:
    for name, text in texts.items():
        (directory / name).write_text(text)
    return {name: units.read(str(directory), name) for name in texts}


def settings(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def words_of(text: str, key: str) -> set[str]:
    return {word for value in settings(text, key) for word in quoting.words(value)}


@given(st.lists(TEXT.filter(bool)))
@example(["50%%", "%h"])
def test_quoted_words_are_read_back(texts: list[str]) -> None:
    """(The tests with a real manager show that systemd reads them in the same way.)"""
    assert quoting.words(" ".join(map(quoting.word, texts))) == texts


@given(st.lists(NAMES, min_size=1, max_size=3).map(tuple))
def test_command_starts_its_program(program: tuple[str, ...]) -> None:
    assert quoting.program_of(quoting.command(program)) == program[0]


@pytest.mark.parametrize("text", ["/a\nb", "/a\x00", "/a\udcff", "/a\x1b[0m", "/a\u2028b"])
def test_text_that_a_unit_cannot_contain_is_refused(text: str) -> None:
    for quote in (quoting.word, quoting.argument, quoting.whole):
        with pytest.raises(Failure, match="a unit file cannot contain"):
            quote(text)


@pytest.mark.parametrize("text", ["/a ", "/a\\"])
def test_unquoted_value_cannot_end_in_a_blank_or_backslash(text: str) -> None:
    with pytest.raises(Failure, match="a unit file cannot contain"):
        quoting.whole(text)


def test_rest_is_taken_from_the_template() -> None:
    for name, text in rendered().items():
        marker, _, rest = text.partition("\n")
        assert marker.startswith("# Written by 'fluxbudgetctl service install' of fluxbudget 1.2.3. ")
        there = TEMPLATES[name].splitlines()
        assert [line for line in rest.splitlines() if line not in there] == (
            [f"ExecStart={PROGRAM[0]}"] if name == SERVICE else []
        )
        assert len(rest.splitlines()) == len(there)


def test_every_directory_follows_the_environment() -> None:
    """Then no unit names a default directory, so unused directories are neither created nor opened."""
    carried = {
        "CLAUDE_CONFIG_DIR": "/x/claude",
        "XDG_STATE_HOME": "/x/the state",
        "INTERBAND_ROOT": "/x/band",
        "FLUXBUDGET_SOCKET": "/x/run/s.sock",
    }
    texts = rendered(carried)
    values = [line.partition("=")[2] for text in texts.values() for line in text.splitlines() if line[:1] != "#"]
    usual = (units.STATE, units.INTERBAND, units.INTERSTAT, units.OTHER_INTERSTAT, units.RUNTIME)
    assert all(any(place in value for text in TEMPLATES.values() for value in text.splitlines()) for place in usual)
    assert not [value for value in values for place in usual if place in value]
    open_places = {
        word.lstrip("-") for value in settings(texts[SERVICE], "ReadWritePaths") for word in quoting.words(value)
    }
    moved = {"/x/claude/interstat", "/x/the state/fluxbudget", "/x/band"}
    assert open_places == {*moved, "/x/run"}
    made = {word for value in settings(texts[SOCKET], "ExecStartPre") for word in quoting.words(value)}
    assert made >= moved
    assert settings(texts[SOCKET], "ListenStream") == ["/x/run/s.sock"]
    assert units.carried_in(units.File(path="", state=State.OURS, text=texts[SERVICE])) == carried


def test_several_claude_directories_are_opened() -> None:
    """Without the variable, the second one follows `$XDG_CONFIG_HOME`."""
    texts = rendered({"CLAUDE_CONFIG_DIR": "/x/a b,/tmp/c", "XDG_CONFIG_HOME": "/d"})
    assert {"-/x/a b/interstat", "-/tmp/c/interstat"} <= set(words_of(texts[SERVICE], "ReadWritePaths"))
    assert settings(texts[SERVICE], "BindReadOnlyPaths") == ["-/tmp/c"]
    assert "-/d/claude/interstat" in words_of(rendered({"XDG_CONFIG_HOME": "/d"})[SERVICE], "ReadWritePaths")


def test_interstat_db_overrides_claude_config_dir() -> None:
    texts = rendered({"CLAUDE_CONFIG_DIR": "/x/claude", "INTERSTAT_DB": "/y/metrics.db"})
    places = words_of(texts[SERVICE], "ReadWritePaths")
    assert "-/y" in places
    assert "-/x/claude/interstat" not in places


def test_directories_in_tmp_are_bound_into_the_service() -> None:
    texts = rendered({"XDG_STATE_HOME": "/tmp/s", "CLAUDE_CONFIG_DIR": "/tmp/c"}, ("/var/tmp/v:1", "/opt/v"))  # noqa: S108
    assert settings(texts[SERVICE], "BindReadOnlyPaths") == ['"-/var/tmp/v\\\\:1"', "-/tmp/c"]
    assert settings(texts[SERVICE], "BindPaths") == ["-/tmp/s/fluxbudget", "-/tmp/c/interstat"]


def test_what_is_carried_over() -> None:
    environ = {
        "CLAUDE_CONFIG_DIR": "claude",
        "INTERSTAT_DB": "",
        "XDG_CONFIG_HOME": "relative, and so invalid",
        "XDG_STATE_HOME": "relative",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "FLUXBUDGET_SOCKET": "/run/user/1/fluxbudget/fluxbudgetd.sock",
        "HOME": "/home/u",
    }
    assert units.carried_over(environ, 1) == {"CLAUDE_CONFIG_DIR": f"{os.getcwd()}/claude"}
    environ |= {
        "CLAUDE_CONFIG_DIR": " claude,~root/x ,/a/",
        "XDG_CONFIG_HOME": "/c",
        "FLUXBUDGET_SOCKET": "/run/user/1/s",
    }
    assert units.carried_over(environ, 1) == {
        "CLAUDE_CONFIG_DIR": f"{os.getcwd()}/claude,{os.path.expanduser('~root')}/x,/a",
        "XDG_CONFIG_HOME": "/c",
        "FLUXBUDGET_SOCKET": "/run/user/1/s",
    }


def test_written_unit_is_ours_until_it_is_edited(tmp_path: Path) -> None:
    found = written(tmp_path, rendered())
    assert {(one.state, one.version) for one in found.values()} == {(State.OURS, "1.2.3")}
    service = tmp_path / SERVICE
    service.write_text(service.read_text().replace("Restart=on-failure", "Restart=no"))
    assert units.read(str(tmp_path), SERVICE).state is State.EDITED


def test_other_files_are_foreign_or_masks(tmp_path: Path) -> None:
    def state(name: str) -> State:
        return units.read(str(tmp_path), name, str(tmp_path / "runtime")).state

    ours = rendered()[SERVICE]
    assert state("nothing.service") is State.MISSING
    (tmp_path / "foreign.service").write_text("[Unit]\n")
    (tmp_path / "bytes.service").write_bytes(b"\xff\xfe")
    (tmp_path / "directory.service").mkdir()
    (tmp_path / "elsewhere").write_text(ours)
    (tmp_path / "link.service").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "broken.service").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo.service")
    for name in ("foreign", "bytes", "directory", "link", "broken", "fifo"):
        assert state(f"{name}.service") is State.FOREIGN, name
    (tmp_path / "null.service").symlink_to(os.devnull)
    (tmp_path / "empty.service").touch()
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / SERVICE).symlink_to(os.devnull)
    for name in ("null.service", "empty.service", SERVICE):
        assert state(name) is State.MASKED, name
    (tmp_path / SERVICE).write_text(ours)  # systemd reads it before the runtime directory
    assert state(SERVICE) is State.OURS


def test_where_the_socket_listens(tmp_path: Path) -> None:
    usual = written(tmp_path, rendered())[SOCKET]
    assert units.listen_path(usual, "/run/user/7") == "/run/user/7/fluxbudget/fluxbudgetd.sock"
    chosen = written(tmp_path, rendered({"FLUXBUDGET_SOCKET": "/x/50%t/s"}))[SOCKET]
    assert units.listen_path(chosen, "/run/user/7") == "/x/50%t/s"
    assert units.listen_path(units.read(str(tmp_path), "nothing.socket"), "/run") is None


def test_program_is_the_installed_script() -> None:
    (path,) = package.daemon_command()
    assert os.path.basename(path) == "fluxbudgetd"
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/tmp/venv/bin/fluxbudgetd", "machine starts"),  # noqa: S108
        ("/home/u/.cache/uv/archive-v0/x/bin/fluxbudgetd", "cache"),
        ("/c/pipx/x/bin/fluxbudgetd", "cache"),
        ("/home/u/.local/bin/fluxbudgetd", None),
    ],
)
def test_temporary_paths_are_recognized(path: str, word: str | None) -> None:
    why = package.why_temporary(path, "/home/u", "/c")
    assert (why is None) if word is None else (why is not None and word in why)

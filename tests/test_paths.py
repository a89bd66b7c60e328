"""Paths of the socket, state, sources and configuration, for every combination of environment and options."""

import pwd
from pathlib import Path

import pytest

from fluxbudgetd.config.locations import interstat_database, locate
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.paths import NoHomeError, socket_path

UNUSED_UID = 4_000_000_000  # has no /run/user directory


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FLUXBUDGET_SOCKET": "/a/b.sock", "XDG_RUNTIME_DIR": "/run/x"}, "/a/b.sock"),
        ({"XDG_RUNTIME_DIR": "/run/x", "HOME": "/h"}, "/run/x/fluxbudget/fluxbudgetd.sock"),
        ({"XDG_RUNTIME_DIR": "", "HOME": "/h"}, "/h/.local/state/fluxbudget/run/fluxbudgetd.sock"),
        ({"XDG_RUNTIME_DIR": "relative", "HOME": "/h"}, "/h/.local/state/fluxbudget/run/fluxbudgetd.sock"),
        ({"HOME": "/h"}, "/h/.local/state/fluxbudget/run/fluxbudgetd.sock"),
    ],
)
def test_socket_path(environ: dict[str, str], expected: str) -> None:
    assert socket_path(environ, UNUSED_UID) == expected


def test_relative_socket_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert socket_path({"FLUXBUDGET_SOCKET": "x.sock"}, UNUSED_UID) == str(tmp_path / "x.sock")


@pytest.mark.parametrize(
    ("environ", "arguments", "state", "database"),
    [
        ({"HOME": "/h"}, {}, "/h/.local/state/fluxbudget", ""),
        ({"HOME": "/h", "XDG_STATE_HOME": "/s"}, {}, "/s/fluxbudget", ""),
        ({"HOME": "/h", "XDG_STATE_HOME": "relative"}, {}, "/h/.local/state/fluxbudget", ""),
        ({"HOME": "/h", "STATE_DIRECTORY": "/d:/e"}, {}, "/d", ""),
        ({"HOME": "/h", "INTERSTAT_DB": "/i.db"}, {}, "/h/.local/state/fluxbudget", "/i.db"),
        ({"HOME": "/h", "INTERSTAT_DB": "~/i.db"}, {"state_dir": "~/s"}, "/h/s", "/h/i.db"),
        (
            {"HOME": "/h", "INTERSTAT_DB": "/i.db", "STATE_DIRECTORY": "/d"},
            {"state_dir": "/own", "interstat_db": "/own.db"},
            "/own",
            "/own.db",
        ),
    ],
)
def test_state_directory_and_database(
    environ: dict[str, str], arguments: dict[str, str], state: str, database: str
) -> None:
    found = locate(environ, UNUSED_UID, **arguments)
    assert (found.state_dir, found.interstat_db, found.interstat_db_is_chosen) == (state, database, bool(database))


@pytest.mark.parametrize(
    ("environ", "arguments", "config", "is_chosen"),
    [
        ({"HOME": "/h"}, {}, "/h/.config/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, {}, "/x/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": ""}, {}, "/h/.config/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "relative"}, {}, "/h/.config/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, {"config": "/own.toml"}, "/own.toml", True),
    ],
)
def test_config_path(environ: dict[str, str], arguments: dict[str, str], config: str, is_chosen: bool) -> None:
    found = locate(environ, UNUSED_UID, **arguments)
    assert (found.config, found.config_is_chosen) == (config, is_chosen)


def test_relative_config_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate({"HOME": "/h"}, UNUSED_UID, config="own.toml").config == str(tmp_path / "own.toml")


ROOT_HOME = pwd.getpwnam("root").pw_dir


@pytest.mark.parametrize(
    ("variables", "option", "configured", "expected", "are_chosen"),
    [
        ({}, None, (), ("/h/.claude", "/h/.config/claude"), False),
        ({"XDG_CONFIG_HOME": "/x"}, None, (), ("/h/.claude", "/x/claude"), False),
        ({"XDG_CONFIG_HOME": "relative"}, None, (), ("/h/.claude", "/h/.config/claude"), False),
        ({"CLAUDE_CONFIG_DIR": ""}, None, (), ("/h/.claude", "/h/.config/claude"), False),
        ({"CLAUDE_CONFIG_DIR": "/c"}, None, (), ("/c",), True),
        ({"CLAUDE_CONFIG_DIR": "/c, ~/d ,,/e"}, None, (), ("/c", "/h/d", "/e"), True),
        ({"CLAUDE_CONFIG_DIR": "/c"}, None, ("/d", "/e"), ("/d", "/e"), True),
        ({"CLAUDE_CONFIG_DIR": "/c"}, ["/own", "~", "~root/x"], ("/d",), ("/own", "/h", f"{ROOT_HOME}/x"), True),
    ],
)
def test_claude_directories(
    variables: dict[str, str],
    option: list[str] | None,
    configured: tuple[str, ...],
    expected: tuple[str, ...],
    are_chosen: bool,
) -> None:
    """The option comes before the configuration, the variable and the defaults, which need not exist."""
    found = locate({"HOME": "/h", **variables}, UNUSED_UID, claude_dirs=option).claude_dirs
    assert (found.used(configured), bool(found.chosen(configured))) == (expected, are_chosen)


def test_relative_claude_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = locate({"HOME": "/h", "CLAUDE_CONFIG_DIR": "c"}, UNUSED_UID).claude_dirs
    assert found.used(()) == (str(tmp_path / "c"),)


def test_interstats_database_is_in_the_first_claude_directory_that_has_one(tmp_path: Path) -> None:
    """Without one, it is expected in the first."""
    directories = [str(tmp_path / name) for name in "abc"]
    assert interstat_database(directories) == f"{tmp_path}/a/interstat/metrics.db"
    for name in "cb":
        path = tmp_path / name / "interstat" / "metrics.db"
        path.parent.mkdir(parents=True)
        path.touch()
        assert interstat_database(directories) == str(path)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_without_home_and_passwd_entry_there_is_a_clear_error(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"no home directory: .* no entry for uid {UNUSED_UID}") as caught:
        locate(environ, UNUSED_UID)
    assert caught.value.hint == "set HOME to an absolute path"
    with pytest.raises(NoHomeError):
        socket_path(environ, UNUSED_UID)


def test_home_is_not_needed_if_everything_else_is_named() -> None:
    environ = {"XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/x", "INTERBAND_ROOT": "/i"}
    assert locate(environ, UNUSED_UID, claude_dirs=["/c"]).state_dir == "/s/fluxbudget"


def test_home_of_the_password_database_is_used_without_the_variable() -> None:
    assert locate({}, 0).config == f"{ROOT_HOME}/.config/fluxbudget/config.toml"


def test_unknown_user_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="~no-such-user/x: there is no user no-such-user"):
        locate({"HOME": "/h"}, UNUSED_UID, claude_dirs=["~no-such-user/x"])

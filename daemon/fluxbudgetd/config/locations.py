"""Where all files are: by the command line, then the environment, then the defaults."""

import os
import pwd
from collections.abc import Mapping, Sequence

import msgspec

from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.paths import NoHomeError, home_directory, socket_path
from fluxbudgetd.wire.text import shown_path


class ClaudeDirectories(msgspec.Struct, frozen=True, kw_only=True):
    """Claude Code's directories, as absolute paths, by where they were named. `option` and `variable` may be empty."""

    option: tuple[str, ...] = ()
    variable: tuple[str, ...] = ()
    default: tuple[str, ...] = ()

    def chosen(self, configured: Sequence[str]) -> tuple[str, ...]:
        """Return the directories that the user has named; `configured` are those of the configuration."""
        return self.option or tuple(configured) or self.variable

    def used(self, configured: Sequence[str]) -> tuple[str, ...]:
        """Return the directories to use: the chosen ones, else the defaults, which need not exist."""
        return self.chosen(configured) or self.default


class Locations(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths."""

    socket: str
    socket_dir_is_ours: bool
    """True if the socket's directory is fluxbudget's own: the default, or one named `fluxbudget`."""
    elsewhere: str | None
    """The default path, if the user's own daemon (the one with the default state) listens at another one."""
    state_dir: str
    state_dir_is_ours: bool
    """True if the state directory is fluxbudget's own: --state-dir did not name it."""
    interstat_db: str
    """Empty for the default, which depends on the configuration: see `interstat_database`."""
    interstat_db_is_chosen: bool
    """True if --interstat-db or $INTERSTAT_DB named the file, which must then exist."""
    config: str
    config_is_chosen: bool
    """True if --config named the file, which must then exist."""
    claude_dirs: ClaudeDirectories
    interband_root: str
    """Default; `channels.interband.root` overrides it."""


def locate(
    environ: Mapping[str, str],
    uid: int,
    *,
    socket: str | None = None,
    state_dir: str | None = None,
    interstat_db: str | None = None,
    claude_dirs: Sequence[str] | None = None,
    config: str | None = None,
) -> Locations:
    """Return the locations for these options (None: not given) and this environment.

    State: `$STATE_DIRECTORY` (set by systemd), else `${XDG_STATE_HOME:-~/.local/state}/fluxbudget`. interstat's
    database: `$INTERSTAT_DB`. Claude Code's directories: `$CLAUDE_CONFIG_DIR` (separated by commas), else `~/.claude`
    and `${XDG_CONFIG_HOME:-~/.config}/claude`. Interband: `$INTERBAND_ROOT`, else `~/.interband`. Configuration:
    `${XDG_CONFIG_HOME:-~/.config}/fluxbudget/config.toml`. Relative XDG variables are ignored, as their specification
    says. Raises `ConfigError` if the home directory is needed and unknown.
    """
    try:
        places = _Places(environ, uid)
        # systemd gives a colon-separated list when a unit names several directories; ours is the first.
        given_state = environ.get("STATE_DIRECTORY", "").split(":")[0]
        chosen_socket = socket or environ.get("FLUXBUDGET_SOCKET") or None
        listening = os.path.abspath(socket or socket_path(environ, uid))
        own_state = places.path(state_dir or given_state)
        database = interstat_db or environ.get("INTERSTAT_DB", "")
        return Locations(
            socket=listening,
            socket_dir_is_ours=chosen_socket is None
            or os.path.basename(os.path.dirname(os.path.abspath(chosen_socket))) == "fluxbudget",
            elsewhere=None if state_dir else _other_socket(environ, uid, listening),
            state_dir=own_state or places.in_xdg("XDG_STATE_HOME", ".local/state", "fluxbudget"),
            state_dir_is_ours=not state_dir,
            interstat_db=places.path(database),
            interstat_db_is_chosen=bool(database),
            config=places.path(config) or places.in_xdg("XDG_CONFIG_HOME", ".config", "fluxbudget", "config.toml"),
            config_is_chosen=config is not None,
            claude_dirs=places.claude_directories(claude_dirs or ()),
            interband_root=places.path(environ.get("INTERBAND_ROOT")) or os.path.join(places.home, ".interband"),
        )
    except NoHomeError as exc:
        raise ConfigError(str(exc), exc.hint) from exc


def interstat_database(claude_dirs: Sequence[str]) -> str:
    """Return interstat's database: that of the first Claude directory that has one, else the first one's."""
    paths = [os.path.join(directory, "interstat", "metrics.db") for directory in claude_dirs]
    return next(filter(os.path.exists, paths), paths[0])


def expanded(path: str, home: str) -> str:
    """Return a path with `~` or `~user` at its beginning replaced. Raises `ConfigError` for an unknown user."""
    user, slash, rest = path.partition("/")
    if not user.startswith("~"):
        return path
    if user == "~":
        return home + slash + rest
    try:
        return pwd.getpwnam(user[1:]).pw_dir + slash + rest
    except (KeyError, ValueError) as exc:
        raise ConfigError(f"{shown_path(path)}: there is no user {shown_path(user[1:])}", "correct the path") from exc


class _Places:
    """Paths for an environment."""

    def __init__(self, environ: Mapping[str, str], uid: int) -> None:
        self._environ = environ
        self._uid = uid

    @property
    def home(self) -> str:
        return home_directory(self._environ, self._uid)

    def path(self, given: str | None) -> str:
        """Return a given path as an absolute one; empty if none is given."""
        if not given:
            return ""
        return os.path.abspath(expanded(given, self.home) if given.startswith("~") else given)

    def in_xdg(self, variable: str, default: str, *names: str) -> str:
        """Return a path in a directory of the XDG specification."""
        given = self._environ.get(variable, "")
        return os.path.abspath(
            os.path.join(given if given.startswith("/") else os.path.join(self.home, default), *names)
        )

    def claude_directories(self, given: Sequence[str]) -> ClaudeDirectories:
        option = tuple(map(self.path, given))
        named = self._environ.get("CLAUDE_CONFIG_DIR", "").split(",")
        variable = tuple(self.path(name.strip()) for name in named if name.strip())
        if option or variable:
            return ClaudeDirectories(option=option, variable=variable)
        default = os.path.join(self.home, ".claude"), self.in_xdg("XDG_CONFIG_HOME", ".config", "claude")
        return ClaudeDirectories(default=tuple(map(os.path.abspath, default)))


def _other_socket(environ: Mapping[str, str], uid: int, listening: str) -> str | None:
    try:
        default = socket_path({name: value for name, value in environ.items() if name != "FLUXBUDGET_SOCKET"}, uid)
    except NoHomeError:
        return None
    return None if listening == default else default

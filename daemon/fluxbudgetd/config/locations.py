"""Where all files are: by the command line, then the environment, then the defaults."""

import os
from collections.abc import Mapping

import msgspec

from fluxbudgetd.wire.paths import socket_path


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
    interstat_db_is_chosen: bool
    """True if --interstat-db or $INTERSTAT_DB named the file, which must then exist."""
    config: str
    config_is_chosen: bool
    """True if --config named the file, which must then exist."""
    claude_dir: str
    interband_root: str
    """Default; `channels.interband.root` overrides it."""


def locate(
    environ: Mapping[str, str],
    uid: int,
    *,
    socket: str | None = None,
    state_dir: str | None = None,
    interstat_db: str | None = None,
    claude_dir: str | None = None,
    config: str | None = None,
) -> Locations:
    """Return the locations for these options (None: not given) and this environment.

    State: `$STATE_DIRECTORY` (set by systemd), else `${XDG_STATE_HOME:-~/.local/state}/fluxbudget`. interstat's
    database: `$INTERSTAT_DB`, else `interstat/metrics.db` in Claude's directory, which is `$CLAUDE_CONFIG_DIR`, else
    `~/.claude`. Interband: `$INTERBAND_ROOT`, else `~/.interband`. Configuration:
    `${XDG_CONFIG_HOME:-~/.config}/fluxbudget/config.toml`.
    """
    home = environ.get("HOME") or os.path.expanduser("~")
    state_home = environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    given_config = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification says to ignore relative paths.
    config_home = given_config if given_config.startswith("/") else os.path.join(home, ".config")
    # systemd gives a colon-separated list when a unit names several directories; ours is the first.
    given_state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    claude = claude_dir or environ.get("CLAUDE_CONFIG_DIR") or os.path.join(home, ".claude")
    database = interstat_db or environ.get("INTERSTAT_DB") or os.path.join(claude, "interstat", "metrics.db")
    chosen = socket or environ.get("FLUXBUDGET_SOCKET") or None
    listening = os.path.abspath(socket or socket_path(environ, uid))
    default = socket_path({name: value for name, value in environ.items() if name != "FLUXBUDGET_SOCKET"}, uid)
    return Locations(
        socket=listening,
        socket_dir_is_ours=chosen is None or os.path.basename(os.path.dirname(os.path.abspath(chosen))) == "fluxbudget",
        elsewhere=None if state_dir or listening == default else default,
        state_dir=os.path.abspath(state_dir or given_state or os.path.join(state_home, "fluxbudget")),
        state_dir_is_ours=not state_dir,
        interstat_db=os.path.abspath(database),
        interstat_db_is_chosen=bool(interstat_db or environ.get("INTERSTAT_DB")),
        config=os.path.abspath(config or os.path.join(config_home, "fluxbudget", "config.toml")),
        config_is_chosen=config is not None,
        claude_dir=os.path.abspath(claude),
        interband_root=os.path.abspath(environ.get("INTERBAND_ROOT") or os.path.join(home, ".interband")),
    )

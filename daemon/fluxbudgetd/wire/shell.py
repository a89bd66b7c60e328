"""The shell code that loads Clavain's functions, for `shell-init` and for the SessionStart hook."""

FILE = "shell/clavain.sh"
"""The functions, in the client's package."""

# bash 4 or later, or zsh
_CAN_LOAD = '[ -n "${ZSH_VERSION:-}" ] || [ "${BASH_VERSINFO:-0}" -ge 4 ]'
_REFUSAL = "fluxbudgetctl shell-init: the functions need bash 4 or later, or zsh"


def loading(path: str) -> str:
    """Return lines, for any shell, that load the file in bash and zsh; other shells print why they do not."""
    return f"if {_CAN_LOAD}; then\n    . {quoted(path)}\nelse\n    printf '%s\\n' {quoted(_REFUSAL)} >&2\nfi\n"


def loading_if_there(path: str) -> str:
    """Return one line for any shell that loads the file, unless it has been removed, or this is another shell."""
    return f"if [ -r {quoted(path)} ] && {{ {_CAN_LOAD}; }}; then . {quoted(path)}; fi\n"


def quoted(text: str) -> str:
    """Return a text quoted as one word, for any shell."""
    return "'" + text.replace("'", "'\\''") + "'"

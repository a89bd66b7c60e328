"""The shell code that loads Clavain's functions, for `shell-init` and for the hook of a session's start."""

FILE = "shell/clavain.sh"
"""The functions, in the client's package."""

_REFUSAL = "fluxbudgetctl shell-init: the functions need bash 4 or later, or zsh"


def loading(path: str) -> str:
    """Return lines for any shell that load the file; other shells than bash and zsh print why they do not."""
    return (
        'if [ -n "${ZSH_VERSION:-}" ] || [ "${BASH_VERSINFO:-0}" -ge 4 ]; then\n'
        f"    . {quoted(path)}\n"
        "else\n"
        f"    printf '%s\\n' {quoted(_REFUSAL)} >&2\n"
        "fi\n"
    )


def loading_if_there(path: str) -> str:
    """Return one line for bash and zsh that loads the file, unless it has been removed."""
    return f"if [ -r {quoted(path)} ]; then . {quoted(path)}; fi\n"


def quoted(text: str) -> str:
    """Return a text as one word of any shell."""
    return "'" + text.replace("'", "'\\''") + "'"

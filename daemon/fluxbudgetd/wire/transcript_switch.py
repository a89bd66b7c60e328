"""The environment variable that tells Claude Code to write no transcripts."""

SWITCH = "CLAUDE_CODE_SKIP_PROMPT_HISTORY"

_ON = ("1", "true", "yes", "on")


def is_switched_off(value: object) -> bool:
    """Return True if this value of the variable makes Claude Code write no transcripts."""
    return isinstance(value, str | int) and str(value).strip().lower() in _ON

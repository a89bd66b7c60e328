"""The worker's program: read YAML from standard input, and write the values of some keys to standard output, as JSON.

`yaml_process.py` starts it, with its limits, the file's path and the keys as arguments. It does not open the file. It
lowers its limits after its imports and before it reads; they cannot be raised again.
"""

import json
import resource
import sys

from fluxbudgetd.config.yaml_nodes import values
from fluxbudgetd.config.yaml_values import encoded
from fluxbudgetd.errors import ConfigError


def main() -> None:
    """Set the limits, parse, and answer with `values` or an `error`. Out of memory, there is no answer."""
    memory, seconds, path, *keys = sys.argv[1:]
    limits = ((resource.RLIMIT_AS, int(memory)), (resource.RLIMIT_CPU, int(seconds)), (resource.RLIMIT_FSIZE, 0))
    for limit, most in limits:
        _, hard = resource.getrlimit(limit)
        lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lowest, lowest))
    answer: dict[str, object]
    try:
        answer = {"values": encoded(values(sys.stdin.buffer.read().decode(), path, keys))}
    except ConfigError as exc:
        answer = {"error": [exc.message, exc.hint]}
    sys.stdout.buffer.write(json.dumps(answer).encode())

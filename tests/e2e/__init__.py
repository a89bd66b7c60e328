"""End to end: the real Claude Code with our hooks, offline, against an API that knows what it handed out."""

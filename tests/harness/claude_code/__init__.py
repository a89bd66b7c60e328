"""The real Claude Code, offline: it talks to a stand-in for Anthropic's Messages API (`api.py`) on its own loopback."""

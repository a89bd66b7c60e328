"""The event log in memory, and everything that is told of its events."""

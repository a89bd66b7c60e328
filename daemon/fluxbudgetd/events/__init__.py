"""The event log, the delivery of events to channels, session warnings, and the state files."""

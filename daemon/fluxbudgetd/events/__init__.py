"""The event log, delivery to channels, session warnings, state files, and write-back into intercore and beads."""

"""Events: their log, their delivery to channels, session warnings, state files, and our rows in intercore."""

"""Events: their log, delivery to channels, session warnings, state files, our rows in intercore, labels of beads."""

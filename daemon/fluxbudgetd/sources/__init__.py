"""Where usage and sprints come from: read-only readers of other programs' files, and `bd`."""

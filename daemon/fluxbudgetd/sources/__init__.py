"""Where usage comes from: read-only readers of other programs' files, each delivering whole-session snapshots."""

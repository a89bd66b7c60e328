"""Where usage comes from: read-only readers of other programs' files."""

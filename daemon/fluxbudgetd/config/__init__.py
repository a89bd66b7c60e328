"""What the daemon is told from outside."""

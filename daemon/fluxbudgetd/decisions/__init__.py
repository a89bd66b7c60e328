"""What changes a run, and what it may do. The policy decides; the ledger is written before memory."""

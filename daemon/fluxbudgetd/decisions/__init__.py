"""Changes to runs, and what a run may do. The policy decides; the ledger is written before memory."""

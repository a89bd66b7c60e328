"""The configuration: settings, review budgets, calibration, and where the files are."""

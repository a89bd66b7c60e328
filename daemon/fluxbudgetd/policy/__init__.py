"""The rules: pure functions. No I/O and no clock: `now` is an argument, decisions are return values."""

"""`fluxbudgetctl top`: a live view of the runs on a terminal.

`data` asks the daemon, `view` lays out, `terminal` and `keys` deal with the terminal, `app` is the loop.
"""

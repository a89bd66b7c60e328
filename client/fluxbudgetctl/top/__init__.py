"""`fluxbudgetctl top`: a live view of the runs on a terminal.

`app` is the main loop, `feed` asks the daemon, `view` lays out the lines, `formats` turns values into text, `terminal`
and `keys` handle the terminal.
"""

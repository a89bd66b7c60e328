"""fluxbudgetd as a systemd user service: installing and removing it, its status, and what `doctor` reports about it.

`units` and `quoting` know unit files, `manager` runs systemctl, `locks` finds daemons, `package` knows what was
installed with this client. `status` reads all of that at once, and `describe` puts it into words.
"""

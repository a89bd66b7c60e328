"""`fluxbudgetctl service`: fluxbudgetd as a systemd user service, socket-activated; and what `doctor` sees of it."""

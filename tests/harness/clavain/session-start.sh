# What interflux's hook of a session's start computes from our side-band file.
pct="$(sed 's/.*"pct_consumed": *\([0-9]*\).*/\1/' "$SIDE_BAND")"
echo $((${INTERSTAT_TOKEN_BUDGET:-500000} * (100 - pct) / 100))

# What Clavain's sprint command does before a review: it exports what is left only if that is more than 0.
remaining="$(clavain-cli sprint-budget-remaining "$BEAD")"
if [ "$remaining" -gt 0 ]; then
    export FLUX_BUDGET_REMAINING="$remaining"
fi
echo "${FLUX_BUDGET_REMAINING:-unconstrained}"

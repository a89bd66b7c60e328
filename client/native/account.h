/* A run and its spend, as `remaining` and `check` print it. */
#ifndef FLUXBUDGET_ACCOUNT_H
#define FLUXBUDGET_ACCOUNT_H

#include "environment.h"
#include "failure.h"

/* The fields of a spend, in the order in which they are printed. */
enum spend { BUDGET, SPENT, MEASURED, PROVISIONAL, RESERVED, REMAINING, PCT, STATE, STALE, STALE_WHY, SPEND_FIELDS };

struct account {
    struct value run, phase;
    struct value spend[SPEND_FIELDS];
};

/* The contents of a state file. */
struct state {
    struct account account;
    struct text as_of;
};

/* Find the state file of the run that is meant, and report on stderr that it was used (state_file.py). If there is no
   such file, return false. `failure` says why the socket cannot be used. */
bool find_state(const struct options *options, const char *socket, struct text session, struct state *found,
             struct failure *failure);

#endif

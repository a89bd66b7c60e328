/* A run and its spend, as `remaining` and `check` print it. */
#ifndef FLUXBUDGET_ACCOUNT_H
#define FLUXBUDGET_ACCOUNT_H

#include "environment.h"
#include "failure.h"

/* In the order in which they are printed. */
enum spend { BUDGET, SPENT, MEASURED, PROVISIONAL, RESERVED, REMAINING, PCT, STATE, STALE, STALE_WHY, SPEND_FIELDS };

struct account {
    struct value run, phase;
    struct value spend[SPEND_FIELDS];
};

/* What a state file says. */
struct state {
    struct account account;
    struct text as_of;
};

/* Find the state of the run that is meant among the daemon's state files, and say on stderr that it is from a file
   (state_file.py). When there is none, `failure`, which holds what the socket said, is what there is to say. */
bool look_up(const struct options *options, const char *socket, struct text session, struct state *found,
             struct failure *failure);

#endif

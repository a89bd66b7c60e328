/* What the client's surroundings say: the socket, and which run is meant when none is named (environment.py). */
#ifndef FLUXBUDGET_ENVIRONMENT_H
#define FLUXBUDGET_ENVIRONMENT_H

#include "packed.h"

/* A hot command line. */
struct options {
    const char *run, *scope, *session; /* null: not named so */
    double seconds;                    /* the time limit */
    bool json;
    bool colour;
    bool has_default;
    uint64_t fallback;    /* the value of --default */
    const char *override; /* null: none */
    int width;            /* 0: none */
};

/* An environment variable; null when it is not set, or empty. */
const char *variable(const char *name);

/* The path of the daemon's socket; null when that is not plain, and better left to Python. */
const char *socket_path(void);

/* The width that digits say; 0 unless it is a whole number above 0 of at most five digits. */
int cells(const char *digits);

/* How many of the pairs below a request has: which run is meant, and the hints. */
size_t naming_pairs(const struct options *options);
void pack_naming(struct packer *to, const struct options *options);

/* The names of the run's, scope's or session's state file, in the order in which the daemon would take them:
   directories (`kinds`) and names; return how many. `given` is the session that stdin names; its bytes null: none. */
enum { MOST_PLACES = 4 };
size_t state_places(const struct options *options, struct text given, const char *kinds[MOST_PLACES],
                    struct text names[MOST_PLACES]);

#endif

/* What the environment says: where the socket is, and which run is meant when the command line names none
   (environment.py). */
#ifndef FLUXBUDGET_ENVIRONMENT_H
#define FLUXBUDGET_ENVIRONMENT_H

#include "packed.h"

/* A hot command line. */
struct options {
    const char *run, *scope, *session; /* null: the flag is not given */
    double seconds;                    /* the time limit */
    bool json;
    bool colour;
    bool has_default;
    uint64_t fallback;    /* the value of --default */
    const char *override; /* null: none */
    int width;            /* 0: none */
};

/* Return an environment variable; null if it is unset or empty. */
const char *variable(const char *name);

/* Return the path of the daemon's socket; null if it needs normalising; then Python takes over. */
const char *socket_path(void);

/* Return a width in cells; 0 unless it is a whole number above 0 of at most five digits. */
int cells(const char *digits);

/* Return how many pairs `pack_naming` adds to a request: which run is meant, and the hints. */
size_t naming_pairs(const struct options *options);
void pack_naming(struct packer *to, const struct options *options);

/* Find the state files to try, in the daemon's order: their directories (`kinds`) and names. Return how many there are.
   `session` is the one named on stdin; its bytes are null if there is none. */
enum { MOST_PLACES = 4 };
size_t state_places(const struct options *options, struct text session, const char *kinds[MOST_PLACES],
                    struct text names[MOST_PLACES]);

#endif

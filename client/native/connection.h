/* One request, one answer, one deadline for connecting, writing and reading (asking.py, connection.py, framing.py). */
#ifndef FLUXBUDGET_CONNECTION_H
#define FLUXBUDGET_CONNECTION_H

#include "environment.h"
#include "failure.h"

/* A request: `input`, when its bytes are not null, is sent as it is, as a field of that name. */
struct request {
    const char *path; /* of the socket */
    const char *op;
    const struct options *options; /* null: no run is meant */
    struct text input;
    size_t pairs;                                                /* of which `pack_rest` adds so many */
    void (*pack_rest)(struct packer *to, const void *of);        /* null: nothing */
    const void *of;
};

/* Ask the daemon; the answer is a map whose `ok` is true. It stays where it is until the next one. */
bool ask(const struct request *request, double seconds, struct value *answer, struct failure *failure);

#endif

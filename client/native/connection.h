/* One request, one answer, one deadline for connecting, writing and reading (request.py, connection.py, framing.py). */
#ifndef FLUXBUDGET_CONNECTION_H
#define FLUXBUDGET_CONNECTION_H

#include "environment.h"
#include "failure.h"

/* A request. `input`, unless its bytes are null, is sent unchanged as the field `input`. */
struct request {
    const char *path; /* of the socket */
    const char *op;
    const struct options *options; /* null: the request is not about a run */
    struct text input;
    size_t pairs; /* how many `pack_rest` adds */
    void (*pack_rest)(struct packer *to, const void *context); /* null: nothing */
    const void *context; /* passed to `pack_rest` */
};

/* Ask the daemon. The answer is a map whose `ok` is true; it is valid until the next request. */
bool ask(const struct request *request, double seconds, struct value *answer, struct failure *failure);

#endif

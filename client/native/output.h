/* stdout and stderr: a buffer each, so that a line is one write. */
#ifndef FLUXBUDGET_OUTPUT_H
#define FLUXBUDGET_OUTPUT_H

#include <limits.h>

#include "text.h"

struct output {
    int file;
    bool bounded;    /* nobody waits beyond the deadline for room */
    double deadline; /* monotonic seconds */
    int error;       /* the errno of what could not be written; what follows is thrown away */
    size_t used;
    char bytes[PIPE_BUF]; /* for more than this a pipe's room may be too small, and the writing waits */
};

extern struct output out, err;

/* Monotonic seconds. */
double now(void);

/* Wait until a file can be read or written (`events` as for poll); false when the deadline has come. */
bool wait_for(int file, short events, double deadline);

void put(struct output *to, struct text bytes);
void put_string(struct output *to, const char *string);
void put_integer(struct output *to, bool negative, uint64_t magnitude);

/* As Python's `repr`, the shortest that reads back. */
void put_float(struct output *to, double number);

/* Fit for a terminal: what could move the cursor or break the line is written out (failure.py, `one_line`). */
void put_one_line(struct output *to, struct text bytes);

/* The inside of a JSON string, in ASCII; the second of what `put_one_line` writes. */
void put_json(struct output *to, struct text utf8);
void put_json_one_line(struct output *to, struct text bytes);

void flush(struct output *to);

#endif

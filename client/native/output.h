/* stdout and stderr, each with a buffer, so that a line is one write. */
#ifndef FLUXBUDGET_OUTPUT_H
#define FLUXBUDGET_OUTPUT_H

#include <limits.h>

#include "text.h"

struct output {
    int file;
    bool bounded;    /* writing gives up at the deadline */
    double deadline; /* monotonic seconds */
    int error;       /* the errno of a failed write; later output is discarded */
    size_t used;
    char bytes[PIPE_BUF]; /* a writable pipe has room for this many bytes; writing more could block */
};

extern struct output out, err;

/* Return the monotonic clock, in seconds. */
double now(void);

/* Wait until a file is ready (`events` as for poll); return false at the deadline. */
bool wait_for(int file, short events, double deadline);

void put(struct output *to, struct text bytes);
void put_string(struct output *to, const char *string);
void put_integer(struct output *to, bool negative, uint64_t magnitude);

/* Put a number as Python's `repr` does: the shortest text that reads back as the same number. */
void put_float(struct output *to, double number);

/* Put text that is safe on a terminal: characters that could move the cursor or end the line are escaped
   (failure.py, `one_line`). */
void put_one_line(struct output *to, struct text bytes);

/* Put the inside of a JSON string, in ASCII; `put_json_one_line` first escapes as `put_one_line` does. */
void put_json(struct output *to, struct text utf8);
void put_json_one_line(struct output *to, struct text bytes);

void flush(struct output *to);

#endif

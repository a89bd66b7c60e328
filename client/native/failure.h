/* What ends a command early: one line, a hint, an exit code (failure.py; the codes are wire/codes.py's). */
#ifndef FLUXBUDGET_FAILURE_H
#define FLUXBUDGET_FAILURE_H

#include "text.h"

enum exit_code {
    OK = 0,
    REFUSED = 1,
    NO_RUN = 3,
    BAD_INPUT = 65,
    UNREACHABLE = 69,
    INTERNAL = 70,
    NO_ANSWER = 75,
    BAD_CONFIG = 78,
};

enum { MOST_PIECES = 10 };

/* The line consists of pieces that point to their text, some of it in `number`. So a failure must not be copied. */
struct failure {
    struct text pieces[MOST_PIECES];
    size_t count;
    struct text hint[3]; /* likewise; empty if there is none */
    int exit_code;
    bool no_socket;  /* the daemon could not be reached: the state files may be used */
    char number[96]; /* space for one of the pieces */
};

/* Begin a failure; always return false, so that a function can fail with `return fail(…)`. */
bool fail(struct failure *failure, int exit_code, const char *hint);
void set_hint(struct failure *failure, const char *hint);

/* Add a piece to the line; return false. */
bool add_string(struct failure *failure, const char *piece);
bool add_piece(struct failure *failure, struct text piece);

/* Failures that occur in several places; each function returns false. */
bool not_understood(struct failure *failure, const char *reason);
bool no_answer(struct failure *failure, const char *path, double seconds);
bool unreachable(struct failure *failure, const char *path, const char *reason);

/* Begin and end a line on stderr; an error there is ignored. */
void begin_line(const char *start);
void end_line(void);

/* Write the line and the hint to stderr; return the exit code. */
int report(const struct failure *failure);

#endif

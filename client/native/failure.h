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

enum { MOST_WORDS = 10 };

/* The line is kept in the pieces that it is made of, which are not copied: neither may the failure be. */
struct failure {
    struct text words[MOST_WORDS];
    size_t count;
    struct text hint[3]; /* likewise; empty: none */
    int exit_code;
    bool no_socket;  /* it did not get as far as the daemon: state files may still say something */
    char number[96]; /* room for one of the words */
};

/* Begin a failure; return false, as everything that has failed does. */
bool fail(struct failure *failure, int exit_code, const char *hint);
void set_hint(struct failure *failure, const char *hint);

/* Add a piece to its line; return false. */
bool words(struct failure *failure, const char *piece);
bool words_of(struct failure *failure, struct text piece);

/* The failures that have several reasons; each returns false. */
bool not_understood(struct failure *failure, const char *reason);
bool no_answer(struct failure *failure, const char *path, double seconds);
bool away(struct failure *failure, const char *path, const char *reason);

/* Begin and end a line on stderr; one that cannot be written changes nothing. */
void begin_line(const char *start);
void end_line(void);

/* Write the line and the hint to stderr; return the exit code. */
int tell(const struct failure *failure);

#endif

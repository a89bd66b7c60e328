#include "failure.h"

#include <stdio.h>
#include <unistd.h>

#include "output.h"

void set_hint(struct failure *failure, const char *hint)
{
    failure->hint[0] = text(hint);
    failure->hint[1] = failure->hint[2] = text("");
}

bool fail(struct failure *failure, int exit_code, const char *hint)
{
    failure->count = 0;
    set_hint(failure, hint);
    failure->exit_code = exit_code;
    failure->no_socket = false;
    return false;
}

bool add_piece(struct failure *failure, struct text piece)
{
    if (failure->count < MOST_PIECES)
        failure->pieces[failure->count++] = piece;
    return false;
}

bool add_string(struct failure *failure, const char *piece)
{
    return add_piece(failure, text(piece));
}

bool not_understood(struct failure *failure, const char *reason)
{
    fail(failure, INTERNAL, "compare versions with 'fluxbudgetctl version'");
    add_string(failure, "the daemon's answer is not understood: ");
    return add_string(failure, reason);
}

bool no_answer(struct failure *failure, const char *path, double seconds)
{
    snprintf(failure->number, sizeof failure->number, " within %g s", seconds);
    fail(failure, NO_ANSWER, "see 'fluxbudgetctl doctor', or use a longer --timeout");
    add_string(failure, "no answer from ");
    add_string(failure, path);
    return add_string(failure, failure->number);
}

bool unreachable(struct failure *failure, const char *path, const char *reason)
{
    fail(failure, UNREACHABLE, "start it with 'fluxbudgetd'");
    add_string(failure, "no daemon at ");
    add_string(failure, path);
    add_string(failure, ": ");
    return add_string(failure, reason);
}

void begin_line(const char *start)
{
    /* On a terminal the answer comes before the notes about it. */
    if (out.used > 0 && isatty(out.file))
        flush(&out);
    put_string(&err, start);
}

void end_line(void)
{
    put_string(&err, "\n");
    flush(&err);
}

int report(const struct failure *failure)
{
    begin_line("fluxbudgetctl: ");
    for (size_t i = 0; i < failure->count; i++)
        put_one_line(&err, failure->pieces[i]);
    end_line();
    if (failure->hint[0].size > 0) {
        begin_line("hint: ");
        for (int i = 0; i < 3; i++)
            put_one_line(&err, failure->hint[i]);
        end_line();
    }
    return failure->exit_code;
}

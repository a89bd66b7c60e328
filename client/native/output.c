#include "fluxbudgetctl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Write all bytes; return 0 or the error, which is ETIMEDOUT at the deadline. */
static int write_all(const struct call *call, int file, struct bytes bytes)
{
    bool is_limited = call->verb != NULL && call->verb->is_claudes;
    struct pollfd room = {file, POLLOUT, 0};
    while (bytes.size > 0) {
        size_t size = bytes.size;
        if (is_limited && !wait_for(&room, 1, call->deadline))
            return ETIMEDOUT;
        if (is_limited && size > PIPE_BUF) /* a writable pipe has room for this many bytes; writing more could block */
            size = PIPE_BUF;
        ssize_t written = write(file, bytes.at, size);
        if (written >= 0)
            bytes = (struct bytes){bytes.at + written, bytes.size - (size_t)written};
        else if (errno == EAGAIN)
            wait_for(&room, 1, is_limited ? call->deadline : INT64_MAX);
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

void complain(const struct call *call, const char *what, const char *why, const char *hint)
{
    char room[PATH_MAX + 512];
    struct buffer lines = {room, 0, sizeof room, false};
    put_string(&lines, call->verb != NULL && call->verb->is_hook ? "fluxbudgetctl hook: " : "fluxbudgetctl: ");
    put_string(&lines, what);
    put_string(&lines, why);
    put_string(&lines, hint != NULL ? "\nhint: " : "");
    put_string(&lines, hint != NULL ? hint : "");
    put_string(&lines, "\n");
    write_all(call, STDERR_FILENO, (struct bytes){room, lines.size});
}

/* Report a hook's problem, which only $FLUXBUDGET_DEBUG shows. */
static void debug(const struct call *call, const char *what, const char *why)
{
    if (variable("FLUXBUDGET_DEBUG") != NULL)
        complain(call, what, why, NULL);
}

/* Append lines to an open file; return null, or the error. */
static const char *append(int file, struct bytes lines)
{
    struct stat about;
    char last = '\n';
    if (fstat(file, &about) != 0)
        return strerror(errno);
    if (!S_ISREG(about.st_mode))
        return "it is not a regular file";
    if (about.st_size > 0 && pread(file, &last, 1, about.st_size - 1) < 0)
        return strerror(errno);
    /* A single write, so that lines of other processes cannot get in between. */
    struct iovec pieces[] = {
        {"\n", last != '\n'},
        {(void *)(uintptr_t)lines.at, lines.size},
        {"\n", lines.at[lines.size - 1] != '\n'},
    };
    return writev(file, pieces, 3) < 0 ? strerror(errno) : NULL;
}

/* Append lines to the file that Claude Code reads environment variables from. */
static void export_lines(const struct call *call, struct bytes lines)
{
    const char *path = variable("CLAUDE_ENV_FILE");
    if (path == NULL || lines.size == 0)
        return;
    /* O_NONBLOCK: the path may lead to a FIFO or a device, which would block the hook. */
    int file = open(path, O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
    const char *why = file < 0 ? strerror(errno) : append(file, lines);
    if (file >= 0)
        close(file);
    if (why != NULL)
        debug(call, "the file named by $CLAUDE_ENV_FILE cannot be written: ", why);
}

int write_answer(const struct call *call, const struct answer *answer)
{
    static const char what[] = "the output cannot be written: ", late[] = "the reader did not read it in time";
    /* As in Python, output that cannot be written is an error, not a signal that ends the program. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    export_lines(call, answer->exports);
    write_all(call, STDERR_FILENO, answer->err);
    int error = write_all(call, STDOUT_FILENO, answer->out);
    if (error != 0 && call->verb->is_hook) {
        debug(call, what, error == ETIMEDOUT ? late : strerror(error));
    } else if (error == ETIMEDOUT) {
        complain(call, "the line cannot be written: ", late, "make sure that stdout is read");
        return NO_ANSWER;
    } else if (error != 0 && error != EPIPE) {
        complain(call, what, strerror(error), "check where stdout goes, and free disk space");
        return INTERNAL;
    }
    return answer->exit_code;
}

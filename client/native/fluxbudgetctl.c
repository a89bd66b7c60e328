/* The native client: a pipe between a shell hook and the daemon.

   Claude Code starts a client for every tool call, and starting Python costs many times more than the answer. This
   program passes on a command line: its words, the working directory, a few environment variables, and stdin. The
   daemon answers with the exit code, stdout, stderr, and lines for $CLAUDE_ENV_FILE. The rules:

   * It interprets only the verb and `--timeout`. Command lines that the daemon does not handle, and failures, are left
     to `fluxbudgetctl-python`, which is installed beside it. That gets the same command line and stdin, and is told
     what failed. A plain hook that fails is silent and exits with 0, unless the daemon has left the marker of an
     exhausted hard limit: then Python decides whether the session is stopped.
   * It connects before it reads stdin, and forwards stdin while it waits. The daemon answers as soon as it has what it
     needs, so an open stdin costs nothing.
   * One deadline covers connecting, stdin, sending and receiving. For `hook` and `statusline`, which Claude Code waits
     for, it also covers stdout and stderr. (The other verbs wait until their output is read.)
   * An answer is checked completely before any of it is used. The daemon must run as this user or as root.
   * Memory is bounded: buffers have a fixed size, and nothing is allocated except to start Python.

   buffer.c: strings, frames, waiting. place.c: where the daemon listens, and its markers. request.c, answer.c:
   MessagePack. pipe.c: the exchange. output.c: stdout, stderr, $CLAUDE_ENV_FILE. */
#include "fluxbudgetctl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef FLUXBUDGET_VERSION
#error "compile.py defines the version"
#endif

/* How compile.py has built this. (musl defines no macro of its own.) */
#if defined FLUXBUDGET_DYNAMIC
#define KIND "dynamic"
#elif defined __GLIBC__
#define KIND "glibc static"
#else
#define KIND "musl"
#endif

static const struct verb verbs[] = {
    {"remaining", SECOND / 5, false, false},
    {"env", SECOND, false, false},
    {"check", SECOND, false, false},
    {"advance", SECOND, false, false},
    {"ping", SECOND, false, false},
    {"hook", SECOND / 5, true, true},
    {"statusline", SECOND / 5, true, false},
    {"numbers", SECOND, false, false},
    {"tokens", SECOND, false, false},
    {"defaults", SECOND, false, false},
};

static const int64_t MOST = 3600 * SECOND;

/* The linker puts common variables after all others, so libc's are on the first page, as are those of this program. */
struct memory memory __attribute__((common));

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; name != NULL && i < sizeof verbs / sizeof verbs[0]; i++)
        if (strcmp(name, verbs[i].name) == 0)
            return &verbs[i];
    return NULL;
}

/* Return a time limit in nanoseconds; 0 unless it is written as digits with at most one point, and at most an hour. */
static int64_t read_limit(const char *written)
{
    int64_t limit = 0, unit = SECOND;
    bool is_fraction = false;
    for (; *written != '\0' && limit <= MOST; written++) {
        int digit = *written - '0';
        if (*written == '.' && !is_fraction)
            is_fraction = true;
        else if (digit < 0 || digit > 9)
            return 0;
        else if (is_fraction)
            limit += digit * (unit /= 10);
        else
            limit = limit * 10 + digit * SECOND;
    }
    return limit <= MOST ? limit : 0;
}

/* Set the deadline; return false if `--timeout` is unusual or wrong, so that Python must handle it. */
static bool set_deadline(struct call *call)
{
    static const char flag[] = "--timeout";
    int64_t limit = call->verb->limit;
    bool is_given = false;
    for (char **word = call->words + 1; *word != NULL; word++) {
        const char *end = *word + sizeof flag - 1;
        if (strncmp(*word, flag, sizeof flag - 1) != 0 || (*end != '\0' && *end != '=')) {
            call->has_more = true;
            continue;
        }
        const char *value = *end == '=' ? end + 1 : *++word;
        if (is_given || value == NULL || (limit = read_limit(value)) == 0)
            return false;
        is_given = true;
    }
    call->deadline = call->started + limit;
    return true;
}

/* Open /dev/null for closed standard files. Otherwise the next file to be opened would get their number. */
static void open_standard_files(void)
{
    struct pollfd files[] = {{.fd = STDIN_FILENO}, {.fd = STDOUT_FILENO}, {.fd = STDERR_FILENO}};
    wait_for(files, 3, 0);
    for (int i = 0; i < 3; i++)
        if (files[i].revents & POLLNVAL && open("/dev/null", O_RDWR) < 0)
            return;
}

/* Find the path of this program with symlinks resolved; return false if the system does not provide it. */
static bool find_self(char path[PATH_MAX])
{
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (size > 0) {
        path[size] = '\0';
        return true;
    }
    /* Without /proc, use the name by which the program was executed, which the kernel passes, too. */
    const char *called = (const char *)(uintptr_t)getauxval(AT_EXECFN);
    return called != NULL && realpath(called, path) != NULL;
}

/* If some of stdin was read, replace stdin by a file with that and what arrives until its end or the deadline. */
static void restore_input(struct call *call)
{
    struct input *input = &call->input;
    if (input->size == 0)
        return;
    while (input->is_open && now() < call->deadline)
        if (wait_for(&(struct pollfd){STDIN_FILENO, POLLIN, 0}, 1, call->deadline))
            read_input(input);
    int file = memfd_create("stdin", MFD_CLOEXEC);
    /* (`pwrite` leaves the offset at the start.) */
    if (file >= 0 && pwrite(file, memory.input, input->size + input->is_cut, 0) > 0)
        dup2(file, STDIN_FILENO);
}

/* Replace this process with the Python client beside this program; return an exit code if that fails. */
static int run_python(struct call *call, char **arguments)
{
    char path[PATH_MAX + 32] = "/proc/self/exe";
    if (find_self(path)) {
        strcpy(strrchr(path, '/') + 1, "fluxbudgetctl-python");
        restore_input(call);
        setenv("FLUXBUDGETCTL_NATIVE", FLUXBUDGET_VERSION " " KIND, 1);
        if (call->failed[0] != '\0')
            setenv("FLUXBUDGETCTL_FAILED", call->failed, 1);
        else
            unsetenv("FLUXBUDGETCTL_FAILED");
        /* These can keep Python from starting, or from exiting with the client's exit code. */
        unsetenv("PYTHONHOME");
        unsetenv("PYTHONINSPECT");
        arguments[0] = path;
        execv(path, arguments);
    }
    if (call->verb != NULL && call->verb->is_hook)
        return 0; /* a hook never disturbs the session */
    const char *why = strerror(errno);
    put_string(&(struct buffer){path, strlen(path), sizeof path, false}, ": ");
    complain(call, path, why, "install fluxbudget again: this command needs its Python client");
    return INTERNAL;
}

/* True if the program ends silently after a failure. A hook with other flags does not: they may be `--help`, or wrong:
   only the Python client can decide. Markers come last, because only this check needs system calls. */
static bool is_silent(const struct call *call)
{
    const char *closed = variable("FLUXBUDGET_FAIL_CLOSED");
    bool is_asked_for = variable("FLUXBUDGET_DEBUG") != NULL || (closed != NULL && strcmp(closed, "1") == 0);
    bool is_older_daemon = strcmp(call->failed, "error unknown_op") == 0;
    return call->verb->is_hook && !call->has_more && !is_asked_for && !is_older_daemon && !is_any_marker(&call->place);
}

int main(int count, char **arguments)
{
    static struct call call;
    struct answer answer;
    char *none[] = {NULL, NULL}; /* for an empty argv: has room for the path of the Python client */
    call.started = now();
    open_standard_files();
    if (count == 0)
        arguments = none;
    call.words = arguments + 1;
    call.verb = find_verb(arguments[1]);
    if (call.verb == NULL || !set_deadline(&call) || !usual_place(&call.place))
        return run_python(&call, arguments);
    if (ask(&call, &answer))
        return answer.is_mine ? write_answer(&call, &answer) : run_python(&call, arguments);
    return is_silent(&call) ? 0 : run_python(&call, arguments);
}

/* The native client of the verbs that hooks call: `remaining`, `env`, `check`, `ping`, `hook`, `statusline`.

   A hook pays for the client's start on every tool call, and Python's costs many times what the answer does. This
   program does what client/fluxbudgetctl does, byte for byte; tests/test_native.py compares them. The rules:

   * Whatever is not a plain, correct hot command line is Python's: another verb, `--help`, a mistake, a number that the
     two languages could read differently, surroundings that only Python knows how to read. `fluxbudgetctl-python` beside
     this program is then executed in its place, before anything has been read or written.
   * Nothing here grows with what others send: an answer is at most a frame, of stdin a beginning is kept, and buffers
     are static. It allocates nothing, has no locale, and uses of stdio snprintf only.
   * Everything has one deadline: connecting, writing and reading; of `hook` and `statusline`, which Claude Code waits
     for, also stdin, stdout and stderr. (Every other verb waits until somebody reads what it prints.)
   * What comes from outside is bytes. An answer is checked as a whole before anything is taken from it; what goes to a
     terminal has its control characters written out.

   text: UTF-8, names. output: stdout and stderr. failure: one line, a hint, an exit code. packed: MessagePack.
   environment: the socket, which run is meant. connection: one question. state_file: when there is no socket.
   verbs: the four that only print. claude: the two that Claude Code calls. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "failure.h"
#include "output.h"
#include "verbs.h"

#ifndef FLUXBUDGET_VERSION
#error "compile.py says which version this is"
#endif

static const double QUICK = 0.2, PATIENT = 1.0, MOST_SECONDS = 3600.0;

enum flag { RUN, SCOPE, SESSION, TIMEOUT, DEFAULT, OVERRIDE, WIDTH, JSON, NO_COLOUR, NO_COLOR, FLAGS };

/* The flags from JSON on have no value. */
static const char *const flag_names[FLAGS] = {"--run",      "--scope", "--session", "--timeout",   "--default",
                                              "--override", "--width", "--json",    "--no-colour", "--no-color"};

enum { NAMING = 1 << RUN | 1 << SCOPE | 1 << SESSION | 1 << TIMEOUT };

static const struct verb {
    const char *name;
    unsigned flags;
    double seconds;
    int (*carry_out)(const struct options *options, const char *path);
} verbs[] = {
    {"remaining", NAMING | 1 << JSON | 1 << DEFAULT, QUICK, verb_remaining},
    {"env", NAMING, PATIENT, verb_env},
    {"check", NAMING | 1 << JSON | 1 << OVERRIDE, PATIENT, verb_check},
    {"ping", 1 << TIMEOUT | 1 << JSON, PATIENT, verb_ping},
    {"hook", NAMING, QUICK, verb_hook},
    {"statusline", NAMING | 1 << WIDTH | 1 << NO_COLOUR | 1 << NO_COLOR, QUICK, verb_statusline},
};

/* Read a time limit; 0 unless it is plain digits with at most one point, above 0 and at most an hour. */
static double read_seconds(const char *written)
{
    size_t digits = strspn(written, "0123456789");
    size_t more = written[digits] == '.' ? strspn(written + digits + 1, "0123456789") + 1 : 0;
    if (written[digits + more] != '\0')
        return 0;
    double seconds = strtod(written, NULL);
    return seconds <= MOST_SECONDS ? seconds : 0;
}

/* Take the flags apart; false for anything that is not plain. `values` are null for what is not there. */
static bool take_flags(const struct verb *verb, char **arguments, const char *values[FLAGS])
{
    for (; *arguments != NULL; arguments++) {
        size_t size = strcspn(*arguments, "=");
        const char *value = (*arguments)[size] == '=' ? *arguments + size + 1 : NULL;
        unsigned flag = 0;
        while (flag < FLAGS && !equals((struct text){*arguments, size}, flag_names[flag]))
            flag++;
        if (flag == FLAGS || (verb->flags & 1U << flag) == 0 || values[flag] != NULL)
            return false;
        if (flag >= JSON) {
            if (value != NULL)
                return false;
            values[flag] = *arguments;
            continue;
        }
        if (value == NULL)
            value = *++arguments;
        if (value == NULL || *value == '\0' || *value == '-')
            return false;
        values[flag] = value;
    }
    return true;
}

/* Return the verb of a plain, correct hot command line, with its options; null for any other. */
static const struct verb *parse(char **arguments, struct options *options)
{
    const char *values[FLAGS] = {NULL};
    const struct verb *verb = verbs, *end = verbs + sizeof verbs / sizeof verbs[0];
    while (verb < end && (arguments[0] == NULL || strcmp(arguments[0], verb->name) != 0))
        verb++;
    if (verb == end || !take_flags(verb, arguments + 1, values))
        return NULL;
    if ((values[RUN] != NULL) + (values[SCOPE] != NULL) + (values[SESSION] != NULL) > 1)
        return NULL;
    if (values[NO_COLOUR] != NULL && values[NO_COLOR] != NULL)
        return NULL;
    *options = (struct options){
        .run = values[RUN],
        .scope = values[SCOPE],
        .session = values[SESSION],
        .seconds = values[TIMEOUT] != NULL ? read_seconds(values[TIMEOUT]) : verb->seconds,
        .json = values[JSON] != NULL,
        .colour = values[NO_COLOUR] == NULL && values[NO_COLOR] == NULL,
        .has_default = values[DEFAULT] != NULL,
        .override = values[OVERRIDE],
        .width = values[WIDTH] != NULL ? cells(values[WIDTH]) : 0,
    };
    if (options->seconds <= 0 || (values[WIDTH] != NULL && options->width == 0))
        return NULL;
    if (options->has_default) {
        size_t digits = strspn(values[DEFAULT], "0123456789");
        if (values[DEFAULT][digits] != '\0' || digits > 18)
            return NULL;
        options->fallback = strtoull(values[DEFAULT], NULL, 10);
    }
    return verb;
}

/* Find out where this program itself is, not a link to it; false when the system does not say. */
static bool find_self(char place[PATH_MAX])
{
    ssize_t size = readlink("/proc/self/exe", place, PATH_MAX - 1);
    if (size > 0) {
        place[size] = '\0';
        return true;
    }
    /* There may be no /proc. The kernel also leaves behind the name by which the program was executed. */
    const char *called = (const char *)getauxval(AT_EXECFN);
    return called != NULL && realpath(called, place) != NULL;
}

/* Become the Python client that stands beside this program; return the exit code when it does not. */
static int become_python(char **arguments)
{
    char place[PATH_MAX + 32] = "/proc/self/exe";
    struct failure failure = {.count = 0};
    bool hook = arguments[0] != NULL && arguments[1] != NULL && strcmp(arguments[1], "hook") == 0;
    if (find_self(place)) {
        strcpy(strrchr(place, '/') + 1, "fluxbudgetctl-python");
        setenv("FLUXBUDGETCTL_NATIVE", FLUXBUDGET_VERSION, 1);
        /* A Python that cannot start, or goes on after its end, has an exit code that means something else here. */
        unsetenv("PYTHONHOME");
        unsetenv("PYTHONINSPECT");
        arguments[0] = place;
        execv(place, arguments);
    }
    const char *why = strerror(errno);
    if (hook)
        return OK; /* whatever is wrong, the session is not disturbed */
    fail(&failure, INTERNAL, "install fluxbudget again: this command line is for its Python client");
    words(&failure, place);
    words(&failure, ": ");
    words(&failure, why);
    return tell(&failure);
}

/* Whatever is closed would be the next file's number, which would then be read or written as stdin or stdout. */
static void open_standard_files(void)
{
    for (int file = STDIN_FILENO; file <= STDERR_FILENO; file++)
        if (fcntl(file, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
            return;
}

int main(int count, char **arguments)
{
    struct options options;
    open_standard_files();
    if (count == 0) {
        /* Without a name of its own there is no room for the one that Python is to have. */
        char *none[] = {NULL, NULL};
        return become_python(none);
    }
    const struct verb *verb = parse(arguments + 1, &options);
    const char *path = verb != NULL ? socket_path() : NULL;
    if (path == NULL)
        return become_python(arguments);
    /* An output that cannot be written is an error to look at (of a reader that has gone, not even that), no end by a
       signal; as in Python. Behind the handing on, which would pass it on. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    int code = verb->carry_out(&options, path);
    flush(&out);
    if (out.error == 0 || out.error == EPIPE)
        return code;
    struct failure failure = {.count = 0};
    fail(&failure, INTERNAL, "is the disk full?");
    words(&failure, "the output cannot be written: ");
    words(&failure, strerror(out.error));
    out.used = 0;
    return tell(&failure);
}

/* The native client of the verbs that hooks call: `remaining`, `env`, `check`, `ping`, `hook`, `statusline`.

   Claude Code starts a client for every tool call, and starting Python costs many times more than the answer. This
   program does what client/fluxbudgetctl does, byte for byte; tests/test_native.py compares the two. The rules:

   * It handles only plain, correct hot command lines. For everything else it executes `fluxbudgetctl-python`, which is
     installed beside it, before it has read or written anything: for other verbs, `--help`, mistakes, numbers that the
     two languages could read differently, and environments that only Python can interpret.
   * Its memory is bounded: an answer is at most one frame, only the beginning of stdin is kept, and all buffers are
     static. It allocates nothing, sets no locale, and uses only snprintf of stdio.
   * One deadline covers connecting, writing and reading. For `hook` and `statusline`, which Claude Code waits for, it
     also covers stdin, stdout and stderr. (The other verbs wait until their output is read.)
   * Input is bytes. An answer is checked completely before it is used. Control characters are escaped before they can
     reach a terminal.

   text: UTF-8, names. output: stdout and stderr. failure: one line, a hint, an exit code. packed: MessagePack.
   environment: the socket, which run is meant. connection: one request. state_file: used without a socket.
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
#error "compile.py defines the version"
#endif

static const double QUICK = 0.2, PATIENT = 1.0, MOST_SECONDS = 3600.0;

enum flag { RUN, SCOPE, SESSION, TIMEOUT, DEFAULT, OVERRIDE, WIDTH, JSON, NO_COLOUR, NO_COLOR, FLAGS };

/* JSON and the flags after it have no value. */
static const char *const flag_names[FLAGS] = {"--run",      "--scope", "--session", "--timeout",   "--default",
                                              "--override", "--width", "--json",    "--no-colour", "--no-color"};

enum { NAMING = 1 << RUN | 1 << SCOPE | 1 << SESSION | 1 << TIMEOUT };

static const struct verb {
    const char *name;
    unsigned flags;
    double seconds;
    int (*run)(const struct options *options, const char *path);
} verbs[] = {
    {"remaining", NAMING | 1 << JSON | 1 << DEFAULT, QUICK, verb_remaining},
    {"env", NAMING, PATIENT, verb_env},
    {"check", NAMING | 1 << JSON | 1 << OVERRIDE, PATIENT, verb_check},
    {"ping", 1 << TIMEOUT | 1 << JSON, PATIENT, verb_ping},
    {"hook", NAMING, QUICK, verb_hook},
    {"statusline", NAMING | 1 << WIDTH | 1 << NO_COLOUR | 1 << NO_COLOR, QUICK, verb_statusline},
};

/* Return a time limit in seconds; 0 unless it is plain digits with at most one point, and at most an hour. */
static double read_seconds(const char *written)
{
    size_t digits = strspn(written, "0123456789");
    size_t more = written[digits] == '.' ? strspn(written + digits + 1, "0123456789") + 1 : 0;
    if (written[digits + more] != '\0')
        return 0;
    double seconds = strtod(written, NULL);
    return seconds <= MOST_SECONDS ? seconds : 0;
}

/* Read the flags; return false unless all are plain. The `values` of flags that are not given stay null. */
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

/* Return the verb of a plain, correct hot command line, and its options; null for any other command line. */
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

/* Find the path of this program with symlinks resolved; return false if the system does not provide it. */
static bool find_self(char path[PATH_MAX])
{
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (size > 0) {
        path[size] = '\0';
        return true;
    }
    /* There may be no /proc. The kernel also passes the name by which the program was executed. */
    const char *called = (const char *)getauxval(AT_EXECFN);
    return called != NULL && realpath(called, path) != NULL;
}

/* Replace this process with the Python client beside this program; return an exit code if that fails. */
static int run_python_client(char **arguments)
{
    char path[PATH_MAX + 32] = "/proc/self/exe";
    struct failure failure = {.count = 0};
    bool hook = arguments[0] != NULL && arguments[1] != NULL && strcmp(arguments[1], "hook") == 0;
    if (find_self(path)) {
        strcpy(strrchr(path, '/') + 1, "fluxbudgetctl-python");
        setenv("FLUXBUDGETCTL_NATIVE", FLUXBUDGET_VERSION, 1);
        /* With these set, Python may fail to start, or keep running after the script, and exit with a code that means
           something else here. */
        unsetenv("PYTHONHOME");
        unsetenv("PYTHONINSPECT");
        arguments[0] = path;
        execv(path, arguments);
    }
    const char *why = strerror(errno);
    if (hook)
        return OK; /* a hook never disturbs the session */
    fail(&failure, INTERNAL, "install fluxbudget again: this command needs its Python client");
    add_string(&failure, path);
    add_string(&failure, ": ");
    add_string(&failure, why);
    return report(&failure);
}

/* Otherwise the next file that is opened would get the number of a closed one, and be used as stdin or stdout. */
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
        /* argv is empty: make room for the Python client's path. */
        char *none[] = {NULL, NULL};
        return run_python_client(none);
    }
    const struct verb *verb = parse(arguments + 1, &options);
    const char *path = verb != NULL ? socket_path() : NULL;
    if (path == NULL)
        return run_python_client(arguments);
    /* As in Python, output that cannot be written is an error, not a signal that ends the program. Set only now,
       because the Python client would inherit it. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    int code = verb->run(&options, path);
    flush(&out);
    if (out.error == 0 || out.error == EPIPE)
        return code;
    struct failure failure = {.count = 0};
    fail(&failure, INTERNAL, "check where stdout goes, and free disk space");
    add_string(&failure, "the output cannot be written: ");
    add_string(&failure, strerror(out.error));
    out.used = 0;
    return report(&failure);
}

#include "environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* No environment variable is longer (MAX_ARG_STRLEN), and directories are much shorter. */
enum { LONGEST = 128 * 1024 };

static const char *const sessions[] = {"CLAUDE_CODE_SESSION_ID", "CLAUDE_SESSION_ID"};

const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

/* True if Python's `abspath` would not change the path. */
static bool is_plain(const char *path)
{
    if (path[0] != '/')
        return false;
    for (const char *at = path; *at == '/';) {
        size_t size = strcspn(++at, "/");
        if (size == 0 || (size == 1 && at[0] == '.') || (size == 2 && at[0] == '.' && at[1] == '.'))
            return false;
        at += size;
    }
    return true;
}

/* Python's `os.path.join`. */
static const char *joined(const char *directory, const char *rest)
{
    static char path[LONGEST + 128];
    size_t size = strlen(directory);
    snprintf(path, sizeof path, "%s%s%s", directory, directory[size - 1] == '/' ? "" : "/", rest);
    return path;
}

/* Return the user's usual runtime directory; null if it does not exist. */
static const char *usual_runtime(void)
{
    static char directory[32];
    struct stat about;
    snprintf(directory, sizeof directory, "/run/user/%lu", (unsigned long)geteuid());
    return stat(directory, &about) == 0 && S_ISDIR(about.st_mode) ? directory : NULL;
}

const char *socket_path(void)
{
    const char *chosen = variable("FLUXBUDGET_SOCKET");
    if (chosen != NULL)
        return is_plain(chosen) ? chosen : NULL;
    const char *runtime = variable("XDG_RUNTIME_DIR");
    if (runtime == NULL || runtime[0] != '/')
        runtime = usual_runtime();
    if (runtime != NULL)
        return joined(runtime, "fluxbudget/fluxbudgetd.sock");
    const char *home = variable("HOME");
    return home == NULL ? NULL : joined(home, ".local/state/fluxbudget/run/fluxbudgetd.sock");
}

int cells(const char *digits)
{
    size_t size = strspn(digits, "0123456789");
    return size <= 5 && digits[size] == '\0' ? atoi(digits) : 0;
}

static void pack_named(struct packer *to, const char *name, const char *value)
{
    if (value != NULL) {
        pack_string(to, name);
        pack_folded(to, text(value));
    }
}

size_t naming_pairs(const struct options *options)
{
    return 1U + (options->run != NULL) + (options->scope != NULL) + (options->session != NULL);
}

void pack_naming(struct packer *to, const struct options *options)
{
    static char here[LONGEST];
    pack_named(to, "run", options->run);
    pack_named(to, "scope", options->scope);
    pack_named(to, "session", options->session);
    const char *run = variable("FLUXBUDGET_RUN"), *scope = variable("CLAVAIN_BEAD_ID");
    pack_string(to, "hints");
    pack_map(to, 2U + (run != NULL) + (scope != NULL));
    pack_string(to, "cwd");
    if (getcwd(here, sizeof here) == NULL)
        pack_nil(to);
    else
        pack_folded(to, text(here));
    pack_named(to, "run", run);
    pack_named(to, "scope", scope);
    pack_string(to, "sessions");
    pack_array(to, (size_t)(variable(sessions[0]) != NULL) + (variable(sessions[1]) != NULL));
    for (int i = 0; i < 2; i++)
        if (variable(sessions[i]) != NULL)
            pack_folded(to, text(variable(sessions[i])));
}

size_t state_places(const struct options *options, struct text session, const char *kinds[MOST_PLACES],
                    struct text names[MOST_PLACES])
{
    const char *run = options->run;
    size_t count = 0;
    if (run == NULL && options->scope == NULL && options->session == NULL)
        run = variable("FLUXBUDGET_RUN");
    if (run != NULL) {
        kinds[0] = "runs";
        names[0] = text(run);
        return 1;
    }
    if (options->scope != NULL || options->session != NULL) {
        kinds[0] = options->scope != NULL ? "scopes" : "sessions";
        names[0] = text(options->scope != NULL ? options->scope : options->session);
        return 1;
    }
    const char *scope = variable("CLAVAIN_BEAD_ID");
    if (scope != NULL) {
        kinds[count] = "scopes";
        names[count++] = text(scope);
    }
    if (session.bytes != NULL) {
        kinds[count] = "sessions";
        names[count++] = session;
    }
    for (int i = 0; i < 2; i++) {
        if (variable(sessions[i]) != NULL) {
            kinds[count] = "sessions";
            names[count++] = text(variable(sessions[i]));
        }
    }
    return count;
}

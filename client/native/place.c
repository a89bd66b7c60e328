#include "fluxbudgetctl.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *variable(const char *name)
{
    size_t size = strlen(name);
    /* (musl's `getenv` calls a function for each entry, which would be half of this program's work.) */
    for (char **entry = environ; *entry != NULL; entry++)
        if (**entry == *name && strncmp(*entry, name, size) == 0 && (*entry)[size] == '=')
            return (*entry)[size + 1] != '\0' ? *entry + size + 1 : NULL;
    return NULL;
}

/* Set the path, in two pieces; return false if it is too long. */
static bool set_path(struct sockaddr_un *place, const char *first, size_t size, const char *rest)
{
    struct buffer path = {place->sun_path, 0, sizeof place->sun_path, false};
    place->sun_family = AF_UNIX;
    put(&path, first, size);
    put(&path, rest, strlen(rest) + 1);
    return !path.is_full;
}

/* Return the user's usual runtime directory; null if it does not exist. */
static const char *usual_runtime(void)
{
    static char directory[32];
    struct buffer path = {directory, 0, sizeof directory - 1, false};
    struct stat about;
    put_string(&path, "/run/user/");
    put_decimal(&path, geteuid());
    return stat(directory, &about) == 0 && S_ISDIR(about.st_mode) ? directory : NULL;
}

/* Set the place where the daemon listens unless another one was chosen. */
static bool default_place(struct sockaddr_un *place)
{
    const char *runtime = variable("XDG_RUNTIME_DIR"), *home;
    if (runtime == NULL || runtime[0] != '/')
        runtime = usual_runtime();
    if (runtime != NULL)
        return set_path(place, runtime, strlen(runtime), "/fluxbudget/fluxbudgetd.sock");
    home = variable("HOME");
    return home != NULL && home[0] == '/' && set_path(place, home, strlen(home), "/.local/state/fluxbudget/run/fluxbudgetd.sock");
}

bool usual_place(struct sockaddr_un *place)
{
    const char *chosen = variable("FLUXBUDGET_SOCKET");
    if (chosen == NULL)
        return default_place(place);
    /* The daemon and Python normalise the path. That matters only for paths like these. */
    size_t size = strlen(chosen);
    bool is_odd = strstr(chosen, "..") != NULL || strchr("/.", chosen[size - 1]) != NULL;
    return !is_odd && set_path(place, chosen, size, "");
}

bool recorded_place(const struct sockaddr_un *usual, struct sockaddr_un *recorded)
{
    static const char label[] = "socket /";
    char path[sizeof usual->sun_path + sizeof ".lock"], lines[512];
    struct buffer name = {path, 0, sizeof path, false};
    struct stat about;
    put_string(&name, usual->sun_path);
    put(&name, ".lock", sizeof ".lock");
    int file = variable("FLUXBUDGET_SOCKET") == NULL ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK) : -1;
    if (file < 0)
        return false;
    bool is_ours = fstat(file, &about) == 0 && S_ISREG(about.st_mode) && about.st_uid == geteuid();
    ssize_t size = is_ours ? read(file, lines, sizeof lines - 1) : 0;
    close(file);
    lines[size > 0 ? size : 0] = '\0';
    const char *line = strchr(lines, '\n'); /* the second line says where */
    if (line == NULL || strncmp(line + 1, label, sizeof label - 1) != 0)
        return false;
    line += sizeof label - 1;
    return set_path(recorded, line, strcspn(line, "\n"), "") && strcmp(recorded->sun_path, usual->sun_path) != 0;
}

/* True if the directory of this socket has the marker of a run. (Temporary files begin with a dot.) */
static bool has_marker(const struct sockaddr_un *place)
{
    char path[sizeof place->sun_path + sizeof "hard"];
    const char *name = strrchr(place->sun_path, '/');
    struct buffer directory = {path, 0, sizeof path, false};
    put(&directory, place->sun_path, name != NULL ? (size_t)(name + 1 - place->sun_path) : 0);
    put(&directory, "hard", sizeof "hard");
    DIR *entries = opendir(path);
    const struct dirent *entry = NULL;
    while (entries != NULL && (entry = readdir(entries)) != NULL && entry->d_name[0] == '.')
        ;
    if (entries != NULL)
        closedir(entries);
    return entry != NULL;
}

bool is_any_marker(const struct sockaddr_un *usual)
{
    struct sockaddr_un other;
    return has_marker(usual) || (default_place(&other) && has_marker(&other)) ||
           (recorded_place(usual, &other) && has_marker(&other));
}

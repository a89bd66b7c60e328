/* The hot verbs; each returns its exit code. */
#ifndef FLUXBUDGET_VERBS_H
#define FLUXBUDGET_VERBS_H

#include "environment.h"

/* hot.py. `path` is the socket's. */
int verb_remaining(const struct options *options, const char *path);
int verb_env(const struct options *options, const char *path);
int verb_check(const struct options *options, const char *path);
int verb_ping(const struct options *options, const char *path);

/* hook.py, statusline.py: the verbs that Claude Code calls, with JSON on stdin. */
int verb_hook(const struct options *options, const char *path);
int verb_statusline(const struct options *options, const char *path);

#endif

/* Stops the process right before a look into a folder, or the naming of a file, whose path contains $CHAOS_PAUSE:
   the one of number $CHAOS_PAUSE_AT, from 1. To be put before the C library. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_int seen;

static void *real(const char *name, const char *path) {
    const char *wanted = getenv("CHAOS_PAUSE"), *at = getenv("CHAOS_PAUSE_AT");
    if (wanted && strstr(path, wanted) && atomic_fetch_add(&seen, 1) + 1 == (at ? atoi(at) : 1))
        kill(getpid(), SIGSTOP);
    return dlsym(RTLD_NEXT, name);
}

DIR *opendir(const char *path) { return ((DIR * (*)(const char *)) real("opendir", path))(path); }

int rename(const char *from, const char *to) {
    return ((int (*)(const char *, const char *))real("rename", to))(from, to);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    return ((int (*)(int, const char *, int, const char *, int))real("linkat", to))(from_fd, from, to_fd, to, flags);
}

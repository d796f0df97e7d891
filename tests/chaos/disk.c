/* A disk that a test commands, for LD_PRELOAD under redis-server; built by tests/chaos/disk.py.
 *
 * CHAOS_DISK names a folder. For each append-only file *.incr.aof that is synced, "<folder>/<name>.synced" then holds
 * the number of bytes that were in it when a successful sync began: what a power cut would leave at least. The
 * file "<folder>/delay_ms", where there is one, holds up every such sync for so many milliseconds first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int aof(int fd, char *name, size_t room) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    if (!strstr(base, ".incr.aof")) return 0;
    if (strlen(base) >= room) return 0;
    strcpy(name, base);
    return 1;
}

static void hold_up(const char *folder) {
    char path[4096], text[32] = "";
    snprintf(path, sizeof path, "%s/delay_ms", folder);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    if (read(fd, text, sizeof text - 1) > 0) usleep((useconds_t)atoi(text) * 1000);
    close(fd);
}

static void note(const char *folder, const char *name, long long size) {
    char path[4096], text[32];
    snprintf(path, sizeof path, "%s/%s.synced", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    if (fd < 0) return;
    int length = snprintf(text, sizeof text, "%-20lld\n", size);
    if (pwrite(fd, text, (size_t)length, 0) != length) abort();
    close(fd);
}

static int sync_with(const char *real, int fd) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, real);
    const char *folder = getenv("CHAOS_DISK");
    char name[512];
    struct stat before;
    if (!folder || !aof(fd, name, sizeof name) || fstat(fd, &before)) return sync(fd);
    hold_up(folder);
    int result = sync(fd);
    if (!result) note(folder, name, (long long)before.st_size);
    return result;
}

int fsync(int fd) { return sync_with("fsync", fd); }
int fdatasync(int fd) { return sync_with("fdatasync", fd); }

/* Preloaded, it counts the calls of this process that change what lies below a folder, and kills it at one of them.

   `arm(folder, n)` starts the count; the n-th call is not carried out (of a write, half is), and the process is killed
   as by the kernel. n = 0 only counts; `counted()` tells how far the count is. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static long fatal, count;

void arm(const char *where, long n) {
  strncpy(folder, where, sizeof folder - 1);
  fatal = n;
  count = 0;
}

long counted(void) { return __atomic_load_n(&count, __ATOMIC_SEQ_CST); }

static int below(const char *path) { return folder[0] && path && !strncmp(path, folder, strlen(folder)); }

static const char *opened(int fd, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, size - 1);
  path[length > 0 ? length : 0] = 0;
  return path;
}

/* Whether this is the fatal call. */
static int at(const char *call, const char *path) {
  if (!below(path) || __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) != fatal) return 0;
  dprintf(2, "killed at call %ld: %s %s\n", fatal, call, path);
  return 1;
}

static int at_fd(const char *call, int fd) {
  char path[4096];
  return fd > 2 && folder[0] && at(call, opened(fd, path, sizeof path));
}

static int at_in(const char *call, int directory, const char *name) {
  char path[8192];
  if (!folder[0] || !name) return 0;
  if (name[0] == '/' || directory == AT_FDCWD) return at(call, name);
  opened(directory, path, 4096);
  size_t length = strlen(path);
  snprintf(path + length, sizeof path - length, "/%s", name);
  return at(call, path);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (CHANGES(flags) && at(#name, path)) die(); \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (CHANGES(flags) && at_in(#name, directory, path)) die(); \
    return real(directory, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, name, const char *, const char *); \
    if (strpbrk(mode, "wa+") && at(#name, path)) die(); \
    return real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  if (at_fd("write", fd)) {
    ssize_t ignored = real(fd, data, size / 2);
    (void)ignored;
    die();
  }
  return real(fd, data, size);
}

#define PWRITE(name) \
  ssize_t name(int fd, const void *data, size_t size, off_t offset) { \
    REAL(ssize_t, name, int, const void *, size_t, off_t); \
    if (at_fd(#name, fd)) { \
      ssize_t ignored = real(fd, data, size / 2, offset); \
      (void)ignored; \
      die(); \
    } \
    return real(fd, data, size, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_PATH(name, declared, path, types, ...) \
  int name declared { \
    REAL(int, name, types); \
    if (at(#name, path)) die(); \
    return real(__VA_ARGS__); \
  }
#define TYPES(...) __VA_ARGS__
ON_PATH(rename, (const char *from, const char *to), to, TYPES(const char *, const char *), from, to)
ON_PATH(link, (const char *from, const char *to), to, TYPES(const char *, const char *), from, to)
ON_PATH(unlink, (const char *path), path, TYPES(const char *), path)
ON_PATH(rmdir, (const char *path), path, TYPES(const char *), path)
ON_PATH(mkdir, (const char *path, mode_t mode), path, TYPES(const char *, mode_t), path, mode)

int unlinkat(int directory, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  if (at_in("unlinkat", directory, path)) die();
  return real(directory, path, flags);
}

int renameat(int from_directory, const char *from, int directory, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *);
  if (at_in("renameat", directory, to)) die();
  return real(from_directory, from, directory, to);
}

int fsync(int fd) {
  REAL(int, fsync, int);
  if (at_fd("fsync", fd)) die();
  return real(fd);
}

#define TRUNCATE(name) \
  int name(int fd, off_t size) { \
    REAL(int, name, int, off_t); \
    if (at_fd(#name, fd)) die(); \
    return real(fd, size); \
  }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

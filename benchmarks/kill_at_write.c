/* Preloaded, it counts the calls of this process that change what lies below a folder, and one of them goes wrong.

   `arm(folder, n, fault)` starts the count. Of the n-th call, if it is a write, half is carried out, otherwise nothing.
   KILL: the process is killed there as by the kernel. ERROR: the call fails with EIO. FULL: it fails with ENOSPC, as do
   all after it that take space, and only such calls are counted. n = 0 only counts; `counted()` tells how far. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { KILL, ERROR, FULL };
enum { FREES, TAKES };

static char folder[4096];
static long fatal, count;
static int fault;

void arm(const char *where, long n, int what) {
  strncpy(folder, where, sizeof folder - 1);
  fatal = n;
  fault = what;
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

/* Whether this call goes wrong. */
static int at(const char *call, const char *path, int takes) {
  if (!below(path) || (fault == FULL && !takes)) return 0;
  long here = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (here == fatal) dprintf(2, "fault at call %ld: %s %s\n", fatal, call, path);
  return here == fatal || (fault == FULL && fatal && here > fatal);
}

static int at_fd(const char *call, int fd, int takes) {
  char path[4096];
  return fd > 2 && folder[0] && at(call, opened(fd, path, sizeof path), takes);
}

static int at_in(const char *call, int directory, const char *name, int takes) {
  char path[8192];
  if (!folder[0] || !name) return 0;
  if (name[0] == '/' || directory == AT_FDCWD) return at(call, name, takes);
  opened(directory, path, 4096);
  size_t length = strlen(path);
  snprintf(path + length, sizeof path - length, "/%s", name);
  return at(call, path, takes);
}

/* What a call returns that fails, if the process lives. */
static int failed(void) {
  if (fault == KILL) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  errno = fault == FULL ? ENOSPC : EIO;
  return -1;
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
    if (CHANGES(flags) && at(#name, path, TAKES)) return failed(); \
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
    if (CHANGES(flags) && at_in(#name, directory, path, TAKES)) return failed(); \
    return real(directory, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, name, const char *, const char *); \
    if (strpbrk(mode, "wa+") && at(#name, path, TAKES) && failed()) return NULL; \
    return real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  if (at_fd("write", fd, TAKES)) {
    ssize_t ignored = real(fd, data, size / 2);
    (void)ignored;
    return failed();
  }
  return real(fd, data, size);
}

#define PWRITE(name) \
  ssize_t name(int fd, const void *data, size_t size, off_t offset) { \
    REAL(ssize_t, name, int, const void *, size_t, off_t); \
    if (at_fd(#name, fd, TAKES)) { \
      ssize_t ignored = real(fd, data, size / 2, offset); \
      (void)ignored; \
      return failed(); \
    } \
    return real(fd, data, size, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_PATH(takes, name, declared, path, types, ...) \
  int name declared { \
    REAL(int, name, types); \
    if (at(#name, path, takes)) return failed(); \
    return real(__VA_ARGS__); \
  }
#define TYPES(...) __VA_ARGS__
ON_PATH(FREES, rename, (const char *from, const char *to), to, TYPES(const char *, const char *), from, to)
ON_PATH(TAKES, link, (const char *from, const char *to), to, TYPES(const char *, const char *), from, to)
ON_PATH(FREES, unlink, (const char *path), path, TYPES(const char *), path)
ON_PATH(FREES, rmdir, (const char *path), path, TYPES(const char *), path)
ON_PATH(TAKES, mkdir, (const char *path, mode_t mode), path, TYPES(const char *, mode_t), path, mode)

int unlinkat(int directory, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  if (at_in("unlinkat", directory, path, FREES)) return failed();
  return real(directory, path, flags);
}

int renameat(int from_directory, const char *from, int directory, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *);
  if (at_in("renameat", directory, to, FREES)) return failed();
  return real(from_directory, from, directory, to);
}

int fsync(int fd) {
  REAL(int, fsync, int);
  if (at_fd("fsync", fd, FREES)) return failed();
  return real(fd);
}

#define TRUNCATE(name) \
  int name(int fd, off_t size) { \
    REAL(int, name, int, off_t); \
    if (at_fd(#name, fd, FREES)) return failed(); \
    return real(fd, size); \
  }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

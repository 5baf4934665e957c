/* Lets a process's system calls on one folder fail, as a failing disk does.
 *
 * The library is loaded by LD_PRELOAD and does nothing until the process calls arm_faults. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4 };
#define FILES 65536

static char folder[4096];
static char watched[FILES]; /* Whether a descriptor is a file in the folder. */
static int armed_kind, armed_error;
static long first, last, calls;

/* From now on the calls of a kind on files in a folder fail with an errno, the n-th to the (n + count - 1)-th. */
void arm_faults(const char *path, int kind, int error, long n, long count) {
  snprintf(folder, sizeof folder, "%s/", path);
  armed_kind = kind, armed_error = error, calls = 0, first = n, last = n + count - 1;
}

/* Returns how many calls of the armed kind there were. */
long count_calls(void) { return calls; }

static int inside(const char *path) { return armed_kind && path && !strncmp(path, folder, strlen(folder)); }

static int fails(int kind, int concerned) {
  if (!concerned || armed_kind != kind) return 0;
  long n = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
  if (n < first || n > last) return 0;
  errno = armed_error;
  return 1;
}

static int is_watched(int fd) { return fd >= 0 && fd < FILES && watched[fd]; }

static int watch(int fd, const char *path) {
  if (fd >= 0 && fd < FILES) watched[fd] = inside(path);
  return fd;
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

#define OPEN_CALL(name)                                                        \
  int name(const char *path, int flags, ...) {                                 \
    va_list more;                                                              \
    va_start(more, flags);                                                     \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;    \
    va_end(more);                                                              \
    if (fails(OPEN, inside(path))) return -1;                                  \
    return watch(NEXT(int (*)(const char *, int, mode_t), #name)(path, flags, mode), path); \
  }
OPEN_CALL(open)
OPEN_CALL(open64)

#define OPENAT_CALL(name)                                                      \
  int name(int at, const char *path, int flags, ...) {                         \
    va_list more;                                                              \
    va_start(more, flags);                                                     \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;    \
    va_end(more);                                                              \
    if (fails(OPEN, inside(path))) return -1;                                  \
    return watch(NEXT(int (*)(int, const char *, int, mode_t), #name)(at, path, flags, mode), path); \
  }
OPENAT_CALL(openat)
OPENAT_CALL(openat64)

#define FOPEN_CALL(name)                                                       \
  FILE *name(const char *path, const char *mode) {                             \
    if (fails(OPEN, inside(path))) return NULL;                                \
    FILE *file = NEXT(FILE *(*)(const char *, const char *), #name)(path, mode); \
    if (file) watch(fileno(file), path);                                       \
    return file;                                                               \
  }
FOPEN_CALL(fopen)
FOPEN_CALL(fopen64)

#define TRANSFER(kind, name, buffer)                                           \
  ssize_t name(int fd, buffer *bytes, size_t count) {                          \
    if (fails(kind, is_watched(fd))) return -1;                                \
    return NEXT(ssize_t (*)(int, buffer *, size_t), #name)(fd, bytes, count);  \
  }
TRANSFER(READ, read, void)
TRANSFER(WRITE, write, const void)

#define TRANSFER_AT(kind, name, buffer)                                        \
  ssize_t name(int fd, buffer *bytes, size_t count, off_t offset) {            \
    if (fails(kind, is_watched(fd))) return -1;                                \
    return NEXT(ssize_t (*)(int, buffer *, size_t, off_t), #name)(fd, bytes, count, offset); \
  }
TRANSFER_AT(READ, pread, void)
TRANSFER_AT(READ, pread64, void)
TRANSFER_AT(WRITE, pwrite, const void)
TRANSFER_AT(WRITE, pwrite64, const void)

#define SEND(name)                                                             \
  ssize_t name(int to, int from, off_t *offset, size_t count) {                \
    if (fails(READ, is_watched(from))) return -1;                              \
    return NEXT(ssize_t (*)(int, int, off_t *, size_t), #name)(to, from, offset, count); \
  }
SEND(sendfile)
SEND(sendfile64)

size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
  if (fails(WRITE, is_watched(fileno(file)))) return 0;
  return NEXT(size_t (*)(const void *, size_t, size_t, FILE *), "fwrite")(bytes, size, count, file);
}

int fflush(FILE *file) {
  if (file && fails(WRITE, is_watched(fileno(file)))) return EOF;
  return NEXT(int (*)(FILE *), "fflush")(file);
}

int fsync(int fd) {
  if (fails(WRITE, is_watched(fd))) return -1;
  return NEXT(int (*)(int), "fsync")(fd);
}

int rename(const char *from, const char *to) {
  if (fails(WRITE, inside(to))) return -1;
  return NEXT(int (*)(const char *, const char *), "rename")(from, to);
}

int close(int fd) {
  watch(fd, NULL);
  return NEXT(int (*)(int), "close")(fd);
}

int fclose(FILE *file) {
  watch(fileno(file), NULL);
  return NEXT(int (*)(FILE *), "fclose")(file);
}

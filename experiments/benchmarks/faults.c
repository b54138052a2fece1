/* Preloaded into every process of a command by chaos.py: it shifts the wall clock that the process sees, and makes
   writing below one folder slow. Both amounts lie in a file that all of them map, so that they change while they run.

   Waits until a moment of the wall clock are told to the kernel in its own time; without that a clock set forward by
   hours would make them wait for hours, which no clock that is really set does. File times stay the kernel's. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EARLIEST 1000000000 /* seconds: a deadline before 2001 is one of the monotonic clock */

struct amounts { volatile int64_t clock_s, delay_us; };
static struct amounts none, *now = &none;
static const char *slow_folder = "";

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_AMOUNTS"), *folder = getenv("CHAOS_FOLDER");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) now = mapped;
    if (folder) slow_folder = folder;
}

/* dlsym returns the condition variables of 1999, which have another layout, unless it is told the version. */
static void *real(const char *name, const char *version) {
    void *found = version ? dlvsym(RTLD_NEXT, name, version) : NULL;
    return found ? found : dlsym(RTLD_NEXT, name);
}
#define REAL(name, version) \
    static __typeof__(name) *own; \
    if (!own) own = (__typeof__(name) *)real(#name, version)

/* --- the clock --------------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *at) {
    REAL(clock_gettime, NULL);
    int code = own(clock, at);
    if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += now->clock_s;
    return code;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    REAL(gettimeofday, NULL);
    int code = own(at, zone);
    if (!code) at->tv_sec += now->clock_s;
    return code;
}

time_t time(time_t *at) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (at) *at = found.tv_sec;
    return found.tv_sec;
}

static const struct timespec *kernels(const struct timespec *until, struct timespec *copy) {
    if (!until || until->tv_sec - now->clock_s < EARLIEST) return until;
    *copy = *until;
    copy->tv_sec -= now->clock_s;
    return copy;
}

int pthread_cond_timedwait(pthread_cond_t *restrict is, pthread_mutex_t *restrict lock, const struct timespec *restrict until) {
    REAL(pthread_cond_timedwait, "GLIBC_2.3.2");
    struct timespec copy;
    return own(is, lock, kernels(until, &copy));
}

int pthread_cond_clockwait(pthread_cond_t *is, pthread_mutex_t *lock, clockid_t clock, const struct timespec *until) {
    REAL(pthread_cond_clockwait, NULL);
    struct timespec copy;
    return own(is, lock, clock, clock == CLOCK_REALTIME ? kernels(until, &copy) : until);
}

int sem_timedwait(sem_t *restrict is, const struct timespec *restrict until) {
    REAL(sem_timedwait, NULL);
    struct timespec copy;
    return own(is, kernels(until, &copy));
}

long syscall(long number, ...) { /* by which Ray's own locks wait */
    REAL(syscall, NULL);
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    struct timespec copy;
    if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME)) d = (long)kernels((const struct timespec *)d, &copy);
    return own(number, a, b, c, d, e, f);
}

/* --- the disk ---------------------------------------------------------------------------------------------------- */

static void linger(const char *path) {
    if (!strncmp(path, slow_folder, strlen(slow_folder))) usleep(now->delay_us);
}

static void linger_at(int file) {
    char link[32], path[PATH_MAX];
    if (!now->delay_us || !*slow_folder) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    linger(path);
}

ssize_t write(int file, const void *bytes, size_t count) {
    REAL(write, NULL);
    linger_at(file);
    return own(file, bytes, count);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64, NULL);
    linger_at(file);
    return own(file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) __attribute__((alias("pwrite64")));

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev, NULL);
    linger_at(file);
    return own(file, parts, count);
}

int fsync(int file) {
    REAL(fsync, NULL);
    linger_at(file);
    return own(file);
}

int fdatasync(int file) {
    REAL(fdatasync, NULL);
    linger_at(file);
    return own(file);
}

int rename(const char *from, const char *to) {
    REAL(rename, NULL);
    if (now->delay_us && *slow_folder) linger(to);
    return own(from, to);
}

/* Steps the wall clock of one process: preloaded, it adds to each reading the nanoseconds that stand in the file CDC_TEST_CLOCK.
 *
 * The monotonic clock is left alone, as by a real step. A wait until a moment of the wall clock is given to the kernel in the kernel's
 * time, else a process whose clock stands in the future would wait for ever, and one in the past would spin. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;
static const volatile int64_t none = 0;
static const volatile int64_t *step = &none;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CDC_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *step, PROT_READ, MAP_SHARED, file, 0);
    if (found == MAP_FAILED)
        abort();
    step = found;
    close(file);
}

static struct timespec moved(struct timespec at, int64_t by) {
    int64_t all = at.tv_sec * SECOND + at.tv_nsec + by;
    return (struct timespec){all / SECOND, all % SECOND};
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        *at = moved(*at, *step);
    return failed;
}

int timespec_get(struct timespec *at, int base) { return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, at) ? base : 0; }

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *at = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

static void *next(const char *name, const char *version) {
    void *found = dlvsym(RTLD_NEXT, name, version); /* Not the oldest, which dlsym gives. */
    return found ? found : dlsym(RTLD_NEXT, name);
}

/* Waits in short turns, so that a step in between moves the end of the wait, as a step of the kernel's clock does. A deadline is one of the
 * wall clock unless it is small: nothing has been up for fifteen years. */
#define UNTIL(until, over, wait)                                                                                     \
    if ((until)->tv_sec < SECOND / 2) {                                                                               \
        const struct timespec *at = (until);                                                                          \
        return wait;                                                                                                  \
    }                                                                                                                 \
    for (;;) {                                                                                                        \
        struct timespec end = moved(*(until), -*step), now, turn, *at = &turn;                                        \
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);                                                             \
        int last = nanoseconds(end) <= nanoseconds(now) + TURN;                                                       \
        turn = last ? end : moved(now, TURN);                                                                         \
        int result = wait;                                                                                            \
        if (last || !(over))                                                                                          \
            return result;                                                                                            \
    }

static const int64_t TURN = 20000000;

static int64_t nanoseconds(struct timespec at) { return at.tv_sec * SECOND + at.tv_nsec; }

#define REAL(name, version, ...)                                                                                      \
    static int (*real)(__VA_ARGS__);                                                                                  \
    if (!real)                                                                                                        \
        real = next(#name, version);

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    REAL(pthread_cond_timedwait, "GLIBC_2.3.2", pthread_cond_t *, pthread_mutex_t *, const struct timespec *)
    UNTIL(until, result == ETIMEDOUT, real(cond, mutex, at))
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
    REAL(cnd_timedwait, "GLIBC_2.34", cnd_t *, mtx_t *, const struct timespec *)
    UNTIL(until, result == thrd_timedout, real(cond, mutex, at))
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    REAL(pthread_mutex_timedlock, "GLIBC_2.34", pthread_mutex_t *, const struct timespec *)
    UNTIL(until, result == ETIMEDOUT, real(mutex, at))
}

int mtx_timedlock(mtx_t *restrict mutex, const struct timespec *restrict until) {
    REAL(mtx_timedlock, "GLIBC_2.34", mtx_t *, const struct timespec *)
    UNTIL(until, result == thrd_timedout, real(mutex, at))
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    REAL(sem_timedwait, "GLIBC_2.34", sem_t *, const struct timespec *)
    UNTIL(until, result && errno == ETIMEDOUT, real(semaphore, at))
}

/* Makes every sync of the disk take at least SAMOVAR_SYNC_US microseconds, as it would on an eMMC: the real call is
 * made, then the rest of the time is slept. Preloaded (LD_PRELOAD) into the agent and into the references alike. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

static struct timespec until(void)
{
    static long long nanoseconds = -1;
    struct timespec at;
    if (nanoseconds < 0) {
        const char *text = getenv("SAMOVAR_SYNC_US");
        nanoseconds = text ? atoll(text) * 1000 : 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += (at.tv_nsec + nanoseconds) / 1000000000;
    at.tv_nsec = (at.tv_nsec + nanoseconds) % 1000000000;
    return at;
}

static int rest(struct timespec at, int result)
{
    int error = errno;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) { }
    errno = error;
    return result;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int fsync(int fd);
int fdatasync(int fd);
int syncfs(int fd);
int msync(void *address, size_t length, int flags);
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned int flags);

int fsync(int fd) { REAL(fsync); struct timespec at = until(); return rest(at, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); struct timespec at = until(); return rest(at, real(fd)); }
int syncfs(int fd) { REAL(syncfs); struct timespec at = until(); return rest(at, real(fd)); }
int msync(void *address, size_t length, int flags)
{
    REAL(msync);
    struct timespec at = until();
    return rest(at, real(address, length, flags));
}
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned int flags)
{
    REAL(sync_file_range);
    struct timespec at = until();
    return rest(at, real(fd, offset, length, flags));
}

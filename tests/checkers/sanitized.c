/* Corrections of the sanitizer's runtime, linked to every program under it. */
#include <dirent.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The runtime turns mlock into a no-op, for programs that lock all memory. The suites check the locked
 * bytes that the kernel counts, so these call the kernel. */
int mlock(const void *address, size_t bytes)
{
    return (int)syscall(SYS_mlock, address, bytes);
}

int munlock(const void *address, size_t bytes)
{
    return (int)syscall(SYS_munlock, address, bytes);
}

static int lost_threads; /* this is a forked child of a process with more threads */
static int threads_before;

static int threads(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/task");
    while (folder != NULL && readdir(folder) != NULL) count++;
    if (folder != NULL) closedir(folder);
    return count - 2; /* . and .. */
}

static void before_fork(void)
{
    threads_before = threads();
}

static void in_child(void)
{
    lost_threads |= threads_before != 1;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(before_fork, NULL, in_child);
}

/* LeakSanitizer calls this before it looks for leaks at the end of a process. A forked child lacks the
 * stacks of its parent's threads, so memory that only they point to would be reported. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return lost_threads;
}

/* What programs under a sanitizer need of their own. */
#include <dirent.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The runtimes make mlock do nothing, for the sake of who locks all memory. The suites count what the
 * kernel locked, so it is the kernel's again. */
int mlock(const void *address, size_t bytes)
{
    return (int)syscall(SYS_mlock, address, bytes);
}

int munlock(const void *address, size_t bytes)
{
    return (int)syscall(SYS_munlock, address, bytes);
}

#ifdef __SANITIZE_THREAD__
/* Rust's compiler instruments these as calls of the runtime, which knows them by their plain names. */
#include <string.h>

void *__tsan_memcpy(void *to, const void *from, size_t bytes);
void *__tsan_memmove(void *to, const void *from, size_t bytes);
void *__tsan_memset(void *memory, int value, size_t bytes);

void *__tsan_memcpy(void *to, const void *from, size_t bytes)
{
    return memcpy(to, from, bytes);
}

void *__tsan_memmove(void *to, const void *from, size_t bytes)
{
    return memmove(to, from, bytes);
}

void *__tsan_memset(void *memory, int value, size_t bytes)
{
    return memset(memory, value, bytes);
}
#endif

static int lacks_threads;

static int threads(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/task");
    while (folder != NULL && readdir(folder) != NULL) count++;
    if (folder != NULL) closedir(folder);
    return count - 2; /* . and .. */
}

static int were;

static void before_fork(void)
{
    were = threads();
}

static void in_child(void)
{
    lacks_threads |= were != 1;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(before_fork, NULL, in_child);
}

/* LeakSanitizer asks this before it looks for leaks as a process ends. A forked child lacks its parent's
 * threads, and with them the stacks that hold their memory: what it would call leaks are not. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return lacks_threads;
}

/* The promises of SECURITY.md about files, memory and the environment. */
#include <sys/auxv.h>

#include "model.h"

/* The flags of this process's descriptor of a file, by /proc; 0 if the file is not open. */
static unsigned long flags_of(const char *path)
{
    for (int descriptor = 0; descriptor < 256; descriptor++) {
        char link[64], found[400], line[100];
        unsigned long flags = 0;
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(link, found, sizeof found - 1);
        if (length < 0) continue;
        found[length] = '\0';
        if (strcmp(found, path) != 0) continue;
        snprintf(link, sizeof link, "/proc/self/fdinfo/%d", descriptor);
        FILE *info = fopen(link, "r");
        while (info != NULL && fgets(line, sizeof line, info) != NULL) {
            if (sscanf(line, "flags: %lo", &flags) == 1) break;
        }
        if (info != NULL) fclose(info);
        return flags;
    }
    return 0;
}

/* The number of shared mappings of this process; `writable`: only of writable ones. */
static int shared_mappings(int writable)
{
    char line[600], flags[8];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (maps == NULL) return -1;
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%*s %7s", flags) != 1) continue;
        found += flags[3] == 's' && (!writable || flags[1] == 'w');
    }
    fclose(maps);
    return found;
}

/* The number of open descriptors of this process. */
static int descriptors(void)
{
    int found = 0;
    for (int descriptor = 0; descriptor < 1024; descriptor++) {
        found += fcntl(descriptor, F_GETFD) >= 0;
    }
    return found;
}

static void files_are_opened_read_only_and_not_inherited(wb_device *device)
{
    char path[300];
    REQUIRE(pattern_file(path, sizeof path, "opened", 10000));
    REQUIRE(chmod(path, 0400) == 0);
    for (int pin = WB_TRISTATE_AUTO; pin <= WB_TRISTATE_OFF; pin++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        options.pin = pin;
        options.file_mode = WB_FILE_MODE_MAP;
        if (!CHECK_OK(wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error))) continue;
        const unsigned long flags = flags_of(path);
        CHECK(flags != 0 && (flags & O_ACCMODE) == O_RDONLY && (flags & O_CLOEXEC) != 0);
        CHECK_SAME(describe(buffer).read_only, 1);
        CHECK_SAME(shared_mappings(1), 0);
        wb_buffer_release(buffer);
        CHECK_SAME(flags_of(path), 0);
    }
    unlink(path);
}

/* A session leader without a terminal gets the first one that it opens without O_NOCTTY. */
static void a_terminal_does_not_become_the_controlling_terminal(wb_device *device)
{
    wb_buffer *buffer = NULL;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    const char *terminal = NULL;
    if (master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0) terminal = ptsname(master);
    if (terminal == NULL) NOT_RUN("there are no pseudo-terminals");
    REQUIRE(setsid() > 0);
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    CHECK_ERROR(WB_ERR_FILE_ACCESS,
                wb_buffer_map_file(device, terminal, 0, 0, NULL, &buffer, &error),
                "not a regular file");
    CHECK(open("/dev/tty", O_RDONLY) < 0);
    wb_device_release(device);
    close(master);
}

static void memory_is_not_shared_with_other_processes(wb_device *device)
{
    struct offload o;
    const int before = descriptors();
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_AUTO));
    for (int pin = WB_TRISTATE_AUTO; pin <= WB_TRISTATE_OFF; pin++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        void *address = NULL;
        options.pin = pin;
        if (!CHECK_OK(wb_buffer_alloc(device, 3 << 20, &options, &buffer, &error))) continue;
        CHECK_OK(wb_device_alloc(device, 5000, &address, &error));
        CHECK_SAME(shared_mappings(0), 0);
        CHECK_SAME(descriptors(), before);
        CHECK_OK(wb_device_free(device, address, &error));
        wb_buffer_release(buffer);
    }
    offload_end(&o);
}

/* The caller of a set-user-ID program chooses its environment, which must not be read. The value
 * "perhaps" is invalid, so that reading it would be an error. */
static int open_with_environment(void)
{
    wb_device *device = NULL;
    if (getauxval(AT_SECURE) == 0) return 77;
    if (wb_device_open("host", NULL, &device, &error) != WB_OK) return 1;
    wb_device_release(device);
    return 0;
}

static int copy_program(const char *to)
{
    char bytes[65536];
    ssize_t count = 0;
    int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int copy = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    while (from >= 0 && copy >= 0 && (count = read(from, bytes, sizeof bytes)) > 0) {
        if (write(copy, bytes, (size_t)count) != count) break;
    }
    const int done = copy >= 0 && count == 0 && fchmod(copy, 04755) == 0;
    close(from);
    close(copy);
    return done;
}

static void a_set_user_id_program_does_not_read_its_environment(wb_device *device)
{
    static char variable[] = "WEIGHBRIDGE_DISABLE_PIN_MEMORY=perhaps";
    static char option[] = "--set-user-id";
    char path[300];
    char *arguments[] = {path, option, NULL}, *environment[] = {variable, NULL};
    int status = 0;
    if (geteuid() != 0) NOT_RUN("only root can create the set-user-ID program");
    file_name(path, sizeof path, "set-user-id");
    REQUIRE(copy_program(path));
    setenv("WEIGHBRIDGE_DISABLE_PIN_MEMORY", "perhaps", 1);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open("host", NULL, &device, &error), "perhaps");
    pid_t child = fork();
    if (child == 0) {
        if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0) _exit(126);
        execve(path, arguments, environment);
        _exit(127);
    }
    waitpid(child, &status, 0);
    unlink(path);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (code == 77) NOT_RUN("this file system ignores set-user-ID");
    if (code >= 126) NOT_RUN("another user cannot run the program or load the library");
    CHECK_SAME(code, 0);
}

int main(int count, char **arguments)
{
    const struct check_case cases[] = {
        CASE(files_are_opened_read_only_and_not_inherited),
        CASE_ALONE(HOST_ONLY, a_terminal_does_not_become_the_controlling_terminal),
        CASE(memory_is_not_shared_with_other_processes),
        CASE_ALONE(HOST_ONLY, a_set_user_id_program_does_not_read_its_environment)};
    if (count == 2 && strcmp(arguments[1], "--set-user-id") == 0) return open_with_environment();
    return check_run(cases, sizeof cases / sizeof cases[0]);
}

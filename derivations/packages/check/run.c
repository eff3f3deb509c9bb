// Runs every program of the folders that are named, and fails if one does. It is the builder of a derivation
// whose root holds the target's own libraries and these programs and nothing else: no shell, so it is in C,
// and linked statically, so that it can say what is wrong even where nothing dynamic runs.
//
//     run FOLDER…
//
// A program of a folder called `static` must have no interpreter, any other must have one. What was run and
// what it printed goes to standard output and to $out/usr/share/srp/check/report.
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static FILE *report;

static void say(const char *format, ...) {
    va_list arguments;
    for (int i = 0; i < 2; i++) {
        va_start(arguments, format);
        vfprintf(i ? report : stdout, format, arguments);
        va_end(arguments);
    }
    fflush(stdout);
}

static void give_up(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

static void open_report(void) {
    const char *out = getenv("out");
    if (!out) { errno = ENOENT; give_up("the variable out"); }
    char path[4096];
    const char *const parts[] = {"/usr", "/share", "/srp", "/check"};
    strcpy(path, out);
    for (int i = 0; i < 4; i++) {
        strcat(path, parts[i]);
        if (mkdir(path, 0755) && errno != EEXIST) give_up(path);
    }
    strcat(path, "/report");
    if (!(report = fopen(path, "w"))) give_up(path);
}

// The ELF machine's number of a program, and its interpreter ("" for none).
static int inspect(const char *path, char *interpreter, size_t size) {
    Elf64_Ehdr header;
    FILE *file = fopen(path, "r");
    if (!file || fread(&header, sizeof header, 1, file) != 1) give_up(path);
    *interpreter = 0;
    for (int i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        fseek(file, header.e_phoff + (long)i * header.e_phentsize, SEEK_SET);
        if (fread(&segment, sizeof segment, 1, file) != 1) give_up(path);
        if (segment.p_type != PT_INTERP || segment.p_filesz > size) continue;
        fseek(file, segment.p_offset, SEEK_SET);
        if (fread(interpreter, segment.p_filesz, 1, file) != 1) give_up(path);
    }
    fclose(file);
    return header.e_machine;
}

static int run(const char *path, int dynamic) {
    char interpreter[256];
    int machine = inspect(path, interpreter, sizeof interpreter);
    say("%s: ELF machine %d, %s\n", path, machine, *interpreter ? interpreter : "static");
    if ((*interpreter != 0) != dynamic) {
        say("    is linked the wrong way\n");
        return 1;
    }

    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) give_up("pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    char *words[] = {(char *)path, NULL};
    pid_t child;
    int failed = posix_spawn(&child, path, &actions, NULL, words, environ);
    close(ends[1]);
    if (failed) {
        say("    could not be started: %s\n", strerror(failed));
        return 1;
    }
    FILE *printed = fdopen(ends[0], "r");
    for (char line[1024]; fgets(line, sizeof line, printed);) say("    %s", line);
    fclose(printed);
    int status;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) say("    was ended by signal %d\n", WTERMSIG(status));
    else say("    exit status %d\n", WEXITSTATUS(status));
    return status != 0;
}

static int visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

int main(int count, char **folders) {
    open_report();
    struct utsname system;
    uname(&system);
    say("%s %s\n", system.sysname, system.machine);
    int programs = 0, failures = 0;
    for (int i = 1; i < count; i++) {
        const char *name = strrchr(folders[i], '/');
        int dynamic = strcmp(name ? name + 1 : folders[i], "static") != 0;
        struct dirent **entries;
        int found = scandir(folders[i], &entries, visible, alphasort);
        if (found < 0) give_up(folders[i]);
        for (int j = 0; j < found; j++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", folders[i], entries[j]->d_name);
            failures += run(path, dynamic);
            programs++;
        }
    }
    say("%d programs, %d failed\n", programs, failures);
    if (fclose(report)) give_up("the report");
    return failures || !programs;
}

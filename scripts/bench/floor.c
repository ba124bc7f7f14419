/* The floor of every throughput figure: N payloads, W at a time, started by posix_spawn and
 * waited for, each in a directory of its own with an input.json, and nothing else.
 *   floor POINTS WIDTH DIR COMMAND        prints wall seconds; CPU is taken from outside
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void start(long point, const char *dir, char *command) {
    char work[4096], input[4200];
    snprintf(work, sizeof work, "%s/%ld", dir, point);
    snprintf(input, sizeof input, "%s/input.json", work);
    mkdir(work, 0700);
    int fd = open(input, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dprintf(fd, "{\"x\": %ld}", point);
    close(fd);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, work);
    char *argv[] = {"/bin/sh", "-c", command, NULL};
    pid_t pid;
    if (posix_spawn(&pid, "/bin/sh", &actions, NULL, argv, environ) != 0) {
        perror("posix_spawn");
        exit(1);
    }
    posix_spawn_file_actions_destroy(&actions);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: floor POINTS WIDTH DIR COMMAND\n");
        return 64;
    }
    long points = atol(argv[1]), width = atol(argv[2]), started = 0, running = 0;
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (started < points || running > 0) {
        if (started < points && running < width) {
            start(++started, argv[3], argv[4]);
            running++;
        } else if (wait(NULL) > 0) {
            running--;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%.6f\n", (ended.tv_sec - began.tv_sec) + (ended.tv_nsec - began.tv_nsec) / 1e9);
    return 0;
}

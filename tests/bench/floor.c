/* What no launch of a container can undercut, to measure beside, and how much memory a program takes.
 *
 *   floor launch ROOTFS PROGRAM CGROUP...  makes the control groups (folders of v1 hierarchies), clones a child
 *                                          with new namespaces, which joins the groups and executes PROGRAM in
 *                                          ROOTFS; waits for it and removes the groups
 *   floor peak FILE PROGRAM ARG...         runs the program and writes its ru_maxrss to FILE, in KiB
 *
 * `peak` has to be a small program, since a child begins with the peak of whom it was forked from.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NAMESPACES (CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)

static void fail(const char *what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  _exit(125);
}

/* Writing 0 means the thread that writes, which spares the kernel the wait that moving another one costs. */
static void join_group(const char *group) {
  char path[4096];
  int fd;
  snprintf(path, sizeof path, "%s/tasks", group);
  fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "0", 1) != 1) fail(path);
  close(fd);
}

static int launch(const char *rootfs, const char *program, char **groups) {
  struct clone_args args = {.flags = NAMESPACES, .exit_signal = SIGCHLD};
  char *argv[] = {(char *)program, NULL}, *envp[] = {NULL};
  int status;
  long pid;
  for (char **group = groups; *group; group++)
    if (mkdir(*group, 0755)) fail(*group);
  pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid < 0) fail("clone3");
  if (pid == 0) {
    for (char **group = groups; *group; group++) join_group(*group);
    if (chroot(rootfs) || chdir("/")) fail(rootfs);
    execve(program, argv, envp);
    fail(program);
  }
  if (waitpid(pid, &status, 0) < 0) fail("waitpid");
  for (char **group = groups; *group; group++)
    if (rmdir(*group)) fail(*group);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int peak(const char *file, char **argv) {
  struct rusage usage;
  int status, fd;
  pid_t pid = vfork();
  if (pid < 0) fail("vfork");
  if (pid == 0) {
    execvp(argv[0], argv);
    _exit(127);
  }
  if (wait4(pid, &status, 0, &usage) < 0) fail("wait4");
  fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0 || dprintf(fd, "%ld\n", usage.ru_maxrss) < 0) fail(file);
  close(fd);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
  if (argc >= 4 && !strcmp(argv[1], "launch")) return launch(argv[2], argv[3], argv + 4);
  if (argc >= 4 && !strcmp(argv[1], "peak")) return peak(argv[2], argv + 3);
  fprintf(stderr, "usage: floor launch ROOTFS PROGRAM CGROUP... | floor peak FILE PROGRAM ARG...\n");
  return 2;
}

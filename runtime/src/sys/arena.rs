//! Memory of commands: taken from one room, and given back with the process.
//!
//! musl's allocator asks the kernel for its pages one by one, and gives them back as soon as it can: some thirty calls for
//! a container, and while a thread runs on another processor, each page that goes has to be made known there. A command
//! needs little and is soon over, so here memory is handed out in a row and hardly ever taken back; what does not fit any
//! more comes from musl. A monitor stays, and says [`Arena::leave`] first.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const ROOM_BYTES: usize = 256 * 1024;
/// How much of the room, and of the stack, a launch uses in any case.
const USED_BYTES: usize = 40 * 1024;

#[repr(C, align(4096))]
struct Room(UnsafeCell<[u8; ROOM_BYTES]>);

// SAFETY: every part of it belongs to whom it was handed out to, and `NEXT` is moved by one at a time.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; ROOM_BYTES]));
/// Where that begins which nobody has.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicBool = AtomicBool::new(false);

/// The allocator of a program that is built with musl.
#[derive(Debug)]
pub struct Arena;

impl Arena {
    /// From here on all memory comes from musl.
    pub fn leave() {
        LEFT.store(true, Ordering::Relaxed);
    }
}

/// Has the memory that a launch is about to use put there at once, which costs much less than page by page. Where the
/// kernel cannot (before Linux 5.14) it comes page by page.
pub(crate) fn make_ready() {
    let here = 0_u8;
    let stack = ptr::from_ref(&here).addr() - USED_BYTES;
    // Another allocator has no use for the room.
    let room = cfg!(target_env = "musl").then(|| base().addr());
    for start in room.into_iter().chain([stack]) {
        let start = ptr::without_provenance_mut(start & !4095);
        // SAFETY: what can be read there stays as it is.
        unsafe { libc::madvise(start, USED_BYTES, libc::MADV_POPULATE_WRITE) };
    }
}

fn base() -> *mut u8 {
    ROOM.0.get().cast()
}

/// Where it is in the room; `None`: it is from elsewhere.
fn place(pointer: *mut u8) -> Option<usize> {
    pointer.addr().checked_sub(base().addr()).filter(|offset| *offset < ROOM_BYTES)
}

fn take(layout: Layout) -> Option<*mut u8> {
    let mut end = 0;
    let fit = |next: usize| {
        let start = next.checked_next_multiple_of(layout.align())?;
        end = start.checked_add(layout.size()).filter(|end| *end <= ROOM_BYTES)?;
        Some(end)
    };
    // The room itself is aligned to pages, and so to whatever is asked for up to that.
    if LEFT.load(Ordering::Relaxed) || layout.align() > 4096 {
        return None;
    }
    NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fit).ok()?;
    // SAFETY: it ends in the room.
    Some(unsafe { base().add(end - layout.size()) })
}

/// Moves the end of what was handed out last; `false` if something was handed out behind it.
fn resize(start: usize, before: usize, after: usize) -> bool {
    let Some(end) = start.checked_add(after).filter(|end| *end <= ROOM_BYTES) else { return false };
    NEXT.compare_exchange(start + before, end, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

// SAFETY: what `take` hands out has the layout's size and alignment, nobody else has it, and it stays until it is given
// back; all else is the system's, who gets back what is from there.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            // It may have been somebody's before.
            // SAFETY: `take` has handed out so much.
            Some(pointer) => unsafe {
                ptr::write_bytes(pointer, 0, layout.size());
                pointer
            },
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match place(pointer) {
            Some(start) => drop(resize(start, layout.size(), 0)),
            // SAFETY: it is not from the room, so it is from there.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(start) = place(pointer) else {
            // SAFETY: it is not from the room, so it is from there.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        if resize(start, layout.size(), size) {
            return pointer;
        }
        // SAFETY: the caller promises that this is a layout; both have as much as is copied, and are not the same.
        unsafe {
            let other = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !other.is_null() {
                ptr::copy_nonoverlapping(pointer, other, layout.size().min(size));
            }
            other
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// One test, as there is one room.
    #[test]
    fn memory_is_handed_out_in_a_row_and_then_comes_from_elsewhere() {
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: every pointer is used as long and as far as its layout says, and given back once.
        unsafe {
            let first = Arena.alloc(layout(100));
            let second = Arena.alloc(layout(50));
            assert_eq!(second.addr() - first.addr(), 104);
            // The last one grows where it is, and so does what is made of it.
            second.write_bytes(7, 50);
            assert_eq!(Arena.realloc(second, layout(50), 500), second);
            assert!((0..50).all(|index| *second.add(index) == 7));
            // Another one is taken elsewhere, with what is in it.
            first.write_bytes(9, 100);
            let moved = Arena.realloc(first, layout(100), 200);
            assert_eq!(moved.addr(), second.addr() + 504);
            assert!((0..100).all(|index| *moved.add(index) == 9));
            // What was given back last is there again, and is zeroed if that is asked for.
            Arena.dealloc(moved, layout(200));
            let again = Arena.alloc_zeroed(layout(64));
            assert_eq!(again, moved);
            assert!((0..64).all(|index| *again.add(index) == 0));
            let aligned = Arena.alloc(Layout::from_size_align(10, 4096).unwrap());
            assert_eq!(aligned.addr() % 4096, 0);
            // More than there is.
            let large = Arena.alloc(layout(ROOM_BYTES));
            assert!(place(large).is_none() && place(aligned).is_some());
            let larger = Arena.realloc(large, layout(ROOM_BYTES), 2 * ROOM_BYTES);
            Arena.dealloc(larger, layout(2 * ROOM_BYTES));
            Arena::leave();
            let outside = Arena.alloc(layout(16));
            assert!(place(outside).is_none());
            Arena.dealloc(outside, layout(16));
        }
    }
}

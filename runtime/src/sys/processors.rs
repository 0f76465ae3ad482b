//! Where what is new begins to run.
//!
//! A new thread or process mostly begins on a processor that idles. But some kernels keep to as few processors as they
//! can, and put it in the queue behind the one that has made it, where it waits until that has nothing more to do. Where
//! the two are meant to work at the same time, this says so. It makes no difference but in time: so it is no error where
//! it cannot be done.

use std::io;
use std::mem;

use super::check;

type Set = libc::cpu_set_t;

/// Has a thread or process that was made just now begin on another processor than ours. It stays away from ours, until it
/// [may be everywhere](may_be_everywhere).
pub(crate) fn begin_elsewhere(task: i32) {
    if let Some((_, others)) = allowed().and_then(split) {
        let _ = set(task, &others);
    }
}

/// This thread keeps to some processors. When this goes, the thread may be where it could be before.
#[must_use]
pub(crate) struct Away(Set);

impl Drop for Away {
    fn drop(&mut self) {
        let _ = set(0, &self.0);
    }
}

/// This thread, and what it makes, keeps to the processor that it is on.
#[must_use]
pub(crate) struct Here {
    others: Set,
    away: Away,
}

/// Has a process that is made next begin on our processor, where its memory is at hand. It stays here, until it
/// [may be everywhere](may_be_everywhere).
pub(crate) fn keep_here() -> Option<Here> {
    let all = allowed()?;
    let (ours, others) = split(all)?;
    set(0, &ours).is_ok().then_some(Here { others, away: Away(all) })
}

impl Here {
    /// Goes to another processor, and stays there: a kernel that packs its work wakes us where it is that tells us something, and we
    /// would wait for each other.
    pub(crate) fn leave(self) -> Away {
        let _ = set(0, &self.others);
        self.away
    }
}

/// Tells a process that it may use all processors, also those that will be there later; what its control groups say
/// counts as ever. Not only those that we may use: whoever wants a container to have less says so to the container.
pub(crate) fn may_be_everywhere(pid: i32) -> io::Result<()> {
    // SAFETY: a set of zeros is valid.
    let mut all: Set = unsafe { mem::zeroed() };
    for processor in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: the number is within the set.
        unsafe { libc::CPU_SET(processor, &mut all) };
    }
    match set(pid, &all) {
        // It has ended, and why is known elsewhere.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Those that this thread may use.
fn allowed() -> Option<Set> {
    // SAFETY: a set of zeros is valid, and the kernel writes no more than its size.
    unsafe {
        let mut allowed: Set = mem::zeroed();
        (libc::sched_getaffinity(0, mem::size_of::<Set>(), &raw mut allowed) == 0).then_some(allowed)
    }
}

/// That on which we are, and the others; `None` if there are none.
fn split(allowed: Set) -> Option<(Set, Set)> {
    // SAFETY: takes nothing, and gives a number.
    let number = usize::try_from(unsafe { libc::sched_getcpu() }).ok()?;
    if number >= libc::CPU_SETSIZE as usize {
        return None;
    }
    // SAFETY: a set of zeros is valid.
    let (mut ours, mut others): (Set, Set) = (unsafe { mem::zeroed() }, allowed);
    // SAFETY: the number is within the sets; the count only reads.
    let more = unsafe {
        libc::CPU_SET(number, &mut ours);
        libc::CPU_CLR(number, &mut others);
        libc::CPU_COUNT(&others)
    };
    (more > 0).then_some((ours, others))
}

fn set(task: i32, processors: &Set) -> io::Result<()> {
    // SAFETY: the set lives through the call, and has the size that is given.
    let result = unsafe { libc::sched_setaffinity(task, mem::size_of::<Set>(), processors) };
    check(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;

    /// What a process may use, as the kernel tells it.
    fn of(pid: u32) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    }

    fn of_thread() -> String {
        let task = fs::read_link("/proc/thread-self").unwrap();
        let task = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        of(task)
    }

    #[test]
    fn we_leave_and_may_come_back() {
        let before = of(std::process::id());
        let here = keep_here();
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let its = of(cat.id());
        let away = here.map(Here::leave);
        assert!(its.parse::<u32>().is_ok() && of(cat.id()) == its, "{its} of {before}");
        assert!(away.is_none() || of_thread() != its, "{its} of {before}");
        drop(away);
        assert_eq!(of_thread(), before);
        may_be_everywhere(cat.id() as i32).unwrap();
        assert!(of(cat.id()).len() >= before.len(), "{} after {before}", of(cat.id()));
        cat.kill().unwrap();
        cat.wait().unwrap();
    }

    #[test]
    fn a_process_that_began_elsewhere_may_be_everywhere_again() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let before = of(cat.id());
        begin_elsewhere(cat.id() as i32);
        assert_eq!(of(cat.id()) != before, split(allowed().unwrap()).is_some());
        may_be_everywhere(cat.id() as i32).unwrap();
        assert!(of(cat.id()).len() >= before.len(), "{} after {before}", of(cat.id()));
        cat.kill().unwrap();
        cat.wait().unwrap();
        may_be_everywhere(cat.id() as i32).unwrap();
    }
}

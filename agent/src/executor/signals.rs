//! Whether a container's first process can take a signal just now, as `/proc/<pid>/status` has it.
//!
//! The kernel drops a signal to the first process of a pid namespace while that has no handler for it
//! (pid_namespaces(7)). A stop right after a start comes before the handler: a program that ends in a moment when
//! it is asked to would only be killed, ten seconds later, when its grace is over.

/// Whether a signal would be handled, kept for later, or end the process. Text that can't be read says yes.
pub(super) fn takes(status: &str, signal: i32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    // One pid a namespace, the innermost last: only the first process of its own namespace is deaf to anything.
    let is_first = field("NSpid").is_some_and(|pids| {
        let mut pids = pids.split_whitespace().rev();
        pids.next() == Some("1") && pids.next().is_some()
    });
    let Some(bit) = u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)) else {
        return true;
    };
    let has = |name: &str| {
        let mask = field(name).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        mask.is_none_or(|mask| mask & bit != 0)
    };
    // A blocked signal is kept (sigwait(3), signalfd(2)); one that is neither is ignored or dropped.
    !is_first || has("SigCgt") || has("SigBlk")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ns_pids: &str, blocked: u64, caught: u64) -> String {
        format!(
            "Name:\tx\nNSpid:\t{ns_pids}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{caught:016x}\n",
            0
        )
    }

    #[test]
    fn only_the_first_process_of_a_namespace_is_deaf_and_only_without_a_handler() {
        let term = 1 << 14;
        assert!(!takes(&status("4711\t1", 0, 0), 15));
        assert!(!takes(&status("4711\t1", 0, term), 3), "it handles another one");
        assert!(takes(&status("4711\t1", 0, term), 15));
        assert!(takes(&status("4711\t1", term, 0), 15), "kept for signalfd");
        assert!(takes(&status("4711\t2", 0, 0), 15), "not the first");
        assert!(takes(&status("1", 0, 0), 15), "the machine's own");
        assert!(takes("", 15));
    }
}

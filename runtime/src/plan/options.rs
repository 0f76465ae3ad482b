//! The options of a mount, sorted into what the kernel calls them: attributes of the mount, its propagation, the kind of
//! mount, and what is left for the file system. The words are those of the specification (config-linux.md, Linux mount
//! options) and of mount(8).

use std::ffi::CString;

use super::{Result, invalid, text};

pub(crate) const ATTR_RDONLY: u64 = 0x01;
pub(crate) const ATTR_NOSUID: u64 = 0x02;
pub(crate) const ATTR_NODEV: u64 = 0x04;
pub(crate) const ATTR_NOEXEC: u64 = 0x08;
const ATTR_ATIME: u64 = 0x70;
const ATTR_NOATIME: u64 = 0x10;
const ATTR_STRICTATIME: u64 = 0x20;
const ATTR_NODIRATIME: u64 = 0x80;
const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// Options of a file system as a whole. On a bind mount the kernel lets them be without a word, since they would change
/// the file system for the host as well; so do we.
const OF_THE_FILESYSTEM: [&str; 9] =
    ["sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime", "iversion", "noiversion"];

/// One change of a mount, or of all in a tree of mounts; see mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// MS_PRIVATE and its like; 0: as it is.
    pub(crate) propagation: u64,
    pub(crate) recursive: bool,
}

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// For the mount itself: MOUNT_ATTR_* to set and to clear.
    pub(super) own: Change,
    /// For it and all below it (`rro`).
    pub(super) tree: Change,
    /// In the order given; each is applied after the one before.
    pub(super) propagation: Vec<Change>,
    /// For the file system.
    pub(super) data: Vec<(CString, Option<CString>)>,
    /// A bind mount: whether with all that is mounted below.
    pub(super) bind: Option<bool>,
    pub(super) remount: bool,
    /// What the image has at that place is copied into the new file system.
    pub(super) copy_up: bool,
    /// Owners are mapped: whether on all that is mounted below, too.
    pub(super) idmap: Option<bool>,
}

impl Options {
    pub(super) fn of<'a>(words: impl Iterator<Item = &'a str>, field: &str) -> Result<Options> {
        let field = format!("{field}.options");
        let mut options = Options::default();
        for word in words {
            if !options.kind(word) && !options.attribute(word) && !options.propagation(word) {
                options.data.push(match word.split_once('=') {
                    Some((key, value)) => (text(key, &field)?, Some(text(value, &field)?)),
                    None => (text(word, &field)?, None),
                });
            }
        }
        let foreign = options.data.iter().find(|(key, _)| !of_the_filesystem(key));
        if options.bind.is_some()
            && let Some((key, _)) = foreign
        {
            let reason = format!(
                "{:?} is for a file system that is mounted, a bind mount takes none",
                key.to_string_lossy()
            );
            return Err(invalid(&field, &reason));
        }
        Ok(options)
    }

    fn kind(&mut self, word: &str) -> bool {
        match word {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(self.idmap.unwrap_or(false)),
            "ridmap" => self.idmap = Some(true),
            "defaults" | "silent" | "loud" | "" => {}
            _ => return false,
        }
        true
    }

    /// Options of the mount itself; with `r` before it (`rro`), for everything below, too.
    fn attribute(&mut self, word: &str) -> bool {
        if self.own.attribute(word) {
            return true;
        }
        self.tree.recursive = true;
        word.strip_prefix('r').is_some_and(|bare| self.tree.attribute(bare))
    }

    fn propagation(&mut self, word: &str) -> bool {
        let Some((propagation, recursive)) = propagation_of(word) else { return false };
        self.propagation.push(Change { propagation, recursive, ..Change::default() });
        true
    }

    /// Everything that is to be done to a bind mount, in as few calls as it takes. `otherwise`: its propagation if no
    /// option names one.
    pub(super) fn changes(&self, otherwise: Option<Change>) -> Vec<Change> {
        let mut changes = self.propagation.clone();
        if changes.is_empty() {
            changes.extend(otherwise);
        }
        for wanted in [self.own, self.tree].into_iter().filter(|change| change.set | change.clear != 0) {
            match changes.last_mut() {
                Some(last) if last.recursive == wanted.recursive && last.set | last.clear == 0 => {
                    (last.set, last.clear) = (wanted.set, wanted.clear);
                }
                _ => changes.push(wanted),
            }
        }
        changes
    }
}

impl Change {
    fn attribute(&mut self, word: &str) -> bool {
        let (bits, set) = match word {
            "ro" => (ATTR_RDONLY, true),
            "rw" => (ATTR_RDONLY, false),
            "nosuid" => (ATTR_NOSUID, true),
            "suid" => (ATTR_NOSUID, false),
            "nodev" => (ATTR_NODEV, true),
            "dev" => (ATTR_NODEV, false),
            "noexec" => (ATTR_NOEXEC, true),
            "exec" => (ATTR_NOEXEC, false),
            "nodiratime" => (ATTR_NODIRATIME, true),
            "diratime" => (ATTR_NODIRATIME, false),
            "nosymfollow" => (ATTR_NOSYMFOLLOW, true),
            "symfollow" => (ATTR_NOSYMFOLLOW, false),
            "noatime" => return self.atime(ATTR_NOATIME),
            "strictatime" => return self.atime(ATTR_STRICTATIME),
            // What the kernel does if it is told nothing.
            "relatime" | "atime" | "nostrictatime" => return self.atime(0),
            // Neither of the other two is asked for.
            "norelatime" => return true,
            _ => return false,
        };
        if set {
            self.set |= bits;
            self.clear &= !bits;
        } else {
            self.clear |= bits;
            self.set &= !bits;
        }
        true
    }

    /// One of three: the kernel wants the old choice cleared as a whole.
    fn atime(&mut self, choice: u64) -> bool {
        self.clear |= ATTR_ATIME;
        self.set = self.set & !ATTR_ATIME | choice;
        true
    }
}

/// `private` and its like, with `r` before it for all that is mounted below: (MS_* flag, whether for all).
pub(super) fn propagation_of(word: &str) -> Option<(u64, bool)> {
    let flag = |name: &str| match name {
        "private" => Some(libc::MS_PRIVATE),
        "shared" => Some(libc::MS_SHARED),
        "slave" => Some(libc::MS_SLAVE),
        "unbindable" => Some(libc::MS_UNBINDABLE),
        _ => None,
    };
    let recursive = || word.strip_prefix('r').and_then(flag).map(|found| (found, true));
    flag(word).map(|found| (found, false)).or_else(recursive)
}

pub(super) fn of_the_filesystem(key: &CString) -> bool {
    OF_THE_FILESYSTEM.iter().any(|known| known.as_bytes() == key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        Options::of(words.iter().copied(), "mounts[0]").unwrap()
    }

    #[test]
    fn the_last_word_counts() {
        let own = options(&["ro", "nosuid", "rw", "noatime", "relatime", "dev", "nodev"]).own;
        assert_eq!(own.set, ATTR_NOSUID | ATTR_NODEV);
        assert_eq!(own.clear, ATTR_RDONLY | ATTR_ATIME);
        let tree = options(&["rro", "rnoatime", "rexec", "rrelatime"]).tree;
        assert_eq!((tree.set, tree.clear), (ATTR_RDONLY, ATTR_ATIME | ATTR_NOEXEC));
    }

    #[test]
    fn words_that_start_alike_are_told_apart() {
        // Not `r` and "elatime", nor `r` and "o".
        assert_eq!(options(&["relatime"]).tree.clear, 0);
        assert_eq!(options(&["ro"]).tree.set, 0);
        assert_eq!(options(&["rbind"]).bind, Some(true));
        assert_eq!(options(&["rbind", "bind"]).bind, Some(true));
        assert_eq!(options(&["ridmap"]).idmap, Some(true));
    }

    #[test]
    fn a_bind_mount_is_changed_in_as_few_calls_as_can_be() {
        let private = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
        let count = |words: &[&str], otherwise| options(words).changes(otherwise).len();
        assert_eq!(count(&["rbind"], None), 0);
        assert_eq!(count(&["rbind", "ro"], None), 1);
        assert_eq!(count(&["rbind", "rslave", "rro"], None), 1);
        assert_eq!(count(&["rbind", "rprivate", "ro", "rnosuid"], None), 3);
        assert_eq!(count(&["rbind", "slave", "shared"], Some(private)), 2);
        let only = options(&["bind", "private", "ro"]).changes(Some(private));
        let wanted = Change { set: ATTR_RDONLY, propagation: libc::MS_PRIVATE, ..Change::default() };
        assert_eq!(only, [wanted]);
    }

    #[test]
    fn options_of_a_file_system_do_not_go_with_a_bind_mount() {
        let bind = |word| Options::of(["bind", word].into_iter(), "mounts[3]");
        assert_eq!(bind("size=1m").unwrap_err().field, "mounts[3].options");
        assert_eq!(bind("cpoy").unwrap_err().field, "mounts[3].options");
        assert!(bind("sync").is_ok(), "the kernel takes it, and does nothing");
        assert_eq!(options(&["size=1m", "sync"]).data.len(), 2);
    }
}

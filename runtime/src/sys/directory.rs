//! What a directory has.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use super::check;

/// What a directory has, by name, with whether it is a directory; not every file system says that. std's way maps memory for it.
pub(crate) fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Option<bool>)>> {
    /// From the beginning of an entry (getdents64(2)): inode, offset, length, kind, name.
    const LENGTH: usize = 16;
    const KIND: usize = 18;
    const NAME: usize = 19;
    let mut entries = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        // SAFETY: the kernel writes at most as much as there is room for.
        let read = check(unsafe {
            libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        })?;
        let mut rest = &buffer[..read as usize];
        if rest.is_empty() {
            return Ok(entries);
        }
        while let Some(length) = rest.get(LENGTH..KIND) {
            let (entry, more) = rest.split_at(usize::from(u16::from_ne_bytes([length[0], length[1]])));
            let name = CStr::from_bytes_until_nul(&entry[NAME..]).map_err(io::Error::other)?;
            if name != c"." && name != c".." {
                let known = entry[KIND] != libc::DT_UNKNOWN;
                let is_directory = known.then_some(entry[KIND] == libc::DT_DIR);
                entries.push((OsStr::from_bytes(name.to_bytes()).to_owned(), is_directory));
            }
            rest = more;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn many_entries_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        for number in 0..500 {
            File::create(dir.path().join(format!("a file with number {number}"))).unwrap();
        }
        std::os::unix::fs::symlink("folder", dir.path().join("link")).unwrap();
        let mut found = entries(File::open(dir.path()).unwrap().as_fd()).unwrap();
        found.sort();
        assert_eq!(found.len(), 502);
        assert!(found[..500].iter().all(|(_, is_directory)| *is_directory == Some(false)));
        assert_eq!(found[500..], [("folder".into(), Some(true)), ("link".into(), Some(false))]);
        assert!(entries(File::open("/proc/self/stat").unwrap().as_fd()).is_err());
    }
}

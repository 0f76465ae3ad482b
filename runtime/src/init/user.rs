//! Who the process becomes, by the container's own passwd and group files. Those come with the image, so they are read
//! up to a limit, only if they are plain files, and a line that makes no sense is passed over.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::files::{BENEATH, NO_SYMLINKS};
use crate::plan::User;
use crate::sys;

/// More than any honest file.
const LIMIT_BYTES: u64 = 1 << 20;

/// The user of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Finds a user; the error says what was looked for.
pub(super) fn find(user: &User, root: BorrowedFd<'_>) -> Result<Identity, String> {
    match user {
        User::Ids { uid, gid, groups } => {
            // Only for its home folder: a container without a passwd file is fine.
            let passwd = read(root, c"etc/passwd").unwrap_or_default();
            let home = entry(&passwd, |line| line.uid == *uid).map(|line| line.home);
            let home = home.unwrap_or_else(|| "/".to_owned());
            Ok(Identity { uid: *uid, gid: *gid, groups: groups.clone(), home })
        }
        User::Named(text) => {
            let numeric = text.split(':').all(|part| part.parse::<u32>().is_ok());
            // For numbers the files only add to what is known; for names they have to be there.
            let file =
                |path| if numeric { Ok(read(root, path).unwrap_or_default()) } else { read(root, path) };
            resolve(
                text,
                &file(c"etc/passwd")?,
                &file(c"etc/group")
                    .or_else(|error| if text.contains(':') { Err(error) } else { Ok(String::new()) })?,
            )
        }
    }
}

fn read(root: BorrowedFd<'_>, path: &std::ffi::CStr) -> Result<String, String> {
    let name = || format!("/{}", path.to_string_lossy());
    // Non-blocking, so that a FIFO does not hold us up before it is refused.
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match sys::openat2(root.as_raw_fd(), path, flags, 0, BENEATH | NO_SYMLINKS) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(String::new()),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(format!("{} is a link", name()));
        }
        Err(error) => return Err(format!("{} cannot be read: {error}", name())),
    };
    let stat = sys::fstat(file.as_fd()).map_err(|error| error.to_string())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(format!("{} is not a plain file", name()));
    }
    if stat.st_size as u64 > LIMIT_BYTES {
        return Err(format!("{} is larger than {LIMIT_BYTES} bytes", name()));
    }
    let mut bytes = Vec::new();
    let read = File::from(file).take(LIMIT_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| format!("{} cannot be read: {error}", name()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn entry(passwd: &str, wanted: impl Fn(&Entry) -> bool) -> Option<Entry> {
    let entries = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
        Some(Entry { name, uid, gid, home })
    });
    entries.into_iter().find(wanted)
}

/// Lines of a group file: (name, number, members).
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// `user[:group]`, each a name or a number. Without a group the user's own ones count, as Docker has it.
fn resolve(text: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let found = entry(passwd, |line| line.name == user)
        .or_else(|| user.parse().ok().and_then(|uid: u32| entry(passwd, |line| line.uid == uid)));
    let mut identity = match (&found, user.parse::<u32>()) {
        (Some(line), _) => {
            Identity { uid: line.uid, gid: line.gid, groups: Vec::new(), home: line.home.clone() }
        }
        (None, Ok(uid)) if i32::try_from(uid).is_ok() => {
            Identity { uid, gid: 0, groups: Vec::new(), home: "/".to_owned() }
        }
        (None, Ok(_)) => return Err("the number is out of range".to_owned()),
        (None, Err(_)) if user.is_empty() => {
            Identity { uid: 0, gid: 0, groups: Vec::new(), home: "/".to_owned() }
        }
        (None, Err(_)) => {
            return Err(format!(
                "no user {user:?} in the container's /etc/passwd: use one that is, or a number"
            ));
        }
    };
    match wanted_group {
        Some(name) => {
            let by_name = groups(group).find(|(known, ..)| *known == name).map(|(_, gid, _)| gid);
            let by_number = name.parse::<u32>().ok().filter(|gid| i32::try_from(*gid).is_ok());
            identity.gid = by_name.or(by_number).ok_or_else(|| {
                format!("no group {name:?} in the container's /etc/group: use one that is, or a number")
            })?;
        }
        None => {
            if let Some(line) = &found {
                let is_member = |members: &str| members.split(',').any(|member| member == line.name);
                identity.groups =
                    groups(group).filter(|(.., members)| is_member(members)).map(|(_, gid, _)| gid).collect();
            }
        }
    }
    Ok(identity)
}

/// What [`crate::fuzz`] looks at: (uid, gid, groups, home) of `user[:group]`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn resolved(
    text: &str,
    passwd: &str,
    group: &str,
) -> Result<(u32, u32, Vec<u32>, String), String> {
    resolve(text, passwd, group).map(|found| (found.uid, found.gid, found.groups, found.home))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nnginx:x:101:102:nginx:/nonexistent:/bin/false\n7:x:8:9::/seven:\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,nginx\nnginx:x:102:\ntty:x:5:nginx2\n";

    fn ids(text: &str) -> Result<(u32, u32, Vec<u32>), String> {
        resolve(text, PASSWD, GROUP).map(|found| (found.uid, found.gid, found.groups))
    }

    #[test]
    fn users_are_names_or_numbers() {
        assert_eq!(ids("nginx"), Ok((101, 102, vec![4])));
        assert_eq!(ids("101"), Ok((101, 102, vec![4])));
        assert_eq!(ids("1234"), Ok((1234, 0, vec![])));
        assert_eq!(ids("1234:1"), Ok((1234, 1, vec![])));
        assert_eq!(ids("nginx:adm"), Ok((101, 4, vec![])));
        assert_eq!(ids("7"), Ok((8, 9, vec![])), "a name wins over a number");
        assert_eq!(resolve("nginx", PASSWD, GROUP).unwrap().home, "/nonexistent");
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert!(ids("nobody").unwrap_err().contains("nobody"));
        assert!(ids("nginx:nogroup").unwrap_err().contains("nogroup"));
        assert!(ids("0:../").is_err());
        assert!(ids("4294967295").is_err());
        assert!(ids("-1").is_err());
    }
}

//! Which files the sources of COPY and ADD mean.
//!
//! Sources are worked out within their tree: `..` does not lead above its root, symbolic links are followed
//! as if it were `/`. A name may be a pattern. Start at [`Selector::pick`].

use std::collections::VecDeque;

use super::files::{Entry, EntryKind, Files, join};
use crate::build::error::StepError;
use crate::build::ignore::Ignore;
use crate::build::pattern::{Pattern, is_pattern};
use crate::digest::{Algorithm, Digest, Hasher};

/// The time of a tree's root, which stands in no list: a folder made for it has that of its making.
pub(crate) const NO_TIME: i64 = i64::MAX;
/// As the kernel's own path walk.
const LINKS_MAX: u32 = 40;
/// More files than a context has.
const ITEMS_MAX: usize = 4_000_000;
/// Folders within folders.
const DEPTH_MAX: usize = 256;

/// One entry to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its path in the tree.
    pub(crate) from: String,
    /// Its path below the destination; empty: the destination itself.
    pub(crate) to: String,
    pub(crate) entry: Entry,
}

/// What one source has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picked {
    /// As it was found in the tree.
    pub(crate) path: String,
    /// A folder whose content is copied: gives its mode to a destination that is not there yet.
    pub(crate) folder: Option<Entry>,
    /// The name of a single file.
    pub(crate) name: Option<String>,
    /// Parents first.
    pub(crate) items: Vec<Item>,
}

/// Looks into one tree.
pub(crate) struct Selector<'a> {
    pub(crate) files: &'a dyn Files,
    /// `--exclude`, relative to each source.
    pub(crate) exclude: &'a Ignore,
    /// `--parents`
    pub(crate) parents: bool,
}

impl Selector<'_> {
    /// What `source` means; an error that names it where it is nothing.
    pub(crate) fn pick(&self, source: &str) -> Result<Vec<Picked>, StepError> {
        let missing = || StepError::Reason(format!("`{source}` is not there{}", self.hint(source)));
        let (pivot, names) = names(source);
        let mut found: Vec<(String, String, Entry)> = Vec::new();
        self.find(String::new(), String::new(), &names, &mut found)?;
        if found.is_empty() {
            return Err(missing());
        }
        let mut picked = Vec::with_capacity(found.len());
        for (shown, real, entry) in found {
            picked.push(if self.parents {
                self.with_parents(&shown, real, entry, pivot)?
            } else {
                self.one(&shown, real, entry)?
            });
        }
        // A pattern may describe nothing but what is excluded.
        picked.retain(|one| one.folder.is_some() || !one.items.is_empty());
        Ok(picked)
    }

    fn hint(&self, source: &str) -> String {
        // The most common reason, once everything else was ruled out.
        match source.contains("..") {
            true => ": `..` does not lead out of the context".to_owned(),
            false => " (is it in the build context, and not left out by .dockerignore?)".to_owned(),
        }
    }

    /// Follows `names` from the folder `real`, which is called `shown`.
    fn find(
        &self,
        shown: String,
        real: String,
        names: &[&str],
        found: &mut Vec<(String, String, Entry)>,
    ) -> Result<(), StepError> {
        let Some((name, rest)) = names.split_first() else {
            let root = folder_entry(real.rsplit('/').next().unwrap_or_default());
            found.push((shown, real, root));
            return Ok(());
        };
        if !is_pattern(name) {
            let Some((path, entry)) = self.resolve(&join(&real, name))? else { return Ok(()) };
            return self.go_on(join(&shown, name), path, entry, rest, found);
        }
        let pattern = Pattern::new(name).map_err(|error| error.to_string())?;
        let listed = self.files.list(std::slice::from_ref(&real))?;
        let mut matching: Vec<Entry> =
            listed.into_iter().flatten().filter(|entry| pattern.matches(&entry.name)).collect();
        matching.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in matching {
            let path = join(&real, &entry.name);
            let shown = join(&shown, &entry.name);
            match self.resolve(&path)? {
                Some((path, entry)) => self.go_on(shown, path, entry, rest, found)?,
                // A link to nothing is copied as the link that it is.
                None if rest.is_empty() => found.push((shown, path, entry)),
                None => {}
            }
        }
        Ok(())
    }

    fn go_on(
        &self,
        shown: String,
        real: String,
        entry: Entry,
        rest: &[&str],
        found: &mut Vec<(String, String, Entry)>,
    ) -> Result<(), StepError> {
        if rest.is_empty() {
            if !entry.is_tentative {
                found.push((shown, real, entry));
            } else if !self.walk(&real, "")?.is_empty() {
                found.push((shown, real, Entry { is_tentative: false, ..entry }));
            }
            return Ok(());
        }
        if entry.kind == EntryKind::Folder { self.find(shown, real, rest, found) } else { Ok(()) }
    }

    /// Follows symbolic links, those of the last name too. `None` when something on the way isn't there.
    pub(crate) fn resolve(&self, path: &str) -> Result<Option<(String, Entry)>, StepError> {
        let mut real: Vec<String> = Vec::new();
        let mut entry = folder_entry("");
        let mut ahead: VecDeque<String> =
            path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match name.as_str() {
                "." => continue,
                ".." => {
                    real.pop();
                    entry = folder_entry(real.last().map_or("", String::as_str));
                    continue;
                }
                _ => {}
            }
            if entry.kind != EntryKind::Folder {
                return Ok(None);
            }
            let folder = real.join("/");
            let listed = self.files.list(&[folder])?;
            let Some(next) = listed.into_iter().flatten().find(|entry| entry.name == name) else {
                return Ok(None);
            };
            if next.kind == EntryKind::Symlink {
                links += 1;
                if links > LINKS_MAX {
                    return Err(StepError::Reason(format!("too many symbolic links on the way to `{path}`")));
                }
                if next.target.starts_with('/') {
                    real.clear();
                }
                for step in next.target.split('/').rev().filter(|step| !step.is_empty()) {
                    ahead.push_front(step.to_owned());
                }
                entry = folder_entry("");
                continue;
            }
            real.push(name);
            entry = next;
        }
        // The root, or a folder that `..` led back to, has its true mode in its parent.
        if let Some((last, above)) = real.split_last()
            && entry.name != *last
        {
            let listed = self.files.list(&[above.join("/")])?;
            if let Some(found) = listed.into_iter().flatten().find(|entry| entry.name == *last) {
                entry = found;
            }
        }
        Ok(Some((real.join("/"), entry)))
    }

    /// What was resolved, by the name that it has there.
    pub(crate) fn pick_resolved(&self, path: String, entry: Entry) -> Result<Picked, StepError> {
        let shown = path.clone();
        self.one(&shown, path, entry)
    }

    fn one(&self, shown: &str, real: String, entry: Entry) -> Result<Picked, StepError> {
        if entry.kind == EntryKind::Folder {
            let items = self.walk(&real, "")?;
            return Ok(Picked { path: real, folder: Some(entry), name: None, items });
        }
        let name = shown.rsplit('/').next().unwrap_or_default().to_owned();
        let items = match self.exclude.excludes(&name) {
            true => Vec::new(),
            false => vec![Item { from: real.clone(), to: String::new(), entry: copyable(&real, entry)? }],
        };
        Ok(Picked { path: real, folder: None, name: Some(name), items })
    }

    /// The source with the folders above it, from the pivot `/./` on.
    fn with_parents(
        &self,
        shown: &str,
        real: String,
        entry: Entry,
        pivot: usize,
    ) -> Result<Picked, StepError> {
        let parts: Vec<&str> = shown.split('/').filter(|name| !name.is_empty()).collect();
        let kept = &parts[pivot.min(parts.len())..];
        let mut items = Vec::new();
        for depth in 1..kept.len() {
            let above = parts[..pivot + depth].join("/");
            let folder =
                self.resolve(&above)?.map_or_else(|| folder_entry(kept[depth - 1]), |(_, entry)| entry);
            items.push(Item { from: above, to: kept[..depth].join("/"), entry: folder });
        }
        let to = kept.join("/");
        if entry.kind == EntryKind::Folder {
            if !to.is_empty() {
                items.push(Item { from: real.clone(), to: to.clone(), entry });
            }
            items.extend(self.walk(&real, &to)?);
        } else if !self.exclude.excludes(&to) {
            items.push(Item { from: real.clone(), to, entry: copyable(&real, entry)? });
        }
        Ok(Picked { path: real, folder: None, name: None, items })
    }

    /// Everything in a folder, level by level, parents first.
    fn walk(&self, folder: &str, to: &str) -> Result<Vec<Item>, StepError> {
        let mut items = Vec::new();
        let mut level = vec![(folder.to_owned(), to.to_owned(), String::new())];
        let mut depth = 0;
        while !level.is_empty() {
            depth += 1;
            if depth > DEPTH_MAX {
                return Err(StepError::Reason(format!(
                    "more than {DEPTH_MAX} folders lie within each other"
                )));
            }
            let paths: Vec<String> = level.iter().map(|(from, _, _)| from.clone()).collect();
            let listed = self.files.list(&paths)?;
            let mut next = Vec::new();
            for ((from, to, inner), mut entries) in level.into_iter().zip(listed) {
                entries.sort_by(|a, b| a.name.cmp(&b.name));
                for mut entry in entries {
                    let inner = join(&inner, &entry.name);
                    let is_folder = entry.kind == EntryKind::Folder;
                    if self.exclude.excludes(&inner) {
                        if !is_folder || self.exclude.prunes(&inner) {
                            continue;
                        }
                        entry.is_tentative = true;
                    }
                    if entry.kind == EntryKind::Other {
                        // A socket; nobody misses it.
                        continue;
                    }
                    let (from, to) = (join(&from, &entry.name), join(&to, &entry.name));
                    if is_folder {
                        next.push((from.clone(), to.clone(), inner));
                    }
                    items.push(Item { from, to, entry });
                }
            }
            if items.len() > ITEMS_MAX {
                return Err(StepError::Reason(format!("it has more than {ITEMS_MAX} files")));
            }
            level = next;
        }
        drop_empty_tentative(&mut items);
        Ok(items)
    }
}

/// A folder that was left out is there only for what was taken back in.
fn drop_empty_tentative(items: &mut Vec<Item>) {
    let mut needed = std::collections::HashSet::new();
    for item in items.iter().rev() {
        if !item.entry.is_tentative || needed.contains(&item.to) {
            let parent = item.to.rsplit_once('/').map_or("", |(parent, _)| parent);
            needed.insert(parent.to_owned());
        }
    }
    items.retain(|item| !item.entry.is_tentative || needed.contains(&item.to));
    for item in items {
        item.entry.is_tentative = false;
    }
}

fn copyable(path: &str, entry: Entry) -> Result<Entry, StepError> {
    match entry.kind {
        EntryKind::Other => {
            Err(StepError::Reason(format!("`{path}` is neither a file, a folder nor a link")))
        }
        _ => Ok(entry),
    }
}

fn folder_entry(name: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        kind: EntryKind::Folder,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_s: NO_TIME,
        size_bytes: 0,
        target: String::new(),
        is_tentative: false,
    }
}

/// The names of a source, `.` and `..` worked out, and how many stand before `/./`.
fn names(source: &str) -> (usize, Vec<&str>) {
    let mut names = Vec::new();
    let mut pivot = 0;
    for (index, name) in source.split('/').enumerate() {
        match name {
            "." if index > 0 => pivot = names.len(),
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    (pivot.min(names.len()), names)
}

/// A digest of everything that is picked: names, kinds, modes, owners and content, but no times.
pub(crate) fn content_key(files: &dyn Files, picked: &[Picked]) -> Result<Digest, StepError> {
    let all = || picked.iter().flat_map(|one| &one.items);
    let wanted: Vec<String> =
        all().filter(|item| item.entry.kind == EntryKind::File).map(|item| item.from.clone()).collect();
    let mut digests = files.digests(&wanted)?.into_iter();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for one in picked {
        add(one.name.as_deref().unwrap_or("/"));
        if let Some(folder) = &one.folder {
            add(&format!("{:o} {} {}", folder.mode, folder.uid, folder.gid));
        }
        for item in &one.items {
            add(&item.to);
            let entry = &item.entry;
            add(&format!("{:?} {:o} {} {} {}", entry.kind, entry.mode, entry.uid, entry.gid, entry.target));
            if entry.kind == EntryKind::File {
                let digest = digests.next().ok_or("the context has lost a file while it was read")?;
                add(&digest.to_string());
            }
            for (name, value) in files.attributes(&item.from)? {
                add(&name);
                add(&Digest::of(&value).to_string());
            }
        }
    }
    Ok(hasher.finish())
}

//! The store on a real disk: reopened, cut off, damaged.

use std::fs::{self, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
use tempfile::TempDir;

use super::*;

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry { index, term, data: data(index, term, bytes).into(), ..Entry::default() }
}

fn data(index: u64, term: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(31) ^ index ^ (term << 4)) as u8).collect()
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit, ..HardState::default() }
}

fn append(store: &mut DiskStore, removed: &[Entry], entries: &[Entry], commit: u64) {
    let term = entries.last().map_or(1, |entry| entry.term);
    let change = LogChange {
        removed: removed.iter().collect(),
        entries,
        hard_state: Some(&hard_state(term, commit)),
        ..LogChange::default()
    };
    store.write(&change, Durability::Now).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

#[test]
fn what_was_written_is_there_after_opening_again() {
    let dir = TempDir::new().unwrap();
    let (mut store, recovered) = DiskStore::open(dir.path()).unwrap();
    assert!(recovered.entries.is_empty() && recovered.snapshot.is_none());
    let entries: Vec<Entry> = (1..=5).map(|index| entry(index, 1, 300)).collect();
    append(&mut store, &[], &entries, 3);
    drop(store);
    let (_, recovered) = DiskStore::open(dir.path()).unwrap();
    assert_eq!(recovered.entries, entries);
    assert_eq!(recovered.hard_state, hard_state(1, 3));
}

#[test]
fn nobody_else_can_look_into_the_store() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    drop(DiskStore::open(dir.path()).unwrap());
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_tail_is_replaced_whatever_the_sizes() {
    let dir = TempDir::new().unwrap();
    let (mut store, _) = DiskStore::open(dir.path()).unwrap();
    let old: Vec<Entry> = (1..=4).map(|index| entry(index, 1, 100_000)).collect();
    append(&mut store, &[], &old, 1);
    let new = [entry(2, 2, 10), entry(3, 2, 9000)];
    append(&mut store, &old[1..], &new, 1);
    drop(store);
    let (_, recovered) = DiskStore::open(dir.path()).unwrap();
    assert_eq!(recovered.entries, [old[0].clone(), new[0].clone(), new[1].clone()]);
}

#[test]
fn large_entries_never_leave_the_synced_file() {
    let dir = TempDir::new().unwrap();
    let (mut store, _) = DiskStore::open(dir.path()).unwrap();
    let mut all = Vec::new();
    for index in 1..=40 {
        let large = entry(index, 1, if index % 3 == 0 { 1 << 20 } else { 50_000 });
        append(&mut store, &[], std::slice::from_ref(&large), index);
        all.push(large);
    }
    let blobs = fs::read_dir(dir.path().join("log/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "sled put values into files that it does not sync");
    drop(store);
    let (_, recovered) = DiskStore::open(dir.path()).unwrap();
    assert_eq!(recovered.entries, all);
}

/// A store of `count` entries, each written behind its own barrier.
fn filled(dir: &Path, count: u64) {
    let (mut store, _) = DiskStore::open(dir).unwrap();
    store.claim("member 1").unwrap();
    for index in 1..=count {
        append(&mut store, &[], &[entry(index, 1, 200)], index);
    }
}

/// How many entries there are; they are the first of those that were written, and the store goes on from
/// there.
fn open_damaged(dir: &Path, count: u64) -> Result<u64, StorageError> {
    let (mut store, recovered) = DiskStore::open(dir)?;
    store.claim("member 1")?;
    let last = recovered.entries.len() as u64;
    assert!(last <= count);
    for (index, read) in (1..).zip(&recovered.entries) {
        assert_eq!(*read, entry(index, 1, 200));
    }
    assert_eq!(recovered.hard_state, hard_state(1, last), "hard state and entries are of one batch");
    append(&mut store, &[], &[entry(last + 1, 1, 200)], last + 1);
    drop(store);
    assert_eq!(DiskStore::open(dir)?.1.entries.len() as u64, last + 1);
    Ok(last)
}

#[test]
fn a_torn_tail_is_cut_off_and_a_missing_one_is_told() {
    let whole = TempDir::new().unwrap();
    let (mut store, _) = DiskStore::open(whole.path()).unwrap();
    store.claim("member 1").unwrap();
    let mut steps = Vec::new();
    for index in 1..=100 {
        append(&mut store, &[], &[entry(index, 1, 200)], index);
        let length = fs::metadata(whole.path().join("log/db")).unwrap().len();
        steps.push((index, length, fs::read(whole.path().join("acknowledged")).unwrap()));
    }
    let torn = TempDir::new().unwrap();
    for (round, cut) in [1, 7, 64, 300, 1000, 5000].into_iter().enumerate() {
        // The store was not closed: the copy is what a power cut leaves, but for the cut.
        let dir = torn.path().join(round.to_string());
        copy(whole.path(), &dir);
        let at = fs::metadata(dir.join("log/db")).unwrap().len() - cut;
        OpenOptions::new().write(true).open(dir.join("log/db")).unwrap().set_len(at).unwrap();

        let error = DiskStore::open(&dir).map(drop).unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "cut {cut} of what was acknowledged: {error}");

        // As it was when the cut was the end of what was synced.
        let (acknowledged, _, mark) = steps.iter().rfind(|(_, length, _)| *length <= at).unwrap();
        copy(whole.path(), &dir);
        OpenOptions::new().write(true).open(dir.join("log/db")).unwrap().set_len(at).unwrap();
        fs::write(dir.join("acknowledged"), mark).unwrap();
        let last = open_damaged(&dir, 100).unwrap();
        assert!((*acknowledged..100).contains(&last), "cut {cut}: {last}, acknowledged {acknowledged}");
    }
}

#[test]
fn damage_is_an_error_with_a_way_out_and_never_a_panic_or_a_loss() {
    let whole = TempDir::new().unwrap();
    filled(whole.path(), 200);
    let size = fs::metadata(whole.path().join("log/db")).unwrap().len();
    let damaged = TempDir::new().unwrap();
    let mut refused = 0;
    for round in 0..48_u64 {
        let dir = damaged.path().join(round.to_string());
        copy(whole.path(), &dir);
        let path = dir.join("log/db");
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        let at = round * 0x9e37_79b9 % size;
        match round % 3 {
            0 => file.set_len(at).unwrap(),
            1 => {
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&data(round, 9, 100)).unwrap();
            }
            _ => {
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&vec![0; usize::try_from(size - at).unwrap().min(70_000)]).unwrap();
            }
        }
        drop(file);
        match open_damaged(&dir, 200) {
            Ok(last) => assert_eq!(last, 200, "round {round}, damage at {at} of {size}"),
            Err(error) => {
                refused += 1;
                let words = error.to_string();
                assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
                assert!(words.contains(dir.to_str().unwrap()) && words.contains("join again"), "{words}");
            }
        }
    }
    assert!(refused > 40, "{refused} of 48");
}

#[test]
fn a_log_that_vanished_is_not_taken_for_a_new_one() {
    let dir = TempDir::new().unwrap();
    filled(dir.path(), 3);
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let error = DiskStore::open(dir.path()).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

#[test]
fn a_store_has_one_owner_and_one_user() {
    let dir = TempDir::new().unwrap();
    let (mut store, _) = DiskStore::open(dir.path()).unwrap();
    store.claim("member 1").unwrap();
    let error = DiskStore::open(dir.path()).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    drop(store);
    let (mut store, _) = DiskStore::open(dir.path()).unwrap();
    store.claim("member 1").unwrap();
    let error = store.claim("member 2").unwrap_err().to_string();
    assert!(error.contains("belongs to member 1, not to member 2"), "{error}");
}

fn metadata(index: u64, term: u64) -> SnapshotMetadata {
    let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
    metadata.mut_conf_state().voters.push(1);
    metadata
}

#[test]
fn a_snapshot_takes_the_place_of_the_entries_in_front_of_it() {
    let dir = TempDir::new().unwrap();
    let (mut store, _) = DiskStore::open(dir.path()).unwrap();
    let entries: Vec<Entry> = (1..=10).map(|index| entry(index, 1, 200)).collect();
    append(&mut store, &[], &entries, 10);
    let first = store.snapshots().save(metadata(4, 1), b"four").unwrap();
    let change = LogChange {
        removed: entries[..2].iter().collect(),
        base: Some(Position { index: 2, term: 1 }),
        snapshot: Some(&first),
        ..LogChange::default()
    };
    store.write(&change, Durability::Now).unwrap();
    // Written, and not recorded: as if the power had been cut in between.
    store.snapshots().save(metadata(8, 1), b"eight").unwrap();
    drop(store);

    let (store, recovered) = DiskStore::open(dir.path()).unwrap();
    assert_eq!(recovered.entries, entries[2..]);
    assert_eq!(recovered.base, Position { index: 2, term: 1 });
    assert_eq!(recovered.snapshot, Some((first.clone(), b"four".to_vec())));
    let files = fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    assert_eq!(files, 1, "the one without a record is gone");
    drop(store);

    let file = fs::read_dir(dir.path().join("snapshots")).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, b"fuor").unwrap();
    let error = DiskStore::open(dir.path()).map(drop).unwrap_err().to_string();
    assert!(error.contains("does not match its checksum"), "{error}");
    fs::remove_file(&file).unwrap();
    let error = DiskStore::open(dir.path()).map(drop).unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
}

#[test]
fn compacted_entries_give_their_space_back() {
    let dir = TempDir::new().unwrap();
    let (mut store, _) = DiskStore::open(dir.path()).unwrap();
    let mut kept: Vec<Entry> = Vec::new();
    let mut largest = 0;
    for round in 0..40_u64 {
        let entries: Vec<Entry> = (1..=250).map(|at| entry(round * 250 + at, 1, 256)).collect();
        append(&mut store, &[], &entries, 0);
        let base = Position { index: round * 250, term: 1 };
        let change = LogChange { removed: kept.iter().collect(), base: Some(base), ..LogChange::default() };
        store.write(&change, Durability::Now).unwrap();
        kept = entries;
        largest = largest.max(fs::metadata(dir.path().join("log/db")).unwrap().len());
    }
    assert!(largest < 24 << 20, "10,000 entries with 250 to 500 alive took {largest} bytes");
}

const FULL_DISK: &str = "RORQUAL_TEST_FULL_DISK";

/// Runs [`full_disk`] in a mount namespace of its own, where it has a disk of two mebibytes.
#[test]
fn a_full_disk_is_told_and_costs_nothing_that_was_acknowledged() {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        // Only root can mount; `tests/run` is root.
        return;
    }
    let dir = TempDir::new().unwrap();
    let script = "mount -t tmpfs -o size=2m rqt-full-disk \"$0\" && exec \"$@\"";
    let status = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "storage::tests::full_disk", "--ignored"])
        .env(FULL_DISK, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by a_full_disk_is_told_and_costs_nothing_that_was_acknowledged"]
fn full_disk() {
    let mount = std::env::var_os(FULL_DISK).expect("run by the other test");
    let dir = Path::new(&mount).join("store");
    let (mut store, _) = DiskStore::open(&dir).unwrap();
    store.claim("member 1").unwrap();
    let mut acknowledged = 0;
    let error = loop {
        let index = acknowledged + 1;
        let change = LogChange {
            entries: &[entry(index, 1, 3000)],
            hard_state: Some(&hard_state(1, index)),
            ..LogChange::default()
        };
        match store.write(&change, Durability::Now) {
            Ok(()) => acknowledged = index,
            Err(error) => break error.to_string(),
        }
    };
    assert!(acknowledged > 50 && error.contains("make room on the disk"), "{acknowledged}: {error}");
    drop(store);
    let grown = std::process::Command::new("mount").args(["-o", "remount,size=64m"]).arg(&mount).status();
    assert!(grown.unwrap().success());
    let (mut store, recovered) = DiskStore::open(&dir).unwrap();
    let last = recovered.entries.len() as u64;
    // The one that failed may be there.
    assert!((acknowledged..=acknowledged + 1).contains(&last), "{last} of {acknowledged}");
    append(&mut store, &[], &[entry(last + 1, 1, 200)], last + 1);
}

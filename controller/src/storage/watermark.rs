//! How much of the log was acknowledged, written down outside of it.
//!
//! sled cuts its log off at the first message that does not match its checksum, whether a power cut tore
//! the last one or something damaged one in the middle. The first is what Raft expects; the second would
//! make a member forget what it has promised, and with it what the cluster has acknowledged. The number of
//! the last acknowledged write stands in a file of its own, so that the two can be told apart.
//!
//! The number is written after the barrier that it tells of, so it is never ahead of what is on disk. It is
//! not synced each time (that would cost a second barrier): after a power cut it may be some seconds old,
//! and then finds less of the damage, but never damage where there is none.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{StorageError, at};

pub(super) struct Watermark {
    file: File,
    path: PathBuf,
}

impl Watermark {
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        let path = dir.join("acknowledged");
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        Ok(Self { file: options.map_err(at("open", &path))?, path })
    }

    /// 0 for a new store, and where the file itself is damaged: it is a second pair of eyes, no more.
    pub(super) fn read(&self) -> u64 {
        let mut bytes = [0; 16];
        if self.file.read_exact_at(&mut bytes, 0).is_err() {
            return 0;
        }
        let (number, check) = bytes.split_at(8);
        let value = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or_default();
        if value(number) == !value(check) { value(number) } else { 0 }
    }

    pub(super) fn set(&self, number: u64) -> Result<(), StorageError> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&(!number).to_be_bytes());
        self.file.write_all_at(&bytes, 0).map_err(at("write", &self.path))
    }

    pub(super) fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_all().map_err(at("sync", &self.path))
    }
}

//! Names and addresses that nobody else has. From the seeds of the standard library's hasher, which the kernel draws.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::netlink::link::Mac;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// 64 bits that cannot be foreseen from outside.
pub(crate) fn bits() -> u64 {
    RandomState::new().hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A name of up to 12 letters and digits.
pub(crate) fn name(length: usize) -> String {
    encode(bits(), length)
}

/// A locally administered unicast address.
pub(crate) fn mac() -> Mac {
    let [a, b, c, d, e, f, _, _] = bits().to_ne_bytes();
    [(a & 0xfc) | 0x02, b, c, d, e, f]
}

/// A number that depends on `text` alone (FNV-1a, with its bits mixed once more).
pub(crate) fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// A number that depends on another alone, all bits of it (the finalizer of splitmix64).
pub(crate) fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// `length` letters that depend on `text` alone.
pub(crate) fn digest(text: &str, length: usize) -> String {
    encode(hash(text), length)
}

fn encode(mut bits: u64, length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        text.push(char::from(ALPHABET[(bits & 31) as usize]));
        bits >>= 5;
    }
    text
}

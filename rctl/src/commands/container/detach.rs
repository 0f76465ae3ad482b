//! The keys that leave a container to itself, found in what is typed.

/// A sequence of keys; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys(Vec<u8>);

impl Keys {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// What was typed so far, as far as it may become the sequence.
#[derive(Debug)]
pub(crate) struct Typed {
    keys: Keys,
    matched: usize,
}

impl Typed {
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, matched: 0 }
    }

    /// Takes bytes; gives those that are the container's, and whether the sequence is complete. A beginning of the
    /// sequence is held back until it is clear what it is.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.keys.0;
        let mut given = Vec::with_capacity(bytes.len() + self.matched);
        for byte in bytes {
            if keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == keys.len() {
                    return (given, true);
                }
                continue;
            }
            given.extend_from_slice(&keys[..self.matched]);
            self.matched = usize::from(keys.first() == Some(byte));
            if self.matched == 0 {
                given.push(*byte);
            }
        }
        (given, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_sequence_leaves() {
        let mut typed = Typed::new(Keys::new(vec![16, 17]));
        assert_eq!(typed.take(b"ls\n"), (b"ls\n".to_vec(), false));
        // The first key is held back, and given when another one follows.
        assert_eq!(typed.take(&[16]), (vec![], false));
        assert_eq!(typed.take(b"x"), (vec![16, b'x'], false));
        assert_eq!(typed.take(&[16, 16]), (vec![16], false));
        assert_eq!(typed.take(&[17]), (vec![], true));
    }

    #[test]
    fn one_key_is_a_sequence() {
        let mut typed = Typed::new(Keys::new(vec![1]));
        assert_eq!(typed.take(b"ab\x01c"), (b"ab".to_vec(), true));
    }
}

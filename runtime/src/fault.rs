//! Where tests make things fail. In every other build this is nothing.

use std::io;

/// Fails if a test wants it to, the `index`th time that this `place` is passed.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn at(_place: &'static str, _index: usize) -> io::Result<()> {
    Ok(())
}

/// What tests set: `PLACE:INDEX`.
#[cfg(test)]
pub(crate) const VARIABLE: &str = "RQT_FAIL_AT";

#[cfg(test)]
pub(crate) fn at(place: &'static str, index: usize) -> io::Result<()> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    if wanted == format!("{place}:{index}") {
        return Err(io::Error::other(format!("failed for a test at {wanted}")));
    }
    Ok(())
}

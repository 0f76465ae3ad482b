//! Which of an index's images is for this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Index};

/// Operating system and processor, in the words of the OCI image specification (Go's names).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`
    pub os: String,
    /// `v8`, `v7`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program was built for.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.map(Into::into) }
    }

    /// `linux/arm64/v8`, `linux`, `arm64`: what is not said is that of `own`. Other words for a processor become Go's.
    pub fn parse(text: &str, own: &Platform) -> std::result::Result<Platform, String> {
        let wrong = || format!("`{text}` is not a platform: expected OS/ARCHITECTURE, such as linux/arm64");
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let is_word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(is_word) {
            return Err(wrong());
        }
        let (os, architecture, variant) = match parts[..] {
            ["linux" | "windows" | "darwin" | "freebsd"] => (parts[0], None, None),
            [architecture] => (own.os.as_str(), Some(architecture), None),
            [os, architecture] => (os, Some(architecture), None),
            [os, architecture, variant] => (os, Some(architecture), Some(variant)),
            _ => return Err(wrong()),
        };
        let Some(architecture) = architecture else {
            return Ok(Platform { os: os.to_owned(), ..own.clone() });
        };
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64", variant) => ("arm64", variant),
            ("i386" | "i686", variant) => ("386", variant),
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            other => other,
        };
        Ok(Platform {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }

    /// Whether an image for `other` runs here, and how well: smaller is better.
    fn fit(&self, other: &Platform) -> Option<u8> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        match (self.variant.as_deref(), other.variant.as_deref()) {
            (mine, theirs) if mine == theirs => Some(0),
            (_, None) => Some(1),
            // amd64/v2 needs newer processors: only when there is nothing plainer.
            (None, Some(_)) => Some(2),
            (Some(mine), Some(theirs)) => (theirs < mine).then_some(3),
        }
    }

    /// Whether an image for `other` can run here.
    pub fn runs(&self, other: &Platform) -> bool {
        self.fit(other).is_some()
    }

    /// The entries of `index` for this platform, the best first.
    ///
    /// An entry without platform is taken when nothing says that it would not fit: it is checked
    /// against its configuration later.
    pub fn choose<'a>(&self, what: &str, index: &'a Index) -> Result<&'a Descriptor> {
        // BuildKit lists provenance as manifests for `unknown/unknown`.
        let fitting = index.manifests.iter().filter_map(|entry| match &entry.platform {
            Some(platform) => self.fit(platform).map(|rank| (rank, entry)),
            None => Some((4, entry)),
        });
        match fitting.min_by_key(|(rank, _)| *rank) {
            Some((_, entry)) => Ok(entry),
            None => Err(Error::Platform {
                what: what.to_owned(),
                wanted: self.to_string(),
                found: found(index.manifests.iter().filter_map(|entry| entry.platform.as_ref())),
            }),
        }
    }

    /// Refuses a configuration for another platform.
    pub(crate) fn check(&self, manifest: &Digest, other: &Platform) -> Result<()> {
        if self.runs(other) {
            return Ok(());
        }
        Err(Error::Platform {
            what: format!("image {manifest}"),
            wanted: self.to_string(),
            found: found(std::iter::once(other)),
        })
    }
}

fn found<'a>(platforms: impl Iterator<Item = &'a Platform>) -> Vec<String> {
    let mut names: Vec<String> =
        platforms.filter(|platform| platform.os != "unknown").map(Platform::to_string).take(32).collect();
    names.dedup();
    if names.is_empty() {
        names.push("no platform at all".to_owned());
    }
    names
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_with_what_they_leave_out() {
        let own = Platform { architecture: "amd64".into(), os: "linux".into(), variant: None };
        for (text, expected) in [
            ("linux/arm64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("Linux/x86_64", "linux/amd64"),
            ("aarch64", "linux/arm64"),
            ("linux", "linux/amd64"),
            ("windows", "windows/amd64"),
        ] {
            assert_eq!(Platform::parse(text, &own).unwrap().to_string(), expected);
        }
        for text in ["", "linux/", "a/b/c/d", "linux/arm 64", "linux/*"] {
            assert!(Platform::parse(text, &own).unwrap_err().contains("is not a platform"), "{text}");
        }
    }
}

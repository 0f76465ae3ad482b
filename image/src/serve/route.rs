//! Where a request goes: `/v2/<name>/…` read from its end, since a name may have any number of parts.

use std::collections::HashMap;

use http::Uri;

use super::refusal::{Code, Refusal};
use crate::digest::Digest;
use crate::reference;

/// The longest repository name: what most clients take for host and name together.
const NAME_MAX: usize = 255;
/// The longest query that is read.
const QUERY_MAX: usize = 4096;

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/token`
    Token,
    /// `/v2/<name>/tags/list`
    Tags(String),
    /// `/v2/<name>/manifests/<tag or digest>`
    Manifest(String, Named),
    /// `/v2/<name>/blobs/<digest>`
    Blob(String, Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(String),
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload(String, String),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(String, Digest),
}

/// How a manifest is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Tag(String),
    Digest(Digest),
}

impl Route {
    pub(super) fn read(path: &str) -> Result<Route, Refusal> {
        let unknown = || Refusal::missing(Code::Unsupported, "there is nothing at this path");
        let path = decode(path, false).ok_or_else(unknown)?;
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Route::Base),
            Some(rest) => rest.strip_prefix('/').ok_or_else(unknown)?,
            None => return Err(unknown()),
        };
        match rest {
            "_catalog" => return Ok(Route::Catalog),
            "token" => return Ok(Route::Token),
            _ => {}
        }
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [name @ .., "tags", "list"] => Ok(Route::Tags(checked(name)?)),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Route::Uploads(checked(name)?))
            }
            [name @ .., "blobs", "uploads", id] => Ok(Route::Upload(checked(name)?, (*id).to_owned())),
            [name @ .., "blobs", digest] => Ok(Route::Blob(checked(name)?, digest.parse()?)),
            [name @ .., "referrers", digest] => Ok(Route::Referrers(checked(name)?, digest.parse()?)),
            [name @ .., "manifests", named] => Ok(Route::Manifest(checked(name)?, Named::read(named)?)),
            _ => Err(unknown()),
        }
    }
}

impl Named {
    fn read(text: &str) -> Result<Named, Refusal> {
        if text.contains(':') {
            return Ok(Named::Digest(text.parse()?));
        }
        if reference::is_tag(text) {
            return Ok(Named::Tag(text.to_owned()));
        }
        // The specification has no code for a bad tag; there can be no manifest under it.
        Err(Refusal::bad(
            Code::ManifestInvalid,
            "this is neither a tag (up to 128 letters, digits, `_`, `.` and `-`) nor a digest",
        ))
    }
}

/// A repository's name, put together from the parts of a path.
fn checked(parts: &[&str]) -> Result<String, Refusal> {
    let name = parts.join("/");
    match problem_of_name(&name) {
        None => Ok(name),
        Some(problem) => Err(Refusal::bad(Code::NameInvalid, problem)),
    }
}

/// What is wrong with a repository's name, if anything is.
pub(crate) fn problem_of_name(name: &str) -> Option<String> {
    if name.len() > NAME_MAX {
        return Some(format!("the name has {} characters, and may have {NAME_MAX}", name.len()));
    }
    let fits = name.split('/').all(reference::is_component);
    (!fits).then(|| {
        "a repository's name is lower-case letters and digits, separated by one `.`, one or two `_`, or `-`, in \
         parts that `/` separates"
            .to_owned()
    })
}

/// The parameters of a query; of one that comes twice, all values.
pub(super) struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub(super) fn read(uri: &Uri) -> Result<Query, Refusal> {
        let text = uri.query().unwrap_or("");
        let refused = |problem: &str| Refusal::bad(Code::Unsupported, problem);
        if text.len() > QUERY_MAX {
            return Err(refused("the query is too long"));
        }
        let mut values: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let read = |text| decode(text, true).ok_or_else(|| refused("the query is not valid"));
            values.entry(read(name)?).or_default().push(read(value)?);
        }
        Ok(Query(values))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|values| values.first()).map(String::as_str)
    }

    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    pub(super) fn digest(&self, name: &str) -> Result<Option<Digest>, Refusal> {
        Ok(self.get(name).map(str::parse).transpose()?)
    }

    /// `n`: how many a client wants, at most `most`.
    pub(super) fn count(&self, most: usize) -> Result<usize, Refusal> {
        match self.get("n") {
            None => Ok(most),
            Some(text) => text.parse().map(|count: usize| count.min(most)).map_err(|_| {
                Refusal::bad(Code::Unsupported, format!("n: `{}` is not a number", text.escape_default()))
            }),
        }
    }
}

/// Undoes percent-encoding; `None` where it is not valid or does not give text without control characters.
fn decode(text: &str, is_query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                high << 4 | low
            }
            b'+' if is_query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

/// Text as it can stand in a query.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(byte as char);
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn paths_are_read_from_their_end() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        for (path, route) in [
            ("/v2", Route::Base),
            ("/v2/", Route::Base),
            ("/v2/_catalog", Route::Catalog),
            ("/v2/a/tags/list", Route::Tags("a".into())),
            ("/v2/a/b/manifests/1", Route::Manifest("a/b".into(), Named::Tag("1".into()))),
            ("/v2/manifests/manifests/1", Route::Manifest("manifests".into(), Named::Tag("1".into()))),
            ("/v2/a/blobs/uploads/", Route::Uploads("a".into())),
            ("/v2/a/blobs/uploads", Route::Uploads("a".into())),
            ("/v2/a/blobs/uploads/x-1", Route::Upload("a".into(), "x-1".into())),
            (
                &format!("/v2/a/manifests/sha256%3A{HEX}"),
                Route::Manifest("a".into(), Named::Digest(digest.clone())),
            ),
            (&format!("/v2/a/blobs/sha256:{HEX}"), Route::Blob("a".into(), digest.clone())),
            (&format!("/v2/a/referrers/sha256:{HEX}"), Route::Referrers("a".into(), digest.clone())),
        ] {
            assert_eq!(Route::read(path).unwrap(), route, "{path}");
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        let long = format!("/v2/{}/tags/list", "a".repeat(256));
        for path in [
            "/v2/../x/tags/list",
            "/v2/a/../tags/list",
            "/v2/a%2f..%2fb/tags/list",
            "/v2/a%00/tags/list",
            "/v2/A/tags/list",
            "/v2//tags/list",
            "/v2/tags/list",
            "/v2/a/b",
            "/v2/a/manifests/",
            "/v2/a/manifests/..",
            "/v2/a/manifests/sha256:12",
            "/v2/a/blobs/sha256:../../../etc/passwd",
            "/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e",
            "/v2/a%zz/tags/list",
            "/v1/search",
            "/",
            &long,
        ] {
            assert!(Route::read(path).is_err(), "{path}");
        }
    }
}

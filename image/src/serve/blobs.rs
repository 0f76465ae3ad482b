//! Pulling blobs, whole and in part (RFC 9110, section 14), and taking them away.

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{Method, Response, StatusCode};

use super::answer::{self, Body, header, plain, set};
use super::backend::Backend;
use super::refusal::{Code, Refusal};
use super::spool::blocking;
use super::uploads::lease_name;
use super::{CONTENT_DIGEST, Registry};
use crate::digest::Digest;
use crate::error::{Error, one_line};
use crate::store::Blob;

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of it: there is no such header, or it is one that is to be ignored.
    Whole,
    /// From, and how many.
    Some(u64, u64),
    /// Nothing that there is.
    Nothing,
}

impl<B: Backend> Registry<B> {
    /// `GET` and `HEAD` of a blob.
    pub(super) async fn get_blob(
        &self,
        name: &str,
        digest: &Digest,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Refusal> {
        let Some(reasons) = self.blob_in(name, digest).await? else {
            return Err(self.no_blob(name, digest).await);
        };
        let Some(blob) = self.obtain(digest, &reasons).await? else {
            return Err(Refusal::unavailable(format!(
                "no node that has blob {digest} can be reached: try again later, or push it again"
            )));
        };
        let tag = format!("\"{digest}\"");
        if header(headers, IF_NONE_MATCH).is_some_and(|known| matches(known, &tag)) {
            let mut response = plain(StatusCode::NOT_MODIFIED);
            set(&mut response, ETAG, tag);
            return Ok(response);
        }
        // A part of something else than the client has the rest of is of no use to it.
        let same = header(headers, IF_RANGE).is_none_or(|known| known == tag);
        let range = if same { header(headers, RANGE) } else { None };
        let (status, start, length) = match part(range, blob.size_bytes) {
            Part::Whole => (StatusCode::OK, 0, blob.size_bytes),
            Part::Some(start, length) => (StatusCode::PARTIAL_CONTENT, start, length),
            Part::Nothing => {
                let size = format!("bytes */{}", blob.size_bytes);
                let value = HeaderValue::from_str(&size).unwrap_or(HeaderValue::from_static("bytes */*"));
                let message = format!("the blob has {} bytes", blob.size_bytes);
                return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, message)
                    .with(CONTENT_RANGE, value));
            }
        };
        let body =
            if *method == Method::HEAD { answer::empty() } else { answer::file(blob.file, start, length) };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        set(&mut response, CONTENT_LENGTH, length.to_string());
        set(&mut response, CONTENT_TYPE, "application/octet-stream");
        set(&mut response, CONTENT_DIGEST, digest.to_string());
        set(&mut response, ETAG, tag);
        set(&mut response, ACCEPT_RANGES, "bytes");
        set(&mut response, CACHE_CONTROL, "max-age=31536000");
        if status == StatusCode::PARTIAL_CONTENT {
            let last = start + length - 1;
            set(&mut response, CONTENT_RANGE, format!("bytes {start}-{last}/{}", blob.size_bytes));
        }
        Ok(response)
    }

    /// `DELETE` of a blob: of one that no manifest of the repository names.
    pub(super) async fn delete_blob(&self, name: &str, digest: &Digest) -> Result<Response<Body>, Refusal> {
        if let Some(manifest) = self.catalogue.reasons(name, digest).await?.first() {
            let message = format!("manifest {manifest} needs blob {digest}: delete the manifest first");
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message));
        }
        let (store, lease) = (self.store.clone(), lease_name(name, digest));
        if blocking(move || Ok(store.release(&lease)?)).await? {
            return Ok(plain(StatusCode::ACCEPTED));
        }
        Err(self.no_blob(name, digest).await)
    }

    /// Whether the repository may read the blob: the manifests because of which it may, none for a blob that
    /// was uploaded and that no manifest names yet.
    pub(super) async fn blob_in(&self, name: &str, digest: &Digest) -> Result<Option<Vec<Digest>>, Refusal> {
        if self.store.is_held(&lease_name(name, digest)) {
            return Ok(Some(Vec::new()));
        }
        let reasons = self.catalogue.reasons(name, digest).await?;
        Ok((!reasons.is_empty()).then_some(reasons))
    }

    async fn no_blob(&self, name: &str, digest: &Digest) -> Refusal {
        match self.catalogue.has_repository(name).await {
            Ok(true) => {
                Refusal::missing(Code::BlobUnknown, format!("repository `{name}` has no blob {digest}"))
            }
            Ok(false) => Refusal::missing(Code::NameUnknown, format!("there is no repository `{name}`")),
            Err(error) => error.into(),
        }
    }

    /// The blob, fetched from a node that has one of the manifests if it is not here; `None` if nobody who
    /// has it answers.
    pub(super) async fn obtain(
        &self,
        digest: &Digest,
        manifests: &[Digest],
    ) -> Result<Option<Blob>, Refusal> {
        if let Some(blob) = self.open_blob(digest).await? {
            return Ok(Some(blob));
        }
        // Held by one request at a time, so that a blob is fetched once.
        let turn = self.store.fetch_lock(digest);
        let _turn = turn.lock().await;
        for manifest in manifests {
            for holder in self.backend.holders(manifest).await {
                if let Some(blob) = self.open_blob(digest).await? {
                    return Ok(Some(blob));
                }
                let mut writer = self.store.ingest(digest, None)?;
                if let Err(error) = holder.fetch(digest, None, &mut writer).await {
                    if error.downcast_ref().is_some_and(|error| matches!(error, Error::DiskFull { .. })) {
                        return Err(Refusal::from(Error::document(digest.to_string(), "the disk is full")));
                    }
                    tracing::debug!(%digest, holder = holder.name(), %error, "a node did not give a blob");
                    continue;
                }
                match blocking(move || Ok(writer.commit())).await? {
                    Ok(_) => tracing::debug!(%digest, holder = holder.name(), "blob fetched"),
                    Err(error) => {
                        let error = one_line(&error);
                        tracing::warn!(%digest, holder = holder.name(), error, "a node gave another blob");
                    }
                }
            }
        }
        self.open_blob(digest).await
    }

    async fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>, Refusal> {
        let (store, digest) = (self.store.clone(), digest.clone());
        blocking(move || Ok(store.blob(&digest)?)).await
    }
}

/// Whether one of the entity tags in a condition is `tag`.
pub(super) fn matches(condition: &str, tag: &str) -> bool {
    condition
        .split(',')
        .map(|known| known.trim().trim_start_matches("W/"))
        .any(|known| known == tag || known == "*")
}

/// Reads `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-COUNT`. Several ranges, other units, and what is not
/// valid are ignored, as the RFC allows and wants.
fn part(range: Option<&str>, size: u64) -> Part {
    let Some((first, last)) = range
        .and_then(|text| text.strip_prefix("bytes="))
        .filter(|text| !text.contains(','))
        .and_then(|text| text.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let number = |text: &str| -> Option<u64> {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
    };
    match (first, last) {
        ("", count) => match number(count) {
            None => Part::Whole,
            Some(0) => Part::Nothing,
            Some(_) if size == 0 => Part::Nothing,
            Some(count) => Part::Some(size.saturating_sub(count), count.min(size)),
        },
        (first, "") => match number(first) {
            None => Part::Whole,
            Some(first) if first >= size => Part::Nothing,
            Some(first) => Part::Some(first, size - first),
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first > last => Part::Whole,
            (Some(first), Some(_)) if first >= size => Part::Nothing,
            (Some(first), Some(last)) => Part::Some(first, last.min(size - 1) - first + 1),
            _ => Part::Whole,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_them() {
        for (range, expected) in [
            ("bytes=0-0", Part::Some(0, 1)),
            ("bytes=2-5", Part::Some(2, 4)),
            ("bytes=2-", Part::Some(2, 8)),
            ("bytes=-3", Part::Some(7, 3)),
            ("bytes=-30", Part::Some(0, 10)),
            ("bytes=5-100", Part::Some(5, 5)),
            ("bytes=10-", Part::Nothing),
            ("bytes=10-11", Part::Nothing),
            ("bytes=-0", Part::Nothing),
            ("bytes=5-2", Part::Whole),
            ("bytes=0-1,4-5", Part::Whole),
            ("bytes=x-", Part::Whole),
            ("bytes=-", Part::Whole),
            ("items=0-1", Part::Whole),
            ("bytes=99999999999999999999999-", Part::Whole),
        ] {
            assert_eq!(part(Some(range), 10), expected, "{range}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Nothing);
        assert_eq!(part(None, 10), Part::Whole);
    }
}

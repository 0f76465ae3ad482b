//! Pushing blobs (specification, "Pushing blobs"): in one request, in two, in chunks, or by mounting one that
//! another repository has.

use bytes::Bytes;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderName, LOCATION, RANGE};
use http::{Response, StatusCode};

use super::answer::{self, Body, announced_length, header, plain, set};
use super::backend::{Backend, Right};
use super::refusal::{Code, Refusal};
use super::route::Query;
use super::spool::{Turn, Upload, blocking};
use super::{Registry, Visitor, now_ms};
use crate::digest::Digest;
use crate::store::Hold;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// Data of a request is gathered up to this much before a thread is asked to write it.
const BATCH_BYTES: usize = 1 << 20;
/// Repositories that are tried for a blob to mount, if the client does not say which one has it.
const READERS_TRIED: usize = 16;

impl<B: Backend> Registry<B> {
    /// `POST /v2/<name>/blobs/uploads/`
    pub(super) async fn begin_upload<R>(
        &self,
        name: &str,
        visitor: &Visitor,
        query: &Query,
        headers: &HeaderMap,
        body: &mut R,
    ) -> Result<Response<Body>, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        if let Some(digest) = query.digest("mount")? {
            if self.mount(name, visitor, &digest, query.get("from")).await? {
                return Ok(created(name, &digest));
            }
            // As if nothing had been asked for: the client goes on with an upload.
        } else if let Some(digest) = query.digest("digest")? {
            let upload = self.spool.begin(name).await?;
            let taken = self.complete(&upload, &digest, headers, body).await;
            if taken.is_err() {
                // Nobody knows its id, so nobody can go on with it. It may be gone already.
                let _ = self.spool.cancel(&upload).await;
            }
            return taken;
        }
        let upload = self.spool.begin(name).await?;
        Ok(progress(StatusCode::ACCEPTED, &upload, 0))
    }

    /// `GET` of an upload: how far it is.
    pub(super) async fn upload_status(&self, name: &str, id: &str) -> Result<Response<Body>, Refusal> {
        let upload = self.spool.find(name, id)?;
        let bytes = upload.bytes().await;
        Ok(progress(StatusCode::NO_CONTENT, &upload, bytes))
    }

    /// `PATCH` of an upload: a chunk, or all of it as a stream.
    pub(super) async fn patch_upload<R>(
        &self,
        name: &str,
        id: &str,
        headers: &HeaderMap,
        body: &mut R,
    ) -> Result<Response<Body>, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        let upload = self.spool.find(name, id)?;
        let turn = self.spool.turn(&upload, None).await?;
        let turn = self.receive(&upload, turn, headers, body).await?;
        Ok(progress(StatusCode::ACCEPTED, &upload, turn.bytes()))
    }

    /// `PUT` of an upload: its end, perhaps with the last chunk.
    pub(super) async fn put_upload<R>(
        &self,
        name: &str,
        id: &str,
        query: &Query,
        headers: &HeaderMap,
        body: &mut R,
    ) -> Result<Response<Body>, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        let upload = self.spool.find(name, id)?;
        let digest = query.digest("digest")?;
        let missing = "the last request of an upload has to say the blob's digest: ?digest=sha256:…";
        let digest = digest.ok_or_else(|| Refusal::bad(Code::DigestInvalid, missing))?;
        self.complete(&upload, &digest, headers, body).await
    }

    /// `DELETE` of an upload.
    pub(super) async fn cancel_upload(&self, name: &str, id: &str) -> Result<Response<Body>, Refusal> {
        let upload = self.spool.find(name, id)?;
        self.spool.cancel(&upload).await?;
        Ok(plain(StatusCode::NO_CONTENT))
    }

    async fn complete<R>(
        &self,
        upload: &Upload,
        digest: &Digest,
        headers: &HeaderMap,
        body: &mut R,
    ) -> Result<Response<Body>, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        let turn = self.spool.turn(upload, Some(digest.algorithm())).await?;
        let turn = self.receive(upload, turn, headers, body).await?;
        let (pin, _) = self.spool.finish(upload, turn, digest).await?;
        self.lease(&upload.repository, digest, now_ms()).await?;
        drop(pin);
        Ok(created(&upload.repository, digest))
    }

    /// Writes a request's body to an upload. What came stays when the rest doesn't, so that the client can
    /// ask how far it is and go on there; unless the disk is full.
    async fn receive<R>(
        &self,
        upload: &Upload,
        mut turn: Turn,
        headers: &HeaderMap,
        body: &mut R,
    ) -> Result<Turn, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        check_range(headers, upload, turn.bytes())?;
        let mut superseded = std::pin::pin!(turn.superseded());
        let mut batch = Vec::new();
        let mut size = 0;
        loop {
            let data = tokio::select! {
                // Cancel-safe: the body keeps what was not taken. The outcome is final in either case.
                data = answer::next(body, self.options.idle_timeout) => data,
                () = &mut superseded => Err(Refusal::new(
                    StatusCode::CONFLICT,
                    Code::BlobUploadInvalid,
                    "another request goes on with this upload",
                )),
            };
            let is_end = !matches!(data, Ok(Some(_)));
            if let Ok(Some(data)) = &data {
                size += data.len();
                batch.push(data.clone());
            }
            if !batch.is_empty() && (is_end || size >= BATCH_BYTES) {
                turn = match turn.append(std::mem::take(&mut batch)).await {
                    Err(refusal) if refusal.is_full() => {
                        // What came would keep the disk full until it expires. It may be gone already.
                        let _ = self.spool.cancel(upload).await;
                        return Err(refusal);
                    }
                    appended => appended?,
                };
                size = 0;
            }
            if is_end {
                return data.map(|_| turn);
            }
        }
    }

    /// Makes a blob that another repository has one of this, if the visitor may read it there. `false`:
    /// there is none to be had.
    async fn mount(
        &self,
        name: &str,
        visitor: &Visitor,
        digest: &Digest,
        from: Option<&str>,
    ) -> Result<bool, Refusal> {
        let readers = match from {
            Some(from) => vec![from.to_owned()],
            None => self.catalogue.readers(digest).await?,
        };
        let may_read = |reader: &&String| visitor.may(reader, Right::Pull);
        for reader in readers.iter().filter(may_read).take(READERS_TRIED) {
            let Some(reasons) = self.blob_in(reader, digest).await? else { continue };
            let pin = self.store.pin([digest.clone()]);
            if self.obtain(digest, &reasons).await?.is_some() {
                self.lease(name, digest, now_ms()).await?;
                drop(pin);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps a blob, which is pinned, for a repository until a manifest names it.
    pub(super) async fn lease(&self, name: &str, digest: &Digest, since_ms: i64) -> Result<(), Refusal> {
        let (store, lease) = (self.store.clone(), lease_name(name, digest));
        let hold = Hold { digests: vec![digest.clone()], label: format!("{name} {digest}"), since_ms };
        blocking(move || Ok(store.hold(&lease, hold)?)).await
    }
}

/// The beginning of the names of holds for blobs that no manifest names yet.
pub(super) const LEASES: &str = "upload-";

/// The name of the hold that keeps a blob for a repository.
pub(super) fn lease_name(repository: &str, digest: &Digest) -> String {
    format!("{LEASES}{}", Digest::of(format!("{repository} {digest}").as_bytes()).hex())
}

fn created(name: &str, digest: &Digest) -> Response<Body> {
    let mut response = plain(StatusCode::CREATED);
    set(&mut response, LOCATION, format!("/v2/{name}/blobs/{digest}"));
    set(&mut response, super::CONTENT_DIGEST, digest.to_string());
    response
}

/// An upload's place and how far it is; the end of the range is its last byte.
fn progress(status: StatusCode, upload: &Upload, bytes: u64) -> Response<Body> {
    let mut response = plain(status);
    set(&mut response, LOCATION, format!("/v2/{}/blobs/uploads/{}", upload.repository, upload.id));
    set(&mut response, RANGE, format!("0-{}", bytes.saturating_sub(1)));
    set(&mut response, UPLOAD_ID, &upload.id);
    response
}

/// A chunk has to begin where the last one ended, and to be as long as it says.
fn check_range(headers: &HeaderMap, upload: &Upload, bytes: u64) -> Result<(), Refusal> {
    if !headers.contains_key(CONTENT_RANGE) {
        return Ok(());
    }
    let text = header(headers, CONTENT_RANGE).unwrap_or_default();
    let range = text.split_once('-').and_then(|(start, end)| {
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(start) || !digits(end) {
            return None;
        }
        Some((start.parse::<u64>().ok()?, end.parse::<u64>().ok()?))
    });
    let invalid = |message: String| Refusal::bad(Code::BlobUploadInvalid, message);
    let (start, end) =
        range.ok_or_else(|| invalid("Content-Range has to be START-END, both counted from 0".to_owned()))?;
    if end < start {
        return Err(invalid(format!("Content-Range {start}-{end} ends before it begins")));
    }
    if start != bytes {
        let message = format!("the chunk begins at {start}, and the next byte is {bytes}");
        let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message);
        let place = progress(StatusCode::ACCEPTED, upload, bytes);
        let told = [LOCATION, RANGE].into_iter().filter_map(|name| {
            let value = place.headers().get(&name).cloned()?;
            Some((name, value))
        });
        return Err(told.fold(refusal, |refusal, (name, value)| refusal.with(name, value)));
    }
    if let Some(length) = announced_length(headers)
        && Some(length) != (end - start).checked_add(1)
    {
        let message = format!("Content-Range {start}-{end} is not {length} bytes, as Content-Length says");
        return Err(Refusal::bad(Code::SizeInvalid, message));
    }
    Ok(())
}

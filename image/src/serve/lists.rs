//! Lists: tags, repositories, and what refers to a manifest; a page at a time.

use http::Response;
use http::header::{CONTENT_TYPE, HeaderName, LINK};
use serde_json::{Value, json};

use super::answer::{self, Body, set};
use super::backend::{Backend, Right};
use super::refusal::{Code, Refusal};
use super::route::{Query, encode};
use super::{Registry, Visitor};
use crate::digest::Digest;
use crate::manifest::OCI_INDEX;

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The longest page of tags or repositories.
const PAGE: usize = 1000;
/// The longest page of referrers: each of them is read.
const REFERRERS: usize = 100;
/// More annotations than this leave the rest of a page of referrers to the next one.
const REFERRERS_BYTES: usize = 1 << 20;

impl<B: Backend> Registry<B> {
    /// `GET /v2/<name>/tags/list`
    pub(super) async fn tags(&self, name: &str, query: &Query) -> Result<Response<Body>, Refusal> {
        if !self.catalogue.has_repository(name).await? {
            return Err(Refusal::missing(Code::NameUnknown, format!("there is no repository `{name}`")));
        }
        let count = query.count(PAGE)?;
        let after = query.get("last").unwrap_or("");
        // One more, to know whether there is another page.
        let mut tags = self.catalogue.tags(name, after, count + 1).await?;
        let has_more = tags.len() > count;
        tags.truncate(count);
        let next = tags.last().filter(|_| has_more).cloned();
        let mut response = json_response(&json!({ "name": name, "tags": tags }));
        if let Some(last) = next {
            link(&mut response, &format!("/v2/{name}/tags/list?n={count}&last={}", encode(&last)));
        }
        Ok(response)
    }

    /// `GET /v2/_catalog`: the repositories that the visitor may pull from.
    pub(super) async fn catalog(&self, visitor: &Visitor, query: &Query) -> Result<Response<Body>, Refusal> {
        let count = query.count(PAGE)?;
        let mut after = query.get("last").unwrap_or("").to_owned();
        let mut found: Vec<String> = Vec::new();
        while found.len() <= count {
            let page = self.catalogue.repositories(&after, PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().cloned().unwrap_or(after);
            found.extend(page.into_iter().filter(|name| visitor.may(name, Right::Pull)));
            if is_last {
                break;
            }
        }
        let has_more = found.len() > count;
        found.truncate(count);
        let next = found.last().filter(|_| has_more).cloned();
        let mut response = json_response(&json!({ "repositories": found }));
        if let Some(last) = next {
            link(&mut response, &format!("/v2/_catalog?n={count}&last={}", encode(&last)));
        }
        Ok(response)
    }

    /// `GET /v2/<name>/referrers/<digest>`. A repository that does not exist has none: a registry with this
    /// API must not answer 404.
    pub(super) async fn referrers(
        &self,
        name: &str,
        subject: &Digest,
        query: &Query,
    ) -> Result<Response<Body>, Refusal> {
        let wanted = query.get("artifactType").filter(|kind| !kind.is_empty());
        let after = query.get("last").unwrap_or("");
        let mut digests = self.catalogue.referrers(name, subject, after, REFERRERS + 1).await?;
        let mut has_more = digests.len() > REFERRERS;
        digests.truncate(REFERRERS);
        let (mut manifests, mut last, mut size) = (Vec::new(), None, 0);
        for digest in digests {
            if size > REFERRERS_BYTES {
                has_more = true;
                break;
            }
            last = Some(digest.clone());
            let Some(known) = self.catalogue.manifest(name, &digest).await? else { continue };
            if wanted.is_some_and(|kind| known.artifact_type.as_deref() != Some(kind)) {
                continue;
            }
            let mut descriptor = json!({
                "mediaType": known.media_type,
                "digest": digest.to_string(),
                "size": known.size,
            });
            if let Some(kind) = known.artifact_type {
                descriptor["artifactType"] = kind.into();
            }
            let content = self.content(&digest).await?;
            let annotations = serde_json::from_slice::<Value>(&content)
                .ok()
                .and_then(|mut manifest| manifest.get_mut("annotations").map(Value::take))
                .filter(Value::is_object);
            if let Some(annotations) = annotations {
                descriptor["annotations"] = annotations;
            }
            size += descriptor.to_string().len();
            manifests.push(descriptor);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let mut response = json_response(&index);
        set(&mut response, CONTENT_TYPE, OCI_INDEX);
        if wanted.is_some() {
            set(&mut response, FILTERS, "artifactType");
        }
        if let Some(last) = last.filter(|_| has_more) {
            let filter = wanted.map(|kind| format!("&artifactType={}", encode(kind))).unwrap_or_default();
            let last = encode(&last.to_string());
            link(&mut response, &format!("/v2/{name}/referrers/{subject}?last={last}{filter}"));
        }
        Ok(response)
    }
}

fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(answer::full(value.to_string()));
    set(&mut response, CONTENT_TYPE, "application/json");
    response
}

/// The next page (RFC 8288).
fn link(response: &mut Response<Body>, target: &str) {
    set(response, LINK, format!("<{target}>; rel=\"next\""));
}

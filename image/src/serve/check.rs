//! What is pushed as a manifest: read, and refused unless it is one.
//!
//! Unlike what a node runs, a registry takes any configuration and any layers: charts, signatures, lists of
//! parts. Only the frame is checked, and what a document is said to be against what it is (CVE-2021-41190).

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::catalogue::Known;
use super::refusal::{Code, Refusal};
use crate::digest::Digest;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// More than any image or artifact has.
const LINKS_MAX: usize = 2048;
/// More than any media type has (RFC 6838 allows 127 for each half).
const TYPE_MAX: usize = 255;

/// A manifest as it was pushed.
pub(super) struct Pushed {
    pub(super) media_type: String,
    /// Blobs that have to be in the repository, and their lengths.
    pub(super) blobs: Vec<(Digest, u64)>,
    /// Manifests that have to be in the repository, and their lengths.
    pub(super) manifests: Vec<(Digest, u64)>,
    pub(super) subject: Option<Digest>,
    artifact_type: Option<String>,
}

/// The fields that a registry looks at. serde refuses one that stands there twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Link>,
    layers: Option<Vec<Link>>,
    manifests: Option<Vec<Link>>,
    subject: Option<Link>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

impl Link {
    /// A layer that its maker lets nobody else distribute: clients leave it where it is.
    fn is_elsewhere(&self) -> bool {
        let kind = &self.media_type;
        !self.urls.is_empty() && (kind.contains(".nondistributable.") || kind.contains(".foreign."))
    }
}

fn invalid(reason: impl std::fmt::Display) -> Refusal {
    Refusal::bad(Code::ManifestInvalid, format!("the manifest is not acceptable: {reason}"))
}

/// Reads a manifest or an index that was sent as `content_type`.
pub(super) fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Pushed, Refusal> {
    // Parameters are ignored, as the specification wants it.
    let announced = content_type.map(|text| text.split(';').next().unwrap_or("").trim());
    if announced.is_some_and(|kind| kind.starts_with("application/vnd.docker.distribution.manifest.v1+")) {
        return Err(schema_1());
    }
    let fields: Fields = serde_json::from_slice(bytes).map_err(invalid)?;
    if fields.fs_layers.is_some() || fields.schema_version == Some(1) {
        return Err(schema_1());
    }
    if fields.schema_version != Some(2) {
        return Err(invalid("`schemaVersion` has to be 2"));
    }
    let is_index = match (&fields.manifests, fields.layers.is_some() || fields.config.is_some()) {
        (Some(_), false) => true,
        (None, true) => false,
        (Some(_), true) => return Err(invalid("it has both `manifests` and `layers` or `config`")),
        (None, false) => return Err(invalid("it has neither `manifests` nor `layers`")),
    };
    let media_type = media_type(fields.media_type.as_deref(), announced, is_index)?;
    if is_index { index(fields, media_type) } else { manifest(fields, media_type) }
}

fn schema_1() -> Refusal {
    invalid("it is a Docker schema 1 manifest, which is obsolete: push with a newer client")
}

/// What it is: its own word goes before the header's, and both have to fit what is in it.
fn media_type(own: Option<&str>, announced: Option<&str>, is_index: bool) -> Result<String, Refusal> {
    let announced = announced.filter(|kind| !matches!(*kind, "" | "application/json"));
    if let (Some(own), Some(announced)) = (own, announced)
        && own != announced
    {
        return Err(invalid(format!("its `mediaType` is `{own}`, but it was sent as `{announced}`")));
    }
    let default = if is_index { OCI_INDEX } else { OCI_MANIFEST };
    let kind = own.or(announced).unwrap_or(default);
    let fits = match kind {
        OCI_INDEX | DOCKER_LIST => is_index,
        OCI_MANIFEST | DOCKER_MANIFEST => !is_index,
        other => return Err(invalid(format!("`{other}` is no kind of manifest that is known"))),
    };
    if fits {
        return Ok(kind.to_owned());
    }
    let content = if is_index { "an index" } else { "a manifest" };
    Err(invalid(format!("its content is {content}, but it says that it is `{kind}`")))
}

fn manifest(fields: Fields, media_type: String) -> Result<Pushed, Refusal> {
    let Fields { artifact_type, config, layers, subject, .. } = fields;
    let config = config.ok_or_else(|| invalid("it has no `config`"))?;
    // Some clients write an empty list as null.
    let layers = layers.unwrap_or_default();
    limit(&layers)?;
    // An empty one counts as none.
    let artifact_type =
        artifact_type.filter(|kind| !kind.is_empty()).or_else(|| Some(config.media_type.clone()));
    let needed = std::iter::once(&config).chain(layers.iter().filter(|link| !link.is_elsewhere()));
    Ok(Pushed {
        media_type,
        blobs: needed.map(|link| (link.digest.clone(), link.size)).collect(),
        manifests: Vec::new(),
        subject: subject.map(|link| link.digest),
        artifact_type: checked_type(artifact_type)?,
    })
}

fn index(fields: Fields, media_type: String) -> Result<Pushed, Refusal> {
    let Fields { artifact_type, manifests, subject, .. } = fields;
    let links = manifests.unwrap_or_default();
    limit(&links)?;
    let is_manifest = |link: &Link| {
        matches!(link.media_type.as_str(), OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST)
    };
    let (manifests, blobs): (Vec<_>, Vec<_>) = links.into_iter().partition(is_manifest);
    let pairs = |links: Vec<Link>| links.into_iter().map(|link| (link.digest, link.size)).collect();
    Ok(Pushed {
        media_type,
        blobs: pairs(blobs),
        manifests: pairs(manifests),
        subject: subject.map(|link| link.digest),
        artifact_type: checked_type(artifact_type.filter(|kind| !kind.is_empty()))?,
    })
}

fn limit(links: &[Link]) -> Result<(), Refusal> {
    if links.len() > LINKS_MAX {
        return Err(invalid(format!("it names {} blobs, and may name {LINKS_MAX}", links.len())));
    }
    Ok(())
}

fn checked_type(kind: Option<String>) -> Result<Option<String>, Refusal> {
    match &kind {
        Some(text) if text.len() > TYPE_MAX => Err(invalid("its `artifactType` is too long")),
        _ => Ok(kind),
    }
}

impl Pushed {
    /// What the table keeps of it.
    pub(super) fn known(&self, size: u64) -> Known {
        let mut needs: Vec<Digest> =
            self.blobs.iter().chain(&self.manifests).map(|(digest, _)| digest.clone()).collect();
        needs.sort();
        needs.dedup();
        Known {
            media_type: self.media_type.clone(),
            size,
            needs,
            subject: self.subject.clone(),
            artifact_type: self.artifact_type.clone(),
        }
    }
}

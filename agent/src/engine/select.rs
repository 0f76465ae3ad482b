//! Which image is meant, and which fit a filter: the words of `docker image ls --filter` and of `prune`.

use std::collections::BTreeSet;

use rorqual_image::{ImageRecord, Reference};
use rorqual_proto::wire;
use tonic::Status;

use super::image_status;
use crate::agent::Agent;
use crate::images::ImageError;

/// Fewer characters of a digest are a name.
const PREFIX_MIN: usize = 6;

/// The image that a name, a digest or the beginning of one means. One that was named by its name comes with it.
pub(super) fn image(agent: &Agent, name: &str) -> Result<ImageRecord, Status> {
    let records = agent.images().store().list();
    if let Ok(reference) = name.parse::<Reference>() {
        if let Some(record) = records.iter().find(|record| record.reference.as_ref() == Some(&reference)) {
            return Ok(record.clone());
        }
        if let Some(digest) = reference.digest()
            && let Some(record) = records.iter().find(|record| record.is(digest))
        {
            return Ok(record.clone());
        }
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_prefix = hex.len() >= PREFIX_MIN && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fits = |record: &&ImageRecord| {
        is_prefix
            && (record.digest.hex().starts_with(hex)
                || record.index_digest.as_ref().is_some_and(|index| index.hex().starts_with(hex)))
    };
    let found: Vec<&ImageRecord> = records.iter().filter(fits).collect();
    let digests: BTreeSet<String> = found.iter().map(|record| record.digest.to_string()).collect();
    match (found.first(), digests.len()) {
        (Some(record), 1) => Ok((*record).clone()),
        (None, _) => {
            let error = rorqual_image::Error::NoSuchImage(name.to_owned());
            Err(image_status(name, &ImageError::Store(error)))
        }
        _ => {
            Err(Status::invalid_argument(format!("`{name}` means {} images: give more of it", digests.len())))
        }
    }
}

/// What is asked of an image or a container; of one kind any has to hold, of several kinds all.
#[derive(Debug, Default)]
pub(super) struct Filters {
    dangling: Vec<bool>,
    references: Vec<String>,
    labels: Vec<Label>,
    without_labels: Vec<Label>,
    /// Made before this time.
    pub(super) until_ms: Option<i64>,
    before: Option<i64>,
    since: Option<i64>,
    /// On nodes of these names.
    pub(super) nodes: Vec<String>,
}

#[derive(Debug)]
struct Label {
    key: String,
    value: Option<String>,
}

impl Label {
    fn fits(&self, label: &dyn Fn(&str) -> Option<String>) -> bool {
        label(&self.key).is_some_and(|found| self.value.as_ref().is_none_or(|wanted| *wanted == found))
    }
}

impl Filters {
    /// Reads them; `allowed` are the names that the command knows.
    pub(super) fn read(agent: &Agent, filters: &[wire::Filter], allowed: &[&str]) -> Result<Filters, Status> {
        let mut read = Filters::default();
        for wire::Filter { name, value } in filters {
            let refuse = |expected: &str| {
                Status::invalid_argument(format!("filter {name}={value}: expected {expected}"))
            };
            if !allowed.contains(&name.as_str()) {
                let known = allowed.join(", ");
                return Err(Status::invalid_argument(format!(
                    "filter `{name}` is unknown: there are {known}"
                )));
            }
            match name.as_str() {
                "dangling" => match value.as_str() {
                    "true" | "1" => read.dangling.push(true),
                    "false" | "0" => read.dangling.push(false),
                    _ => return Err(refuse("true or false")),
                },
                "node" => read.nodes.push(value.clone()),
                "reference" => read.references.push(value.clone()),
                "label" => read.labels.push(label(value)),
                "label!" => read.without_labels.push(label(value)),
                "until" => {
                    read.until_ms = Some(value.parse().map_err(|_| refuse("a time in Unix milliseconds"))?);
                }
                "before" => read.before = Some(created_ms(&image(agent, value)?)),
                _ => read.since = Some(created_ms(&image(agent, value)?)),
            }
        }
        Ok(read)
    }

    /// Whether anything about an image's configuration is asked.
    pub(super) fn asks_labels(&self) -> bool {
        !self.labels.is_empty() || !self.without_labels.is_empty()
    }

    /// Whether a label, of an image or a container, is as it was asked.
    pub(super) fn fit_labels(&self, label: &dyn Fn(&str) -> Option<String>) -> bool {
        self.labels.iter().all(|wanted| wanted.fits(label))
            && !self.without_labels.iter().any(|unwanted| unwanted.fits(label))
    }

    pub(super) fn fits_image(&self, agent: &Agent, record: &ImageRecord) -> bool {
        let created_ms = created_ms(record);
        let named = record.reference.as_ref();
        let in_time = self.until_ms.is_none_or(|until| created_ms < until)
            && self.before.is_none_or(|before| created_ms < before)
            && self.since.is_none_or(|since| created_ms > since);
        let in_name = self.references.is_empty()
            || named.is_some_and(|name| self.references.iter().any(|pattern| fits_name(pattern, name)));
        let dangles = self.dangling.is_empty() || self.dangling.contains(&named.is_none());
        if !(in_time && in_name && dangles) {
            return false;
        }
        if !self.asks_labels() {
            return true;
        }
        let config = agent.images().store().config_json(&record.digest).unwrap_or_default();
        self.fit_labels(&|key| config["config"]["Labels"][key].as_str().map(str::to_owned))
    }
}

fn label(text: &str) -> Label {
    match text.split_once('=') {
        Some((key, value)) => Label { key: key.to_owned(), value: Some(value.to_owned()) },
        None => Label { key: text.to_owned(), value: None },
    }
}

/// When an image was built; 0 where it does not say.
pub(super) fn created_ms(record: &ImageRecord) -> i64 {
    record.created.as_deref().and_then(crate::logs::milliseconds).unwrap_or(0)
}

/// A pattern fits the name as people write it, with or without its tag, or in full.
fn fits_name(pattern: &str, reference: &Reference) -> bool {
    let (familiar, full) = (reference.familiar(), reference.to_string());
    let without_tag = |text: &str| {
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name.to_owned(),
            _ => name.to_owned(),
        }
    };
    let names = [without_tag(&familiar), without_tag(&full), familiar, full];
    names.iter().any(|name| glob(pattern.as_bytes(), name.as_bytes()))
}

/// `*` and `?` of a shell; neither passes a slash.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            let length = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=length).any(|skipped| glob(rest, &text[skipped..]))
        }
        (Some((b'?', rest)), Some((byte, left))) => *byte != b'/' && glob(rest, left),
        (Some((one, rest)), Some((other, left))) => one == other && glob(rest, left),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names_as_people_write_them() {
        let name: Reference = "reg.example/team/web:1.2".parse().unwrap();
        for pattern in
            ["reg.example/team/web:1.2", "reg.example/team/web", "reg.example/*/web:1.*", "*/*/w?b"]
        {
            assert!(fits_name(pattern, &name), "{pattern}");
        }
        for pattern in ["web", "reg.example/*", "*/web", "*/*/web:2.*", ""] {
            assert!(!fits_name(pattern, &name), "{pattern}");
        }
        let short: Reference = "nginx".parse().unwrap();
        for pattern in ["nginx", "ng*", "nginx:latest", "docker.io/library/nginx"] {
            assert!(fits_name(pattern, &short), "{pattern}");
        }
    }

    #[test]
    fn labels_have_to_be_there_or_not() {
        let filters = Filters {
            labels: vec![label("a"), label("b=2")],
            without_labels: vec![label("c"), label("d=4")],
            ..Filters::default()
        };
        let look = |pairs: &'static [(&str, &str)]| {
            move |key: &str| {
                pairs.iter().find(|(known, _)| *known == key).map(|(_, value)| (*value).to_owned())
            }
        };
        assert!(filters.fit_labels(&look(&[("a", "x"), ("b", "2"), ("d", "5")])));
        assert!(!filters.fit_labels(&look(&[("a", "x"), ("b", "3")])));
        assert!(!filters.fit_labels(&look(&[("a", ""), ("b", "2"), ("c", "")])));
        assert!(!filters.fit_labels(&look(&[("a", ""), ("b", "2"), ("d", "4")])));
    }
}

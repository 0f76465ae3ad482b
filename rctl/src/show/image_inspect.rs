//! `image inspect` and `history`, with Docker's names of fields.

use rorqual_proto::wire::InspectImageResponse;
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::human;
use crate::table::Table;

/// The first characters of a command that are shown.
const COMMAND: usize = 45;

fn config(image: &InspectImageResponse) -> Result<Value> {
    serde_json::from_slice(&image.config_json)
        .map_err(|error| Failure::operation(format!("the image's configuration is no JSON: {error}")))
}

/// As `docker image inspect` has it.
pub(crate) fn json(image: &InspectImageResponse) -> Result<Value> {
    let config = config(image)?;
    let info = image.image.clone().unwrap_or_default();
    let known_as = if info.index_digest.is_empty() { &info.digest } else { &info.index_digest };
    let mut digests: Vec<String> =
        image.references.iter().map(|name| format!("{}@{known_as}", repository(name))).collect();
    digests.sort();
    digests.dedup();
    let tags: Vec<&str> = image
        .references
        .iter()
        .filter(|name| !name.contains('@'))
        .map(|name| human::familiar_image(name))
        .collect();
    let text = |key: &str| config[key].as_str().unwrap_or_default();
    let last = config["history"].as_array().and_then(|steps| steps.last());
    let mut shown = json!({
        "Id": info.digest,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Comment": last.and_then(|step| step["comment"].as_str()).unwrap_or_default(),
        "Created": text("created"),
        "Author": text("author"),
        "Config": config.get("config").cloned().unwrap_or(Value::Null),
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Size": info.size_bytes,
        "RootFS": {
            "Type": "layers",
            "Layers": image.layers.iter().map(|layer| layer.diff_id.as_str()).collect::<Vec<_>>(),
        },
        "Metadata": { "LastUsedTime": human::rfc3339_ms(image.last_used_at_ms) },
        "Descriptor": { "mediaType": image.media_type, "digest": info.digest },
        "ConfigDigest": image.config_digest,
        "Layers": image.layers.iter().map(|layer| json!({
            "MediaType": layer.media_type, "Digest": layer.digest, "Size": layer.size_bytes,
        })).collect::<Vec<_>>(),
        "Kept": image.kept,
        "Containers": info.in_use,
    });
    if let Some(variant) = config["variant"].as_str().filter(|variant| !variant.is_empty()) {
        shown["Variant"] = json!(variant);
    }
    Ok(shown)
}

/// A name without tag and digest.
fn repository(name: &str) -> String {
    let familiar = human::familiar_image(name);
    let plain = familiar.split_once('@').map_or(familiar, |(name, _)| name);
    match plain.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
        _ => plain.to_owned(),
    }
}

/// How the history is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) human: bool,
    pub(crate) cut: bool,
}

/// One step of an image's history.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Step {
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    created_by: String,
    size: String,
    comment: String,
}

impl Step {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

/// The newest step first. Sizes are of layers as they are transferred.
pub(crate) fn history(image: &InspectImageResponse, now_ms: i64, look: Look) -> Result<Vec<Step>> {
    let config = config(image)?;
    let digest = image.image.as_ref().map(|info| info.digest.clone()).unwrap_or_default();
    let steps = config["history"].as_array().cloned().unwrap_or_default();
    let mut layers = image.layers.iter();
    let mut rows = Vec::with_capacity(steps.len());
    for step in &steps {
        let is_empty = step["empty_layer"].as_bool().unwrap_or(false);
        let size_bytes = if is_empty { 0 } else { layers.next().map_or(0, |layer| layer.size_bytes) };
        let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
        let created = text("created");
        let since = human::parse_rfc3339_ms(&created).map(|at_ms| human::ago(at_ms, now_ms));
        rows.push(Step {
            id: "<missing>".to_owned(),
            created_since: if look.human {
                since.unwrap_or_else(|| "N/A".to_owned())
            } else {
                created.clone()
            },
            created_at: created,
            created_by: if look.cut { cut(&text("created_by")) } else { text("created_by") },
            size: if look.human { human::bytes_decimal(size_bytes) } else { size_bytes.to_string() },
            comment: text("comment"),
        });
    }
    // Layers that the history does not tell of.
    for layer in layers {
        let size =
            if look.human { human::bytes_decimal(layer.size_bytes) } else { layer.size_bytes.to_string() };
        rows.push(Step {
            id: "<missing>".to_owned(),
            created_at: String::new(),
            created_since: "N/A".to_owned(),
            created_by: String::new(),
            size,
            comment: String::new(),
        });
    }
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        newest.id = if look.cut { human::short_digest(&digest) } else { digest };
    }
    Ok(rows)
}

fn cut(command: &str) -> String {
    if command.chars().count() <= COMMAND {
        return command.to_owned();
    }
    command.chars().take(COMMAND - 1).chain(['…']).collect()
}

pub(crate) fn table(steps: &[Step]) -> String {
    let mut table = Table::new(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for step in steps {
        table.row(vec![
            step.id.clone(),
            step.created_since.clone(),
            step.created_by.clone(),
            step.size.clone(),
            step.comment.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{ImageInfo, ImageLayer};

    use super::*;

    fn image() -> InspectImageResponse {
        let config = json!({
            "created": "1970-01-02T00:00:00Z", "architecture": "arm64", "variant": "v8", "os": "linux",
            "config": { "Cmd": ["sh"] },
            "history": [
                { "created": "1970-01-02T00:00:00Z", "created_by": "ADD files" },
                { "created_by": "CMD [\"sh\"] and a very long command line that is cut", "empty_layer": true, "comment": "why" },
            ],
        });
        InspectImageResponse {
            image: Some(ImageInfo {
                digest: format!("sha256:{}", "01".repeat(32)),
                index_digest: "sha256:ff".into(),
                size_bytes: 5_000,
                ..ImageInfo::default()
            }),
            references: vec![
                "docker.io/library/web:1".into(),
                "docker.io/library/web:2".into(),
                "reg.example:5000/a/web:1".into(),
            ],
            config_json: config.to_string().into_bytes(),
            layers: vec![
                ImageLayer { diff_id: "sha256:aa".into(), size_bytes: 4_000, ..ImageLayer::default() },
                ImageLayer { diff_id: "sha256:bb".into(), size_bytes: 500, ..ImageLayer::default() },
            ],
            ..InspectImageResponse::default()
        }
    }

    #[test]
    fn fields_have_dockers_names() {
        let shown = json(&image()).unwrap();
        assert_eq!(shown["RepoTags"], json!(["web:1", "web:2", "reg.example:5000/a/web:1"]));
        assert_eq!(shown["RepoDigests"], json!(["reg.example:5000/a/web@sha256:ff", "web@sha256:ff"]));
        assert_eq!(shown["RootFS"], json!({ "Type": "layers", "Layers": ["sha256:aa", "sha256:bb"] }));
        assert_eq!(shown["Config"]["Cmd"], json!(["sh"]));
        let words =
            ["Architecture", "Variant", "Os", "Created", "Comment"].map(|key| shown[key].as_str().unwrap());
        assert_eq!(words, ["arm64", "v8", "linux", "1970-01-02T00:00:00Z", "why"]);
        assert_eq!(shown["Size"], 5_000);
    }

    #[test]
    fn golden_history() {
        let look = Look { human: true, cut: true };
        let rows = history(&image(), 86_400_000 * 3, look).unwrap();
        let expected = "\
IMAGE          CREATED      CREATED BY                                      SIZE   COMMENT
010101010101   N/A                                                          500B
<missing>      N/A          CMD [\"sh\"] and a very long command line that…   0B     why
<missing>      2 days ago   ADD files                                       4kB
";
        assert_eq!(table(&rows), expected);
    }
}

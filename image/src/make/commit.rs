//! An image of a container: its image, and its changes as one more layer.

use serde_json::{Map, Value, json};

use super::change;
use super::{Compression, Instruction};
use crate::diff::{Folders, LayerOptions, write_layer};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::Store;

/// What a commit says beside the container's files.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Its name; without one it is found by its digest.
    pub reference: Option<Reference>,
    /// Who made it.
    pub author: String,
    /// Why.
    pub message: String,
    /// When, RFC 3339.
    pub created: String,
    /// The container's own command line, for the history.
    pub created_by: String,
    /// What the container was started with beside its image, in the names of an image configuration's
    /// `config` (`Cmd`, `User`); `Env` and `Labels` are added to the image's.
    pub overrides: Map<String, Value>,
    /// Applied last.
    pub changes: Vec<Instruction>,
}

impl Store {
    /// Makes an image of the container with these folders, which runs on the image `base`. Answers with the
    /// new manifest's digest.
    pub fn commit(&self, base: &Digest, folders: &Folders, commit: Commit) -> Result<Digest> {
        let (below, mut config) = (self.manifest(base)?.layers, self.config_json(base)?);
        let options = LayerOptions::default();
        let (layer, entries) =
            self.make_layer(Compression::Gzip, |out| write_layer(folders, &options, out))?;
        let is_empty = entries == 0;
        describe(&mut config, &commit, (!is_empty).then_some(&layer.diff_id))
            .map_err(|reason| Error::document(format!("configuration of {base}"), reason))?;
        let new = if is_empty { Vec::new() } else { vec![layer] };
        self.make_image(&below, &new, &config, commit.reference)
    }
}

/// Writes into the configuration what is new.
fn describe(config: &mut Value, commit: &Commit, diff_id: Option<&Digest>) -> Result<(), String> {
    let root = config.as_object_mut().ok_or("it is not an object")?;
    root.insert("created".into(), json!(commit.created));
    if !commit.author.is_empty() {
        root.insert("author".into(), json!(commit.author));
    }
    let inner = root.entry("config").or_insert_with(|| json!({}));
    if inner.is_null() {
        *inner = json!({});
    }
    let inner = inner.as_object_mut().ok_or("its `config` is not an object")?;
    override_with(inner, &commit.overrides);
    change::apply(&commit.changes, inner).map_err(|error| error.to_string())?;
    if let Some(diff_id) = diff_id {
        let ids = root.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids"));
        ids.and_then(Value::as_array_mut).ok_or("it has no `rootfs.diff_ids`")?.push(json!(diff_id));
    }
    let mut step = json!({ "created": commit.created, "created_by": commit.created_by });
    for (key, text) in [("author", &commit.author), ("comment", &commit.message)] {
        if !text.is_empty() {
            step[key] = json!(text);
        }
    }
    if diff_id.is_none() {
        step["empty_layer"] = json!(true);
    }
    let history = root.entry("history").or_insert_with(|| json!([]));
    if history.is_null() {
        *history = json!([]);
    }
    history.as_array_mut().ok_or("its `history` is not a list")?.push(step);
    Ok(())
}

fn override_with(config: &mut Map<String, Value>, overrides: &Map<String, Value>) {
    for (key, value) in overrides {
        match (config.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                old.extend(new.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            (Some(Value::Array(old)), Value::Array(new)) if key == "Env" => {
                let name = |pair: &Value| {
                    let text = pair.as_str().unwrap_or_default();
                    text.split_once('=').map_or(text, |(name, _)| name).to_owned()
                };
                old.retain(|pair| !new.iter().any(|other| name(other) == name(pair)));
                old.extend(new.iter().cloned());
            }
            _ => drop(config.insert(key.clone(), value.clone())),
        }
    }
}

//! [`model::Record`].

use super::InvalidField;
use crate::{model, wire};

impl From<&model::Record> for wire::Record {
    fn from(record: &model::Record) -> Self {
        Self { key: record.key.clone(), version: record.version, value: record.value.clone() }
    }
}

impl TryFrom<wire::Record> for model::Record {
    type Error = InvalidField;

    fn try_from(record: wire::Record) -> Result<Self, InvalidField> {
        if record.key.is_empty() {
            return Err(InvalidField::missing("key"));
        }
        Ok(Self { key: record.key, version: record.version, value: record.value })
    }
}

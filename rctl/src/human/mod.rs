//! Durations, times, sizes and names, as people read them.

mod name;
mod size;
mod time;

pub(crate) use name::{
    familiar_image, quoted_command, repository_and_tag, role_name, short_digest, short_id,
};
pub(crate) use size::{bytes_binary, bytes_decimal, cpus};
pub(crate) use time::{ago, epoch_ms, lasting, parse_rfc3339_ms, rfc3339_ms, rfc3339_ns};

//! What `raft` logs through slog, as tracing events. It calls every vote "info"; here that is for debugging.

use std::fmt::{self, Write as _};

use slog::{Drain, Key, Level, Logger, OwnedKVList, Record, Serializer};

/// A logger for one member.
pub(super) fn logger() -> Logger {
    Logger::root(Tracing, slog::o!())
}

struct Tracing;

impl Drain for Tracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        if !self.is_enabled(record.level()) {
            return Ok(());
        }
        let mut text = Text(record.msg().to_string());
        // Writing to a string does not fail.
        let _ = slog::KV::serialize(&record.kv(), record, &mut text);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "rorqual::raft", "{}", text.0),
            Level::Warning => tracing::warn!(target: "rorqual::raft", "{}", text.0),
            Level::Info => tracing::debug!(target: "rorqual::raft", "{}", text.0),
            Level::Debug | Level::Trace => tracing::trace!(target: "rorqual::raft", "{}", text.0),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error => {
                tracing::enabled!(target: "rorqual::raft", tracing::Level::ERROR)
            }
            Level::Warning => tracing::enabled!(target: "rorqual::raft", tracing::Level::WARN),
            Level::Info => tracing::enabled!(target: "rorqual::raft", tracing::Level::DEBUG),
            Level::Debug | Level::Trace => tracing::enabled!(target: "rorqual::raft", tracing::Level::TRACE),
        }
    }
}

struct Text(String);

impl Serializer for Text {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

//! The container's log files, and how to read them.

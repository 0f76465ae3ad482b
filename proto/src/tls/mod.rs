//! Identities in certificates, and mutual TLS 1.3 between nodes.

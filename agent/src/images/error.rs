//! Why an image is not to be had, and whether it may be later.

use super::Asker;
use crate::error::one_line;

/// Why an image is not to be had; each says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    Store(#[from] rorqual_image::Error),
    #[error("{field} `{text}` can't be read")]
    Name {
        field: &'static str,
        text: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "it is on no node of the cluster, and its registry did not give it ({reason}): check the name, load it \
         on a node with `rctl image load`, or make the registry reachable"
    )]
    Nowhere {
        reason: String,
        /// Asking again will not help: the registry has no such image, or does not let us have it.
        is_permanent: bool,
    },
    #[error(
        "it is on no node of the cluster, and registry {registry} does not give it to {asker} ({reason}): {remedy}"
    )]
    Denied {
        registry: String,
        /// Who asked, in words.
        asker: String,
        reason: String,
        remedy: String,
        /// False while what there is to show may not have come yet.
        is_permanent: bool,
    },
    #[error("the cluster's registry does not take it")]
    Own(#[source] Box<rorqual_image::serve::KeepError>),
    #[error("the agent is shutting down")]
    Interrupted,
}

impl ImageError {
    /// Trying again on this node can't help. What may pass by itself is not permanent: peers that are away, a
    /// registry that does not answer, a full disk.
    pub(crate) fn is_permanent(&self) -> bool {
        use rorqual_image::Error;
        match self {
            ImageError::Name { .. } => true,
            ImageError::Nowhere { is_permanent, .. } | ImageError::Denied { is_permanent, .. } => {
                *is_permanent
            }
            ImageError::Interrupted | ImageError::Own(_) => false,
            ImageError::Store(error) => !matches!(
                error,
                Error::Io { .. } | Error::DiskFull { .. } | Error::BlobMissing { .. } | Error::Interrupted(_)
            ),
        }
    }
}

/// What a registry, or a node that was said to have it, answered to `asker`.
pub(super) fn nowhere(error: &rorqual_image::Error, asker: &Asker) -> ImageError {
    use rorqual_image::{Error, RegistryError};
    if let Error::Registry { registry, source: RegistryError::Denied { message }, .. } = error {
        return ImageError::Denied {
            registry: registry.clone(),
            asker: asker.words(),
            reason: match message.as_str() {
                "" => "access denied, or no such repository".to_owned(),
                said => said.to_owned(),
            },
            remedy: asker.remedy(registry),
            is_permanent: asker.is_certain,
        };
    }
    let is_permanent = match error {
        Error::Registry { source, .. } => match source {
            RegistryError::Status { status, .. } => {
                !status.is_server_error() && !matches!(status.as_u16(), 408 | 425 | 429)
            }
            RegistryError::Connect { .. }
            | RegistryError::Timeout { .. }
            | RegistryError::Http(_)
            | RegistryError::Busy { .. } => false,
            _ => true,
        },
        // A node was said to have it: it may have it again.
        _ => false,
    };
    ImageError::Nowhere { reason: one_line(error), is_permanent }
}

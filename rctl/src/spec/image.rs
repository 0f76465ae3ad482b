//! From the reference that the user wrote to its full form and digest, by the engine of this node.

use rorqual_proto::wire::{ContainerSpec, RegistryCredentials, ResolveImageRequest};

use crate::connect::{Daemon, LONG_CALL, within};
use crate::docker;
use crate::failure::Result;

/// Puts the full reference and the digest it stands for now into the spec, so that every node runs the same. Gives the
/// caller's credentials for the image's registry, where there are some.
pub(crate) async fn resolve(
    daemon: &Daemon,
    spec: &mut ContainerSpec,
) -> Result<Option<RegistryCredentials>> {
    let credentials = docker::kept(docker::registry_in(&spec.image));
    let request = ResolveImageRequest { reference: spec.image.clone(), credentials: credentials.clone() };
    let answer = daemon.engine().resolve_image(within(LONG_CALL, request)).await?.into_inner();
    spec.image = answer.reference;
    spec.image_digest = answer.digest;
    Ok(credentials)
}

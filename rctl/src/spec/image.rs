//! From the reference that the user wrote to its full form and digest, by the engine of this node.

use rorqual_proto::wire::{ContainerSpec, ResolveImageRequest};

use crate::connect::{Daemon, LONG_CALL, within};
use crate::failure::Result;

/// Puts the full reference and the digest it stands for now into the spec, so that every node runs the same.
pub(crate) async fn resolve(daemon: &Daemon, spec: &mut ContainerSpec) -> Result<()> {
    let request = ResolveImageRequest { reference: spec.image.clone() };
    let answer = daemon.engine().resolve_image(within(LONG_CALL, request)).await?.into_inner();
    spec.image = answer.reference;
    spec.image_digest = answer.digest;
    Ok(())
}

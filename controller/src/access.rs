//! Who may call what: the identity in the caller's certificate, and whether its node is still a member.
//!
//! A removed node's certificate stays valid until it expires; membership is what revokes it at once.

use rorqual_proto::model::Role;
use rorqual_proto::tls::{Identity, peer_identity};
use tonic::{Request, Status};

use crate::store::Store;

/// The caller, if it is a member of this cluster in any role.
pub(crate) fn member<T>(store: &Store, request: &Request<T>) -> Result<Identity, Status> {
    let identity = peer_identity(request).ok_or_else(|| {
        Status::unauthenticated("this call needs a node's certificate: join the cluster first")
    })?;
    let known = store.read(|state| {
        let same_cluster = state.cluster().is_some_and(|cluster| cluster.id == identity.cluster_id);
        same_cluster && state.node(&identity.node_id).is_some()
    });
    if known {
        Ok(identity)
    } else {
        Err(Status::permission_denied(format!(
            "node {} is not a member of this cluster (any more): `rctl cluster leave --force` there, then \
             join again",
            identity.node_id
        )))
    }
}

/// The caller, if it is a controller of this cluster.
pub(crate) fn controller<T>(store: &Store, request: &Request<T>) -> Result<Identity, Status> {
    let identity = member(store, request)?;
    if identity.role == Role::Controller {
        Ok(identity)
    } else {
        Err(Status::permission_denied("only a controller may make this call, and this is a worker"))
    }
}

//! Who asks a container how it is.

use std::net::{IpAddr, Ipv4Addr};

use super::{Executor, Prepared};
use crate::health::{Check, CheckError, Prober, resolve};
use crate::workload::{Networking, Workload};

impl Executor {
    /// What the specification and the image say of the container's health.
    pub(super) async fn check(&self, workload: &Workload) -> Result<Option<Check>, CheckError> {
        let spec = &workload.spec;
        let image = self.inner.images.config_json(&spec.image, spec.image_digest.as_deref()).await;
        resolve(spec.health.as_ref(), image.as_ref())
    }

    /// Asks a container that runs. None for one that has no check, or whose image has none any more.
    pub(crate) async fn prober(&self, workload: &Workload, prepared: Option<&Prepared>) -> Option<Prober> {
        let check = match prepared {
            Some(prepared) => prepared.check.clone()?,
            // An earlier daemon started it.
            None => self.check(workload).await.ok()??,
        };
        let address = self.address(workload).await;
        Some(Prober::new(self.inner.runtime.clone(), workload.id.clone(), address, check))
    }

    async fn address(&self, workload: &Workload) -> Option<IpAddr> {
        match workload.network {
            Networking::Host => Some(Ipv4Addr::LOCALHOST.into()),
            Networking::Alone => None,
            Networking::Attached(_) => {
                let attached = self.inner.network.attached().await;
                let own = attached.into_iter().find(|attachment| attachment.id == workload.id)?;
                own.interfaces.first().map(|interface| interface.address.into())
            }
        }
    }
}

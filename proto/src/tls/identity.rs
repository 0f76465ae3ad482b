//! Who a certificate is for: O is the cluster, CN the node, OU the role.

use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::TlsError;
use crate::model::{ClusterId, NodeId, Role};

/// The DNS name that every controller's certificate carries beside its own.
pub const CONTROLLER_NAME: &str = "controller.rorqual";

/// The name of the cluster's registry, which every node is: it stands in every node's certificate.
pub const REGISTRY_NAME: &str = "registry.rorqual.internal";

const CONTROLLER_UNIT: &str = "rorqual-controller";
const WORKER_UNIT: &str = "rorqual-worker";

/// The DNS name in a node's certificate.
pub fn node_name(node_id: &NodeId) -> String {
    format!("{node_id}.node.rorqual")
}

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Itself.
    pub node_id: NodeId,
    /// What it may do.
    pub role: Role,
}

impl Identity {
    /// Reads the subject of a certificate (DER). Says nothing about who signed it: verify first.
    pub fn from_certificate(der: &[u8]) -> Result<Self, TlsError> {
        let problem = |problem: String| TlsError::Identity { problem };
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| problem(format!("it is not a certificate ({error})")))?;
        let subject = certificate.subject();
        let organization = only(subject, "O", X509Name::iter_organization)?;
        let unit = only(subject, "OU", X509Name::iter_organizational_unit)?;
        let name = only(subject, "CN", X509Name::iter_common_name)?;
        Ok(Self {
            cluster_id: organization.parse().map_err(|error| problem(format!("O: {error}")))?,
            node_id: name.parse().map_err(|error| problem(format!("CN: {error}")))?,
            role: match unit {
                CONTROLLER_UNIT => Role::Controller,
                WORKER_UNIT => Role::Worker,
                other => return Err(problem(format!("OU `{other}` is no role"))),
            },
        })
    }

    /// The OU that stands for the role.
    pub(super) fn unit(&self) -> &'static str {
        match self.role {
            Role::Controller => CONTROLLER_UNIT,
            Role::Worker => WORKER_UNIT,
        }
    }

    /// The DNS names that the node's certificate carries.
    pub(super) fn dns_names(&self) -> Vec<String> {
        let mut names = vec![node_name(&self.node_id), REGISTRY_NAME.to_owned()];
        if self.role == Role::Controller {
            names.push(CONTROLLER_NAME.to_owned());
        }
        names
    }
}

/// The one value of an attribute: a subject with two of a kind could be read in two ways.
fn only<'a, 'n, I>(
    subject: &'n X509Name<'a>,
    attribute: &str,
    values: impl FnOnce(&'n X509Name<'a>) -> I,
) -> Result<&'n str, TlsError>
where
    I: Iterator<Item = &'n x509_parser::x509::AttributeTypeAndValue<'a>>,
    'a: 'n,
{
    let mut values = values(subject);
    let problem = |what: &str| TlsError::Identity { problem: format!("{attribute} {what}") };
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_str().map_err(|_| problem("is not text")),
        (None, _) => Err(problem("is missing")),
        (Some(_), Some(_)) => Err(problem("stands there twice")),
    }
}

/// The name that a server's certificate has to carry.
pub(super) fn server_name(name: String) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name).map_err(|error| TlsError::Identity { problem: error.to_string() })
}

/// When a certificate ends, seconds since the Unix epoch.
pub(super) fn validity_secs(der: &CertificateDer<'_>) -> Result<(i64, i64), TlsError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| TlsError::Identity { problem: format!("it is not a certificate ({error})") })?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

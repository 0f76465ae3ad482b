//! Enums: numbers on the wire, closed types in the model.

use super::InvalidField;
use crate::{model, wire};

/// Both directions of one enum: `wire::E: From<model::E>`, and a function from the number.
macro_rules! enums {
    ($($(#[$doc:meta])* $function:ident: $wire:path => $model:path { $($name:ident),+ $(,)? })+) => {$(
        impl From<$model> for $wire {
            fn from(value: $model) -> Self {
                match value { $(<$model>::$name => Self::$name),+ }
            }
        }

        $(#[$doc])*
        pub fn $function(number: i32, path: &str) -> Result<Option<$model>, InvalidField> {
            match <$wire>::try_from(number) {
                Ok(<$wire>::Unspecified) => Ok(None),
                $(Ok(<$wire>::$name) => Ok(Some(<$model>::$name)),)+
                Err(_) => Err(unknown(number, path)),
            }
        }
    )+};
}

fn unknown(number: i32, path: &str) -> InvalidField {
    InvalidField::new(path, format!("{number} is a value that this version does not know"))
        .remedy("bring all nodes to the same version of Rorqual")
}

enums! {
    /// A node's role from its number on the wire; `None` where unspecified.
    role: wire::Role => model::Role { Worker, Controller }
    /// A node's availability from its number on the wire; `None` where unspecified.
    availability: wire::Availability => model::Availability { Active, Pause, Drain }
    /// A node's state from its number on the wire; `None` where unspecified.
    node_state: wire::NodeState => model::NodeState { Unknown, Ready, Suspect, Down, Left }
    /// A task's observed state from its number on the wire; `None` where unspecified.
    task_state: wire::TaskState => model::TaskState {
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed,
        Rejected, Orphaned,
    }
    /// A task's desired state from its number on the wire; `None` where unspecified.
    desired_state: wire::DesiredState => model::DesiredState { Ready, Running, Retiring, Shutdown, Remove }
    /// What a health check says from its number on the wire; `None` where there is none.
    health: wire::Health => model::Health { Starting, Healthy, Unhealthy }
    /// A transport from its number on the wire; `None` where unspecified.
    protocol: wire::Protocol => model::Protocol { Tcp, Udp, Sctp }
    /// A mount's kind from its number on the wire; `None` where unspecified.
    mount_kind: wire::mount::Kind => model::MountKind { Bind, Volume, Tmpfs }
    /// What follows when a container is unhealthy from its number on the wire; `None` where unspecified.
    on_unhealthy: wire::OnUnhealthy => model::OnUnhealthy { Restart, Keep }
    /// An update's order from its number on the wire; `None` where unspecified.
    update_order: wire::UpdateOrder => model::UpdateOrder { StopFirst, StartFirst }
    /// A restart condition from its number on the wire; `None` where unspecified.
    restart_condition: wire::restart_policy::Condition => model::RestartCondition { None, OnFailure, Any }
}

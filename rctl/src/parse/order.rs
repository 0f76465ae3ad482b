//! `--update-order`, `--endpoint-mode`, `--affinity`, `--on-unhealthy`: one of two words each.

use rorqual_proto::wire::{OnUnhealthy, UpdateOrder};

/// Docker's two words.
pub(crate) fn update_order(text: &str) -> Result<UpdateOrder, String> {
    match text {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        other => Err(format!("`{other}` is neither stop-first nor start-first")),
    }
}

/// Whether names stand for the addresses of all replicas.
pub(crate) fn is_dnsrr(text: &str) -> Result<bool, String> {
    match text {
        "vip" => Ok(false),
        "dnsrr" => Ok(true),
        other => Err(format!("`{other}` is neither vip nor dnsrr")),
    }
}

/// What becomes of an unhealthy container.
pub(crate) fn on_unhealthy(text: &str) -> Result<OnUnhealthy, String> {
    match text {
        "restart" => Ok(OnUnhealthy::Restart),
        "keep" => Ok(OnUnhealthy::Keep),
        other => Err(format!("`{other}` is neither restart nor keep")),
    }
}

/// Whether each client has a replica of its own.
pub(crate) fn client_affinity(text: &str) -> Result<bool, String> {
    match text {
        "none" => Ok(false),
        "client-ip" => Ok(true),
        other => Err(format!("`{other}` is neither none nor client-ip")),
    }
}

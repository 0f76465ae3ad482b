//! `--update-order`.

use rorqual_proto::wire::UpdateOrder;

/// Docker's two words.
pub(crate) fn update_order(text: &str) -> Result<UpdateOrder, String> {
    match text {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        other => Err(format!("`{other}` is neither stop-first nor start-first")),
    }
}

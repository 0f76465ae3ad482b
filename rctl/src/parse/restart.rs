//! `run --restart`: `no`, `on-failure[:n]`, `always`.

use rorqual_proto::wire::restart_policy::Condition;

/// When and how often a plain container is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Restart {
    pub(crate) condition: Condition,
    /// 0 means without end.
    pub(crate) max_attempts: u32,
}

pub(crate) fn restart(text: &str) -> Result<Restart, String> {
    let always = |condition| Ok(Restart { condition, max_attempts: 0 });
    match text.split_once(':') {
        None if text == "no" => always(Condition::None),
        None if text == "on-failure" => always(Condition::OnFailure),
        None if text == "always" => always(Condition::Any),
        Some(("on-failure", count)) => match count.parse() {
            Ok(max_attempts) => Ok(Restart { condition: Condition::OnFailure, max_attempts }),
            Err(_) => Err(format!("`{count}` is not a number of attempts")),
        },
        _ => Err(format!("`{text}` is not a restart policy: expected no, on-failure[:N] or always")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let expected = |condition, max_attempts| Ok(Restart { condition, max_attempts });
        assert_eq!(restart("no"), expected(Condition::None, 0));
        assert_eq!(restart("on-failure"), expected(Condition::OnFailure, 0));
        assert_eq!(restart("on-failure:3"), expected(Condition::OnFailure, 3));
        assert_eq!(restart("always"), expected(Condition::Any, 0));
        for text in ["", "always:3", "on-failure:x", "unless-stopped"] {
            assert!(restart(text).is_err(), "{text}");
        }
    }
}

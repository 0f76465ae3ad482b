//! `service scale`: `web=10`.

/// How many replicas a service shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) name: String,
    pub(crate) replicas: u32,
}

pub(crate) fn scale(text: &str) -> Result<Scale, String> {
    let Some((name, replicas)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err(format!("`{text}` is not SERVICE=REPLICAS, as web=10"));
    };
    match replicas.parse() {
        Ok(replicas) => Ok(Scale { name: name.to_owned(), replicas }),
        Err(_) => Err(format!("`{replicas}` is not a number of replicas, as in web=10")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(scale("web=10"), Ok(Scale { name: "web".into(), replicas: 10 }));
        assert_eq!(scale("web=0"), Ok(Scale { name: "web".into(), replicas: 0 }));
        for text in ["", "web", "=10", "web=", "web=-1", "web=1.5", "web=99999999999"] {
            assert!(scale(text).is_err(), "{text}");
        }
    }
}

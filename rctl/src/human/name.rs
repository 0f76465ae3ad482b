//! Ids, images and commands, shortened.

/// The first 12 characters of an id, which are unique enough to type.
pub(crate) fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}

/// The first 12 hexadecimal digits of `sha256:…`.
pub(crate) fn short_digest(digest: &str) -> String {
    short_id(digest.strip_prefix("sha256:").unwrap_or(digest))
}

/// `docker.io/library/nginx:latest` as people write it: `nginx:latest`.
pub(crate) fn familiar_image(reference: &str) -> &str {
    match reference.strip_prefix("docker.io/") {
        Some(rest) => rest.strip_prefix("library/").filter(|name| !name.contains('/')).unwrap_or(rest),
        None => reference,
    }
}

/// The repository and tag of a reference in its full form, familiar; `<none>` where there is none.
pub(crate) fn repository_and_tag(reference: &str) -> (String, String) {
    const NONE: &str = "<none>";
    if reference.is_empty() {
        return (NONE.to_owned(), NONE.to_owned());
    }
    let name = familiar_image(reference);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
        _ => (name.to_owned(), NONE.to_owned()),
    }
}

/// A command in quotes, cut to `limit` characters.
pub(crate) fn quoted_command(words: &[String], limit: Option<usize>) -> String {
    if words.is_empty() {
        return String::new();
    }
    let text = words.join(" ");
    match limit {
        Some(limit) if text.chars().count() > limit => {
            let cut: String = text.chars().take(limit.saturating_sub(1)).collect();
            format!("\"{cut}…\"")
        }
        _ => format!("\"{text}\""),
    }
}

/// A role in the project's words.
pub(crate) fn role_name(role: rorqual_proto::wire::Role) -> &'static str {
    match role {
        rorqual_proto::wire::Role::Controller => "controller",
        rorqual_proto::wire::Role::Worker => "worker",
        rorqual_proto::wire::Role::Unspecified => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shown_as_people_write_them() {
        assert_eq!(familiar_image("docker.io/library/nginx:latest"), "nginx:latest");
        assert_eq!(familiar_image("docker.io/me/app:1"), "me/app:1");
        assert_eq!(familiar_image("localhost:5000/app:1"), "localhost:5000/app:1");
        let pair = |reference: &str| repository_and_tag(reference);
        assert_eq!(pair("docker.io/library/nginx:latest"), ("nginx".into(), "latest".into()));
        assert_eq!(pair("localhost:5000/app"), ("localhost:5000/app".into(), "<none>".into()));
        assert_eq!(pair("quay.io/a/b@sha256:00"), ("quay.io/a/b".into(), "<none>".into()));
        assert_eq!(pair(""), ("<none>".into(), "<none>".into()));
    }

    #[test]
    fn commands_are_quoted_and_cut() {
        let words = ["sh".to_owned(), "-c".to_owned(), "sleep 1000000".to_owned()];
        assert_eq!(quoted_command(&words, Some(10)), "\"sh -c sle…\"");
        assert_eq!(quoted_command(&words, None), "\"sh -c sleep 1000000\"");
        assert_eq!(quoted_command(&[], Some(10)), "");
    }
}

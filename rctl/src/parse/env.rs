//! Environment variables, from the command line and from files.

use std::path::Path;

/// `NAME=value` as it is; `NAME` alone takes the value from rctl's own environment, and is `None` where
/// there is none, as Docker has it.
pub(crate) fn env_value(
    text: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if name.is_empty() || name.contains(['\0', ' ', '\t', '\n']) {
        return Err(format!("`{text}` is not NAME=value, nor the NAME of a variable of this shell"));
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(environment(name).map(|value| format!("{name}={value}")))
}

/// The variables in a file: a line each, `#` comments and empty lines aside.
pub(crate) fn env_file(
    path: &Path,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read the environment file {}: {error}", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let variable = env_value(line, &environment)
            .map_err(|error| format!("{} line {}: {error}", path.display(), index + 1))?;
        variables.extend(variable);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    #[test]
    fn values_and_names() {
        assert_eq!(env_value("A=1=2", shell), Ok(Some("A=1=2".into())));
        assert_eq!(env_value("A=", shell), Ok(Some("A=".into())));
        assert_eq!(env_value("HOME", shell), Ok(Some("HOME=/root".into())));
        assert_eq!(env_value("UNSET", shell), Ok(None));
        for text in ["", "=x", "A B=1"] {
            assert!(env_value(text, shell).is_err(), "{text}");
        }
    }

    #[test]
    fn files_have_comments_and_name_the_bad_line() {
        let folder = std::env::temp_dir().join(format!("rctl-env-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("env");
        std::fs::write(&file, "\u{feff}# comment\n\nA=1 # kept\n  B=2\nHOME\nUNSET\n").unwrap();
        let expected = ["A=1 # kept", "B=2", "HOME=/root"].map(str::to_owned).to_vec();
        assert_eq!(env_file(&file, shell), Ok(expected));
        std::fs::write(&file, "A=1\n=2\n").unwrap();
        assert!(env_file(&file, shell).unwrap_err().contains("line 2"));
        assert!(env_file(&folder.join("none"), shell).unwrap_err().contains("none"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

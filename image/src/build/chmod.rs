//! `--chmod`: octal, or as `chmod(1)` writes it.

/// A change of modes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

/// `u=rwX`, `go-w`, `+x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    /// Bits of user, group and others that it is about: 0o700, 0o070, 0o007.
    who: u32,
    operator: char,
    permissions: String,
}

impl Chmod {
    pub(crate) fn parse(text: &str) -> Result<Chmod, String> {
        let wrong = || format!("`--chmod={text}`: expected an octal mode such as 0755, or u=rwX,go=rX");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return mode.map(Chmod::Octal).ok_or_else(wrong);
        }
        let clause = |part: &str| {
            let at = part.find(['=', '+', '-'])?;
            let (who, rest) = part.split_at(at);
            let mut chars = rest.chars();
            let operator = chars.next()?;
            let permissions: String = chars.collect();
            let mut bits = 0;
            for c in who.chars() {
                bits |= match c {
                    'u' => 0o700,
                    'g' => 0o070,
                    'o' => 0o007,
                    'a' => 0o777,
                    _ => return None,
                };
            }
            let bits = if bits == 0 { 0o777 } else { bits };
            permissions.chars().all(|c| "rwxXst".contains(c)).then_some(Clause {
                who: bits,
                operator,
                permissions,
            })
        };
        let clauses: Option<Vec<Clause>> = text.split(',').map(clause).collect();
        clauses.map(Chmod::Symbolic).ok_or_else(wrong)
    }

    pub(crate) fn apply(&self, mode: u32, is_folder: bool) -> u32 {
        match self {
            Chmod::Octal(mode) => *mode,
            Chmod::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_folder))
            }
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, is_folder: bool) -> u32 {
        let mut bits = 0;
        for c in self.permissions.chars() {
            bits |= match c {
                'r' => 0o444 & self.who,
                'w' => 0o222 & self.who,
                'x' => 0o111 & self.who,
                'X' if is_folder || mode & 0o111 != 0 => 0o111 & self.who,
                's' => {
                    (if self.who & 0o700 != 0 { 0o4000 } else { 0 })
                        | (if self.who & 0o070 != 0 { 0o2000 } else { 0 })
                }
                't' => 0o1000,
                _ => 0,
            };
        }
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => (mode & !self.who) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_changes_them() {
        for (text, mode, is_folder, expected) in [
            ("755", 0o644, false, 0o755),
            ("4755", 0o644, false, 0o4755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("go-w", 0o666, false, 0o644),
            ("u+s", 0o755, false, 0o4755),
        ] {
            assert_eq!(Chmod::parse(text).unwrap().apply(mode, is_folder), expected, "{text}");
        }
        for text in ["rwx", "u=q", "9", "77777", "z+x", ""] {
            assert!(Chmod::parse(text).is_err(), "{text}");
        }
    }
}

//! Sizes `512m` and cores `0.5`.

/// A size in bytes; k, m, g and t are powers of 1024, with or without `b` or `ib`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let refuse = || format!("`{text}` is not a size: expected a number with b, k, m, g or t, as 512m");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse()),
    };
    let thousandths = decimal(number, 3).ok_or_else(refuse)?;
    u64::try_from((u128::from(thousandths) << shift) / 1000).map_err(|_| refuse())
}

/// Cores, in billionths of a core.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    decimal(text, 9).ok_or_else(|| format!("`{text}` is not a number of cores: expected one as 0.5 or 2"))
}

/// A decimal number with at most `places` places after the point, times ten to the power of `places`.
fn decimal(text: &str, places: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > places {
        return None;
    }
    format!("{whole}{fraction:0<places$}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("100", 100),
            ("100b", 100),
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("512MiB", 512 << 20),
            ("1g", 1 << 30),
            ("1.5g", 3 << 29),
            (".5k", 512),
            ("2 t", 2 << 40),
        ];
        for (text, value) in cases {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in ["", "m", "-1m", "1x", "1mm", "1.2.3m", "1e3", "0.0001g", "99999999t", "."] {
            assert!(bytes(text).unwrap_err().contains("is not a size"), "{text}");
        }
    }

    #[test]
    fn cores() {
        for (text, value) in
            [("0.5", 500_000_000), ("2", 2_000_000_000), (".001", 1_000_000), ("1.50", 1_500_000_000)]
        {
            assert_eq!(cpus(text), Ok(value), "{text}");
        }
        for text in ["", ".", "-1", "1,5", "half", "0.0000000001", "99999999999"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }
}

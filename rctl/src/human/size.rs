//! Amounts.

/// Multiples of 1000, four significant digits at most, as Docker shows images: `187MB`.
pub(crate) fn bytes_decimal(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// Multiples of 1024, as Docker shows memory: `64MiB`.
pub(crate) fn bytes_binary(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(bytes: u64, base: f64, units: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let whole = (value.trunc() as u64).to_string().len();
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

/// Billionths of a core as cores: `0.5`.
pub(crate) fn cpus(nano_cpus: u64) -> String {
    let fraction = format!("{:09}", nano_cpus % 1_000_000_000);
    match fraction.trim_end_matches('0') {
        "" => format!("{}", nano_cpus / 1_000_000_000),
        fraction => format!("{}.{fraction}", nano_cpus / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        let decimal = [(0, "0B"), (999, "999B"), (1000, "1kB"), (7_812, "7.81kB"), (187_000_000, "187MB")];
        for (bytes, text) in decimal {
            assert_eq!(bytes_decimal(bytes), text);
        }
        let binary = [(512, "512B"), (64 << 20, "64MiB"), (3 << 29, "1.5GiB"), (24_000_000_000, "22.35GiB")];
        for (bytes, text) in binary {
            assert_eq!(bytes_binary(bytes), text);
        }
        assert_eq!(bytes_decimal(u64::MAX), "18447PB");
    }

    #[test]
    fn cores_have_no_more_digits_than_needed() {
        assert_eq!(cpus(500_000_000), "0.5");
        assert_eq!(cpus(2_000_000_000), "2");
        assert_eq!(cpus(1_000_000), "0.001");
        assert_eq!(cpus(1_250_000_001), "1.250000001");
    }
}

//! `--filter NAME=VALUE`, as Docker has it; `NAME!=VALUE` for what is not to be.

use rorqual_proto::wire::Filter;

use super::since;
use crate::human;

/// A filter for the daemon. `until` is a time or a duration before now, and goes out in Unix milliseconds.
pub(crate) fn filter(text: &str) -> Result<Filter, String> {
    let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err(format!("`{text}` is not NAME=VALUE, such as label=team=web or until=24h"));
    };
    let value = match name {
        "until" => since(value, human::epoch_ms())?.to_string(),
        _ => value.to_owned(),
    };
    Ok(Filter { name: name.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn filters_are_names_and_values() {
        let read = filter("label=a=b").unwrap();
        assert_eq!((read.name.as_str(), read.value.as_str()), ("label", "a=b"));
        assert_eq!(filter("label!=a").unwrap().name, "label!");
        assert_eq!(filter("until=1700000000").unwrap().value, "1700000000000");
        assert!(filter("until=soon").unwrap_err().contains("soon"));
        assert!(filter("dangling").unwrap_err().contains("NAME=VALUE"));
    }
}

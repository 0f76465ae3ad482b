//! Whose request it is: by host, then by the longest path that it begins with.
//!
//! Pure. Hosts are looked up as they are, then with a `*` in place of the first label, then as `*`.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Routes by host and path.
#[derive(Debug)]
pub(crate) struct Table<T> {
    /// The paths of a host, the longest first.
    hosts: BTreeMap<String, Vec<(String, Arc<T>)>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { hosts: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    /// Adds a route. Of two with the same host and path the first one counts.
    pub(crate) fn add(&mut self, host: &str, path: &str, target: Arc<T>) {
        let paths = self.hosts.entry(host.to_owned()).or_default();
        let key = |path: &str| (std::cmp::Reverse(path.len()), path.to_owned());
        if let Err(place) = paths.binary_search_by_key(&key(path), |(other, _)| key(other)) {
            paths.insert(place, (path.to_owned(), target));
        }
    }

    /// The route of a request. `host` is in small letters and has no port.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Arc<T>> {
        let of = |host: &str| {
            let mut paths = self.hosts.get(host)?.iter();
            paths.find(|(prefix, _)| begins_with(path, prefix)).map(|(_, target)| target)
        };
        let wildcard = || of(&format!("*.{}", host.split_once('.')?.1));
        of(host).or_else(wildcard).or_else(|| of("*"))
    }
}

/// `/shop` is the beginning of `/shop` and `/shop/1`, not of `/shopping`.
fn begins_with(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// Whether a path climbs: one that has `.` or `..` as a part, in whatever spelling, may be another path to the
/// replica than it is here, and there it is not this service's any more.
pub(crate) fn climbs(path: &str) -> bool {
    if !path.contains('.') && !path.contains('%') {
        return false;
    }
    let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    plain.split(['/', '\\']).any(|part| matches!(part.split(';').next(), Some("." | "..")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str)]) -> Table<String> {
        let mut table = Table::default();
        for (host, path) in routes {
            table.add(host, path, Arc::new(format!("{host}{path}")));
        }
        table
    }

    #[test]
    fn the_nearest_host_and_the_longest_path_win() {
        let table = table(&[
            ("*", "/"),
            ("*.example", "/"),
            ("app.example", "/shop"),
            ("app.example", "/"),
            ("app.example", "/shop/cart"),
            ("deep.example", "/x/"),
        ]);
        let found = |host: &str, path: &str| table.find(host, path).map(|target| target.as_str().to_owned());
        for (host, path, expected) in [
            ("app.example", "/", "app.example/"),
            ("app.example", "/shop", "app.example/shop"),
            ("app.example", "/shop/", "app.example/shop"),
            ("app.example", "/shop/cart/1", "app.example/shop/cart"),
            ("app.example", "/shopping", "app.example/"),
            ("other.example", "/", "*.example/"),
            ("a.b.example", "/", "*/"),
            ("example", "/", "*/"),
            ("deep.example", "/x/y", "deep.example/x/"),
            // No path of the host itself fits: a wider host may.
            ("deep.example", "/x", "*.example/"),
        ] {
            assert_eq!(found(host, path).as_deref(), Some(expected), "{host}{path}");
        }
    }

    #[test]
    fn what_no_route_names_is_nobodys() {
        let table = table(&[("app.example", "/shop")]);
        assert!(table.find("app.example", "/").is_none());
        assert!(table.find("x.example", "/shop").is_none());
    }

    #[test]
    fn paths_that_climb_are_seen_in_every_spelling() {
        for path in
            ["/a/../b", "/..", "/a/./b", "/%2e%2E/b", "/a%2f..%2fb", "/a\\..\\b", "/a%5C%2e.", "/..;x/b"]
        {
            assert!(climbs(path), "{path}");
        }
        for path in ["/", "/a.b/c", "/...", "/a/.well-known", "/a%20b", "/x..y", "/%2e%2e%2e"] {
            assert!(!climbs(path), "{path}");
        }
    }
}

//! `image ls`.

use rorqual_proto::wire::ImageInfo;
use serde::Serialize;

use crate::human;
use crate::table::Table;

/// So many nodes are named in a table, unless all are asked for.
const NODES: usize = 3;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    repository: String,
    tag: String,
    #[serde(rename = "ID")]
    id: String,
    digest: String,
    created_at: String,
    created_since: String,
    size: String,
    containers: u32,
    /// Host names; none outside of a cluster.
    nodes: Vec<String>,
}

pub(crate) fn row(image: &ImageInfo, now_ms: i64) -> Row {
    let (repository, tag) = human::repository_and_tag(&image.reference);
    let known = image.created_at_ms > 0;
    Row {
        repository,
        tag,
        id: image.digest.clone(),
        digest: match image.index_digest.as_str() {
            "" => image.digest.clone(),
            index => index.to_owned(),
        },
        created_at: if known { human::rfc3339_ms(image.created_at_ms) } else { String::new() },
        created_since: if known { human::ago(image.created_at_ms, now_ms) } else { "N/A".to_owned() },
        size: human::bytes_decimal(image.size_bytes),
        containers: image.in_use,
        nodes: image.nodes.clone(),
    }
}

/// What the table shows beyond the usual.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Columns {
    pub(crate) digests: bool,
    pub(crate) no_trunc: bool,
}

pub(crate) fn table(rows: Vec<Row>, columns: Columns) -> String {
    let mut header = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "CONTAINERS"];
    if columns.digests {
        header.insert(2, "DIGEST");
    }
    let with_nodes = rows.iter().any(|row| !row.nodes.is_empty());
    if with_nodes {
        header.push("NODES");
    }
    let mut table = Table::new(&header);
    for row in rows {
        let mut cells = vec![
            row.repository,
            row.tag,
            if columns.no_trunc { row.id } else { human::short_digest(&row.id) },
            row.created_since,
            row.size,
            row.containers.to_string(),
        ];
        if columns.digests {
            cells.insert(2, row.digest);
        }
        if with_nodes {
            cells.push(nodes(&row.nodes, columns.no_trunc));
        }
        table.row(cells);
    }
    table.render()
}

fn nodes(names: &[String], no_trunc: bool) -> String {
    match names.len().checked_sub(NODES) {
        Some(more @ 1..) if !no_trunc => format!("{}, {more} more", names[..NODES].join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let image = ImageInfo {
            reference: "docker.io/library/nginx:demo".into(),
            digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            size_bytes: 12_345_678,
            created_at_ms: 86_400_000,
            in_use: 2,
            index_digest: String::new(),
            nodes: Vec::new(),
        };
        let unnamed = ImageInfo { reference: String::new(), created_at_ms: 0, in_use: 0, ..image.clone() };
        let now_ms = 86_400_000 * 4;
        let expected = "\
REPOSITORY   TAG      IMAGE ID       CREATED      SIZE     CONTAINERS
nginx        demo     0123456789ab   3 days ago   12.3MB   2
<none>       <none>   0123456789ab   N/A          12.3MB   0
";
        assert_eq!(table(vec![row(&image, now_ms), row(&unnamed, now_ms)], Columns::default()), expected);
        let json = serde_json::to_value(row(&image, now_ms)).unwrap();
        assert_eq!(json["Repository"], "nginx");
        assert_eq!(json["CreatedAt"], "1970-01-02T00:00:00.000Z");
        let on = |count: usize| ImageInfo {
            nodes: (1..=count).map(|number| format!("n{number}")).collect(),
            ..image.clone()
        };
        let rows = || [2, 5, 3].map(|count| row(&on(count), now_ms)).into();
        let shown = table(rows(), Columns::default());
        for end in ["   NODES\n", "   n1, n2\n", "   n1, n2, n3, 2 more\n", "   n1, n2, n3\n"] {
            assert!(shown.contains(end), "{shown}");
        }
        assert!(table(rows(), Columns { no_trunc: true, ..Columns::default() }).contains("n3, n4, n5\n"));
        let json = serde_json::to_value(row(&on(2), now_ms)).unwrap();
        assert_eq!(json["Nodes"], serde_json::json!(["n1", "n2"]));
    }
}

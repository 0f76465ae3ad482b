//! `image ls`.

use rorqual_proto::wire::ImageInfo;
use serde::Serialize;

use crate::human;
use crate::table::Table;

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
        table.row(cells);
    }
    table.render()
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
    }
}

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
        digest: image.digest.clone(),
        created_at: if known { human::rfc3339_ms(image.created_at_ms) } else { String::new() },
        created_since: if known { human::ago(image.created_at_ms, now_ms) } else { "N/A".to_owned() },
        size: human::bytes_decimal(image.size_bytes),
        containers: image.in_use,
    }
}

pub(crate) fn table(rows: Vec<Row>, no_trunc: bool) -> String {
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "CONTAINERS"]);
    for row in rows {
        table.row(vec![
            row.repository,
            row.tag,
            if no_trunc { row.id } else { human::short_digest(&row.id) },
            row.created_since,
            row.size,
            row.containers.to_string(),
        ]);
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
        };
        let unnamed = ImageInfo { reference: String::new(), created_at_ms: 0, in_use: 0, ..image.clone() };
        let now_ms = 86_400_000 * 4;
        let expected = "\
REPOSITORY   TAG      IMAGE ID       CREATED      SIZE     CONTAINERS
nginx        demo     0123456789ab   3 days ago   12.3MB   2
<none>       <none>   0123456789ab   N/A          12.3MB   0
";
        assert_eq!(table(vec![row(&image, now_ms), row(&unnamed, now_ms)], false), expected);
        let json = serde_json::to_value(row(&image, now_ms)).unwrap();
        assert_eq!(json["Repository"], "nginx");
        assert_eq!(json["CreatedAt"], "1970-01-02T00:00:00.000Z");
    }
}

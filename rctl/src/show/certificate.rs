//! `certificate ls`.

use rorqual_proto::wire::CertificateView;
use serde::Serialize;

use crate::human;
use crate::table::Table;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    name: String,
    hosts: Vec<String>,
    not_before: String,
    not_after: String,
    /// SHA-256 of the certificate.
    fingerprint: String,
    /// Why there is none.
    problem: String,
}

pub(crate) fn row(view: CertificateView) -> Row {
    Row {
        name: view.name,
        hosts: view.hosts,
        not_before: time(view.not_before_ms),
        not_after: time(view.not_after_ms),
        fingerprint: view.fingerprint,
        problem: view.problem,
    }
}

fn time(at_ms: i64) -> String {
    if at_ms == 0 { String::new() } else { human::rfc3339_ms(at_ms) }
}

pub(crate) fn table(rows: Vec<Row>) -> String {
    let mut table = Table::new(&["NAME", "HOSTS", "EXPIRES", "FINGERPRINT", "PROBLEM"]);
    for row in rows {
        let short: String = row.fingerprint.chars().take(16).collect();
        table.row(vec![row.name, row.hosts.join(", "), row.not_after, short, row.problem]);
    }
    table.render()
}

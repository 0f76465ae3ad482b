//! `registry status`, `ls`, `user ls`.

use rorqual_proto::wire::{
    CollectRegistryResponse, RegistryStatusResponse, RegistryUserView, RepositoryView,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::human;
use crate::table::Table;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RepositoryRow {
    name: String,
    tags: Vec<String>,
    manifests: u64,
    size: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TagRow {
    repository: String,
    tag: String,
    digest: String,
}

pub(crate) fn repository(view: &RepositoryView) -> RepositoryRow {
    RepositoryRow {
        name: view.name.clone(),
        tags: view.tags.iter().map(|tag| tag.tag.clone()).collect(),
        manifests: view.manifests,
        size: human::bytes_decimal(view.size_bytes),
    }
}

/// Tags that a row of the table names before it only counts.
const TAGS_SHOWN: usize = 5;

pub(crate) fn repositories_table(rows: Vec<RepositoryRow>) -> String {
    let mut table = Table::new(&["REPOSITORY", "TAGS", "MANIFESTS", "SIZE HERE"]);
    for row in rows {
        let more = row.tags.len().saturating_sub(TAGS_SHOWN);
        let mut tags = row.tags.iter().take(TAGS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            tags.push_str(&format!(" and {more} more"));
        }
        table.row(vec![row.name, tags, row.manifests.to_string(), row.size]);
    }
    table.render()
}

pub(crate) fn tags(view: &RepositoryView) -> Vec<TagRow> {
    let row = |tag: &rorqual_proto::wire::RepositoryTag| TagRow {
        repository: view.name.clone(),
        tag: tag.tag.clone(),
        digest: tag.digest.clone(),
    };
    view.tags.iter().map(row).collect()
}

pub(crate) fn tags_table(rows: Vec<TagRow>) -> String {
    let mut table = Table::new(&["TAG", "DIGEST"]);
    rows.into_iter().for_each(|row| table.row(vec![row.tag, row.digest]));
    table.render()
}

/// Without the local password: that is for `login`.
pub(crate) fn status(status: &RegistryStatusResponse) -> Value {
    json!({
        "Name": status.name,
        "Addresses": status.addresses,
        "Problems": status.problems,
        "Manifests": status.manifests,
        "Size": human::bytes_decimal(status.size_bytes),
        "Uploads": status.uploads,
    })
}

pub(crate) fn pretty(status: &RegistryStatusResponse) -> String {
    let listens = match (status.addresses.as_slice(), status.problems.as_slice()) {
        ([], []) => "nowhere: this node is in no cluster, or registry_port is 0".to_owned(),
        (addresses, _) => addresses.join(", "),
    };
    let mut lines = vec![
        format!("Name:        {}", if status.name.is_empty() { "-" } else { &status.name }),
        format!("Listens at:  {listens}"),
    ];
    lines.extend(status.problems.iter().map(|problem| format!("Problem:     {problem}")));
    let size = human::bytes_decimal(status.size_bytes);
    lines.push(format!(
        "On this node: {} manifests, {size}, {} uploads under way",
        status.manifests, status.uploads
    ));
    lines.join("\n") + "\n"
}

pub(crate) fn collected(gone: &CollectRegistryResponse) -> Value {
    json!({ "Manifests": gone.manifests, "Blobs": gone.blobs, "Freed": human::bytes_decimal(gone.freed_bytes) })
}

fn grants(user: &RegistryUserView) -> Vec<(String, String)> {
    let rights = |grant: &rorqual_proto::wire::RegistryGrant| {
        let all = [(grant.pull, "pull"), (grant.push, "push"), (grant.delete, "delete")];
        all.into_iter().filter(|(has, _)| *has).map(|(_, right)| right).collect::<Vec<_>>().join(",")
    };
    user.grants.iter().map(|grant| (grant.repositories.clone(), rights(grant))).collect()
}

pub(crate) fn user(view: &RegistryUserView) -> Value {
    let grants: Vec<Value> = grants(view)
        .into_iter()
        .map(|(repositories, rights)| json!({ "Repositories": repositories, "Rights": rights }))
        .collect();
    json!({ "Name": view.name, "Grants": grants })
}

pub(crate) fn users_table(users: &[RegistryUserView]) -> String {
    let mut table = Table::new(&["USER", "REPOSITORIES", "RIGHTS"]);
    for view in users {
        let grants = grants(view);
        if grants.is_empty() {
            table.row(vec![view.name.clone(), "-".to_owned(), "none".to_owned()]);
        }
        for (repositories, rights) in grants {
            table.row(vec![view.name.clone(), repositories, rights]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{RegistryGrant, RepositoryTag};

    use super::*;

    #[test]
    fn golden() {
        let tag = |tag: &str| RepositoryTag { tag: tag.into(), digest: "sha256:00".into() };
        let view = RepositoryView {
            name: "team/app".into(),
            tags: ["1", "2", "3", "4", "5", "6", "latest"].map(tag).to_vec(),
            manifests: 2,
            size_bytes: 1_500_000,
        };
        let expected = "\
REPOSITORY   TAGS                         MANIFESTS   SIZE HERE
team/app     1, 2, 3, 4, 5 and 2 more   2           1.5MB
";
        let table = repositories_table(vec![repository(&view)]);
        assert_eq!(
            table.split_whitespace().collect::<Vec<_>>(),
            expected.split_whitespace().collect::<Vec<_>>()
        );
        let grant = RegistryGrant { repositories: "team/*".into(), pull: true, push: true, delete: false };
        let users = [
            RegistryUserView { name: "dev".into(), grants: vec![grant] },
            RegistryUserView { name: "idle".into(), grants: Vec::new() },
        ];
        let expected = "\
USER   REPOSITORIES   RIGHTS
dev    team/*         pull,push
idle   -              none
";
        assert_eq!(users_table(&users), expected);
        let secret = RegistryStatusResponse { local_password: "hidden".into(), ..Default::default() };
        assert!(!status(&secret).to_string().contains("hidden"));
        assert!(!pretty(&secret).contains("hidden"));
    }
}

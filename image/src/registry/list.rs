//! What a registry has: tags of a repository, and repositories by a word.

use http::Method;
use http::header::LINK;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::auth::encoded;
use super::exchange::{Call, Session, parse_uri};
use super::settings::Endpoint;
use super::tokens::Scope;
use super::{RegistryClient, RegistryError};
use crate::error::Result;
use crate::reference::Reference;

/// One page of an answer.
const PAGE_MAX_BYTES: u64 = 16 << 20;
/// Tags or repositories that are taken; a registry that has more is not read to its end.
const NAMES_MAX: usize = 100_000;

/// A repository that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchHit {
    /// Its name as it is pulled, without a tag.
    pub name: String,
    /// What its owner says about it; empty where the registry doesn't know.
    pub description: String,
    /// How many people like it; 0 where the registry doesn't know.
    pub stars: u64,
    /// It is one of Docker's own.
    pub is_official: bool,
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Found {
    results: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    star_count: u64,
    #[serde(default)]
    is_official: bool,
}

impl RegistryClient {
    /// The tags of the reference's repository, as the registry orders them.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let what = format!("tags of {}", reference.repository());
        let listed = async {
            let session = self.home(reference)?;
            let path = format!("/v2/{}/tags/list?n=1000", reference.repository());
            let scope = Scope::pull(reference.repository());
            pages(&session, path, (&what, &scope), |page: Tags| page.tags.unwrap_or_default()).await
        };
        listed.await.map_err(|source| self.error(reference.registry(), &what, source))
    }

    /// Repositories of `registry` that have something to do with `word`: by its search where it has one (Docker Hub),
    /// else those of its list whose name contains the word.
    pub async fn search(&self, registry: &str, word: &str, limit: usize) -> Result<Vec<SearchHit>> {
        let what = format!("the search for `{word}`");
        let found = async {
            let session = self.session(self.search_endpoint(registry))?;
            match first_version(&session, registry, word, limit, &what).await {
                Err(RegistryError::NotFound { .. } | RegistryError::Protocol(_)) => {}
                Err(RegistryError::Status { status, .. }) if status.is_client_error() => {}
                found => return found,
            }
            let session = self.session(self.options.endpoint(registry))?;
            let path = "/v2/_catalog?n=1000".to_owned();
            let scope = Scope::catalog();
            let names =
                pages(&session, path, (&what, &scope), |page: Catalog| page.repositories.unwrap_or_default());
            let names = names.await?;
            let hits =
                names.into_iter().filter(|name| name.contains(word)).take(limit).map(|name| SearchHit {
                    name: format!("{registry}/{name}"),
                    description: String::new(),
                    stars: 0,
                    is_official: false,
                });
            Ok(hits.collect())
        };
        found.await.map_err(|source| self.error(registry, &what, source))
    }

    /// Docker Hub searches under yet another name.
    fn search_endpoint(&self, registry: &str) -> Endpoint {
        let endpoint = self.options.endpoint(registry);
        match registry {
            "docker.io" => Endpoint { base: "https://index.docker.io".to_owned(), ..endpoint },
            _ => endpoint,
        }
    }
}

async fn first_version(
    session: &Session,
    registry: &str,
    word: &str,
    limit: usize,
    what: &str,
) -> Result<Vec<SearchHit>, RegistryError> {
    let path = format!("/v1/search?q={}&n={limit}", encoded(word));
    let scope = Scope::nothing();
    let call = Call { method: &Method::GET, path: &path, headers: &[], content: None, what, scope: &scope };
    let answer = session.send(call).await?;
    let bytes = session.collect(answer, PAGE_MAX_BYTES).await?;
    let found: Found = serde_json::from_slice(&bytes)
        .map_err(|_| RegistryError::Protocol("it is no list of repositories".to_owned()))?;
    let hits = found.results.into_iter().take(limit).map(|one| SearchHit {
        name: if registry == "docker.io" { one.name } else { format!("{registry}/{}", one.name) },
        description: one.description.unwrap_or_default(),
        stars: one.star_count,
        is_official: one.is_official,
    });
    Ok(hits.collect())
}

/// Reads page after page, as `Link` says.
async fn pages<P: DeserializeOwned>(
    session: &Session,
    first: String,
    (what, scope): (&str, &Scope),
    names_of: impl Fn(P) -> Vec<String>,
) -> Result<Vec<String>, RegistryError> {
    let (mut path, mut names) = (first, Vec::new());
    loop {
        let call = Call { method: &Method::GET, path: &path, headers: &[], content: None, what, scope };
        let answer = session.send(call).await?;
        let next = answer.headers().get(LINK).and_then(|value| value.to_str().ok()).and_then(next_page);
        let bytes = session.collect(answer, PAGE_MAX_BYTES).await?;
        let page: P = serde_json::from_slice(&bytes)
            .map_err(|_| RegistryError::Protocol("it is no list of names".to_owned()))?;
        let more = names_of(page);
        let is_empty = more.is_empty();
        names.extend(more);
        match next {
            // A registry that leads in circles comes to an end here.
            Some(next) if !is_empty && names.len() < NAMES_MAX && next != path => path = next,
            _ => return Ok(names),
        }
    }
}

/// The path of `<…>; rel="next"`. Its host does not matter: pages are asked of the registry itself.
fn next_page(link: &str) -> Option<String> {
    let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !rest.contains("next") {
        return None;
    }
    if address.starts_with('/') && !address.starts_with("//") {
        return Some(address.to_owned());
    }
    parse_uri(address).ok()?.path_and_query().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_asked_of_the_same_registry() {
        let next = |link: &str| next_page(link);
        assert_eq!(next("</v2/a/tags/list?last=x>; rel=\"next\"").as_deref(), Some("/v2/a/tags/list?last=x"));
        assert_eq!(next("<https://evil.example/v2/x?n=1>; rel=\"next\"").as_deref(), Some("/v2/x?n=1"));
        for none in ["", "<//evil.example/x>; rel=next", "</v2/x>; rel=\"prev\"", "</v2/x"] {
            assert_eq!(next(none), None, "{none}");
        }
    }
}

//! Who asks, and what they may: Basic and Bearer credentials (RFC 7617, RFC 6750), and the tokens that Docker's
//! clients get for them.
//!
//! A token is a random name for what it allows, kept in this node's memory: one that another node gave, or this
//! node before its last start, is unknown here, and the client gets a new one by itself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use serde_json::json;

use super::answer::{self, Body, header, set};
use super::backend::{Backend, Grant, Right, Rights};
use super::refusal::{Code, Refusal};
use super::route::{Query, problem_of_name};
use super::{Caller, Registry, random};
use crate::digest::Digest;

/// What tokens are for.
const SERVICE: &str = "rorqual-registry";
/// How long a token is good for: so long may it take until a right that was taken away is gone.
const TOKEN_LIFE: Duration = Duration::from_secs(300);
/// How long a password that was right is not asked about again.
const PASSWORD_LIFE: Duration = Duration::from_secs(10);
/// Tokens and passwords that are remembered; the oldest make way.
const REMEMBERED: usize = 10_000;
/// Repositories that one token is asked for.
const SCOPES_MAX: usize = 32;

/// Who asks.
pub(super) struct Visitor {
    rights: Rights,
    /// May see the list of repositories.
    lists: bool,
    shows: Shows,
}

/// What a request shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    Nothing,
    Password,
    Token,
    /// It need not show anything.
    Trust,
}

impl Visitor {
    pub(super) fn may(&self, repository: &str, right: Right) -> bool {
        self.rights.allow(repository, right)
    }
}

/// Remembers, for a time.
struct Memory<T> {
    known: HashMap<String, (T, Instant)>,
    order: VecDeque<String>,
}

impl<T: Clone> Memory<T> {
    fn new() -> Self {
        Memory { known: HashMap::new(), order: VecDeque::new() }
    }

    fn get(&self, key: &str) -> Option<T> {
        self.known.get(key).filter(|(_, until)| *until > Instant::now()).map(|(value, _)| value.clone())
    }

    fn put(&mut self, key: String, value: T, life: Duration) {
        while self.order.len() >= REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        if self.known.insert(key.clone(), (value, Instant::now() + life)).is_none() {
            self.order.push_back(key);
        }
    }
}

/// What a token allows.
#[derive(Clone)]
struct Ticket {
    rights: Rights,
    lists: bool,
}

/// Tokens that were given, and passwords that were right lately (by their hash).
pub(super) struct Access {
    tickets: Mutex<Memory<Ticket>>,
    passwords: Mutex<Memory<Rights>>,
    /// Makes the hashes useless to whoever reads the memory's content elsewhere.
    salt: [u8; 32],
}

impl Access {
    pub(super) fn new() -> Access {
        Access { tickets: Mutex::new(Memory::new()), passwords: Mutex::new(Memory::new()), salt: random() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Registry<B> {
    /// Who sends a request with these headers.
    pub(super) async fn visitor(&self, caller: &Caller, headers: &HeaderMap) -> Result<Visitor, Refusal> {
        if caller.is_trusted {
            return Ok(Visitor { rights: Rights::everything(), lists: true, shows: Shows::Trust });
        }
        let Some(value) = header(headers, AUTHORIZATION) else {
            let rights = self.rights_of("", "").await?.unwrap_or_default();
            return Ok(Visitor { rights, lists: true, shows: Shows::Nothing });
        };
        let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let ticket = lock(&self.access.tickets).get(rest.trim());
            let Ticket { rights, lists } = ticket.ok_or_else(|| {
                self.challenge(
                    caller,
                    headers,
                    "",
                    "the token is not valid (any more)",
                    Some("invalid_token"),
                )
            })?;
            return Ok(Visitor { rights, lists, shows: Shows::Token });
        }
        let rights = self.by_password(rest).await?.filter(|_| scheme.eq_ignore_ascii_case("basic"));
        let rights = rights.ok_or_else(|| {
            self.challenge(caller, headers, "", "the user name or the password is wrong", None)
        })?;
        Ok(Visitor { rights, lists: true, shows: Shows::Password })
    }

    /// `/v2/` tells clients whether they have to log in: whoever shows nothing has to.
    pub(super) fn admit_base(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        visitor: &Visitor,
    ) -> Result<(), Refusal> {
        if visitor.shows == Shows::Nothing {
            return Err(self.challenge(caller, headers, "", "log in first", None));
        }
        Ok(())
    }

    /// Lets a visitor do something with a repository, or says what is missing.
    pub(super) fn admit(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        visitor: &Visitor,
        repository: &str,
        right: Right,
    ) -> Result<(), Refusal> {
        if visitor.may(repository, right) {
            return Ok(());
        }
        // Whoever pushes reads as well: clients look first what is there.
        let rights = if right == Right::Push { "pull,push" } else { right.as_str() };
        let scope = format!("repository:{repository}:{rights}");
        self.refuse(caller, headers, visitor, &scope, &format!("{} of `{repository}`", right.as_str()))
    }

    /// Lets a visitor see the list of repositories.
    pub(super) fn admit_catalog(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        visitor: &Visitor,
    ) -> Result<(), Refusal> {
        let may = visitor.lists && (visitor.shows != Shows::Nothing || !visitor.rights.0.is_empty());
        if may {
            return Ok(());
        }
        self.refuse(caller, headers, visitor, "registry:catalog:*", "the list of repositories")
    }

    fn refuse(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        visitor: &Visitor,
        scope: &str,
        what: &str,
    ) -> Result<(), Refusal> {
        Err(match visitor.shows {
            Shows::Nothing => self.challenge(caller, headers, scope, &format!("{what} needs a login"), None),
            // The client asks for a token that allows it, and is refused for good if there is none.
            Shows::Token => {
                let message = format!("{what} is not in the token");
                self.challenge(caller, headers, scope, &message, Some("insufficient_scope"))
            }
            Shows::Password | Shows::Trust => Refusal::new(
                StatusCode::FORBIDDEN,
                Code::Denied,
                format!(
                    "you have no right to {what}: who runs the cluster can give it (`rctl registry grant`)"
                ),
            ),
        })
    }

    /// 401, with where to get a token and what to ask for.
    fn challenge(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        scope: &str,
        message: &str,
        error: Option<&str>,
    ) -> Refusal {
        let refusal = Refusal::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, message);
        let host = header(headers, HOST).filter(|host| is_host(host)).unwrap_or(&caller.host);
        let mut text = format!("Bearer realm=\"{}://{host}/v2/token\",service=\"{SERVICE}\"", caller.scheme);
        if !scope.is_empty() {
            text.push_str(&format!(",scope=\"{scope}\""));
        }
        if let Some(error) = error {
            text.push_str(&format!(",error=\"{error}\""));
        }
        match HeaderValue::from_str(&text) {
            Ok(value) => refusal.with(WWW_AUTHENTICATE, value),
            Err(_) => refusal,
        }
    }

    /// `GET /v2/token`: a token for a user name and password, or for everybody; it allows what was asked for
    /// as far as the user may. What the user may not is left out, as Docker's token specification has it.
    pub(super) async fn token(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Response<Body>, Refusal> {
        let rights = match header(headers, AUTHORIZATION) {
            _ if caller.is_trusted => Rights::everything(),
            None => self.rights_of("", "").await?.unwrap_or_default(),
            Some(value) => {
                let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
                let rights = self.by_password(rest).await?.filter(|_| scheme.eq_ignore_ascii_case("basic"));
                rights.ok_or_else(|| {
                    Refusal::new(
                        StatusCode::UNAUTHORIZED,
                        Code::Unauthorized,
                        "the user name or the password is wrong",
                    )
                    .with(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"rorqual\""))
                })?
            }
        };
        let ticket = ticket(&rights, query.all("scope").flat_map(|scope| scope.split(' ')));
        let token = BASE64_URL_SAFE_NO_PAD.encode(random::<32>());
        lock(&self.access.tickets).put(token.clone(), ticket, TOKEN_LIFE);
        let answer = json!({ "token": token, "access_token": token, "expires_in": TOKEN_LIFE.as_secs() });
        let mut response = Response::new(answer::full(answer.to_string()));
        set(&mut response, CONTENT_TYPE, "application/json");
        set(&mut response, CACHE_CONTROL, "no-store");
        Ok(response)
    }

    /// The rights of whoever `user:password`, in base64, is right for.
    async fn by_password(&self, encoded: &str) -> Result<Option<Rights>, Refusal> {
        let decoded =
            BASE64_STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) if !user.is_empty() => self.rights_of(user, password).await,
            _ => Ok(None),
        }
    }

    async fn rights_of(&self, user: &str, password: &str) -> Result<Option<Rights>, Refusal> {
        let mut secret = self.access.salt.to_vec();
        secret.extend_from_slice(format!("{}:{user}:{password}", user.len()).as_bytes());
        let key = Digest::of(&secret).hex().to_owned();
        let remembered = lock(&self.access.passwords).get(&key);
        if remembered.is_some() {
            return Ok(remembered);
        }
        let mut rights = self.backend.authenticate(user, password).await?;
        if !user.is_empty()
            && let Some(rights) = &mut rights
            && let Some(everybody) = self.backend.authenticate("", "").await?
        {
            rights.0.extend(everybody.0);
        }
        if let Some(rights) = &rights {
            lock(&self.access.passwords).put(key, rights.clone(), PASSWORD_LIFE);
        }
        Ok(rights)
    }
}

/// What a token for these scopes allows of `rights`. Scopes of other kinds are left out.
fn ticket<'a>(rights: &Rights, scopes: impl Iterator<Item = &'a str>) -> Ticket {
    let mut ticket = Ticket { rights: Rights::default(), lists: false };
    for scope in scopes.take(SCOPES_MAX) {
        // A name has no colon, unless it has a host in front, which is not ours.
        let mut parts = scope.splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("repository"), Some(name), Some(actions)) if problem_of_name(name).is_none() => {
                let wanted = |right: &Right| {
                    actions.split(',').any(|action| action == right.as_str() || action == "*")
                };
                let given = Right::ALL.into_iter().filter(wanted).filter(|right| rights.allow(name, *right));
                let grant = Grant { repositories: name.to_owned(), rights: given.collect() };
                ticket.rights.0.push(grant);
            }
            (Some("registry"), Some("catalog"), Some("*")) if !rights.0.is_empty() => {
                ticket.lists = true;
                // The list shows what the user may pull, and a token shows it as the user.
                let pulls = rights.0.iter().filter(|grant| grant.rights.contains(&Right::Pull));
                ticket
                    .rights
                    .0
                    .extend(pulls.map(|grant| Grant { rights: vec![Right::Pull], ..grant.clone() }));
            }
            _ => {}
        }
    }
    ticket
}

/// Whether a `Host` header can stand in an answer: nothing that could end the quotes it stands in.
fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 255
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_allows_no_more_than_its_user_may_and_was_asked_for() {
        let rights =
            Rights(vec![Grant { repositories: "team/*".to_owned(), rights: vec![Right::Pull, Right::Push] }]);
        let scopes =
            ["repository:team/app:pull,delete", "repository:other:pull", "repository:../x:pull", "junk"];
        let ticket = ticket(&rights, scopes.into_iter());
        assert!(ticket.rights.allow("team/app", Right::Pull));
        assert!(!ticket.rights.allow("team/app", Right::Push), "was not asked for");
        assert!(!ticket.rights.allow("team/app", Right::Delete), "the user may not");
        assert!(!ticket.rights.allow("other", Right::Pull));
        assert!(!ticket.rights.allow("team/b", Right::Pull));
        assert!(!ticket.lists);
    }

    #[test]
    fn memory_forgets_in_time_and_the_oldest_first() {
        let mut memory = Memory::new();
        memory.put("gone".to_owned(), 1, Duration::ZERO);
        assert_eq!(memory.get("gone"), None);
        for number in 0..REMEMBERED {
            memory.put(number.to_string(), number, TOKEN_LIFE);
        }
        memory.put("last".to_owned(), 7, TOKEN_LIFE);
        assert_eq!(memory.get("0"), None);
        assert_eq!(memory.get("last"), Some(7));
        assert_eq!(memory.known.len(), memory.order.len());
    }

    #[test]
    fn a_host_header_can_not_end_the_quotes() {
        assert!(is_host("registry.rorqual.internal:4781"));
        assert!(is_host("[::1]:4781"));
        assert!(!is_host("a\",realm=\"http://evil"));
        assert!(!is_host(""));
    }
}

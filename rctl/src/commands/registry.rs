//! What has to do with registries: pull, push, search, tags, login and logout.

use std::io::{IsTerminal as _, Read as _};

use clap::Args;
use rorqual_proto::wire::{
    ListTagsRequest, LoginRequest, PullImageRequest, PullProgress, PushImageRequest, RegistryCredentials,
    SearchHit, SearchImagesRequest,
};
use serde::Serialize;
use tonic::Streaming;

use crate::connect::{Daemon, LONG_CALL, within};
use crate::docker::{self, Keys, registry_in, registry_of};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::progress::Progress;
use crate::table::Table;
use crate::{human, terminal};

/// No password is longer.
const PASSWORD_MAX_BYTES: u64 = 64 << 10;
/// What a table shows of a description.
const DESCRIPTION_CHARS: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Print nothing but the digest
    #[arg(long, short)]
    quiet: bool,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
    /// NAME, NAME:TAG or NAME@DIGEST
    image: String,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Print nothing but the digest
    #[arg(long, short)]
    quiet: bool,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
    /// NAME or NAME:TAG of an image of this node
    image: String,
}

#[derive(Debug, Args)]
pub(crate) struct TagsArgs {
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
    /// The repository, such as nginx or registry.example/team/app
    repository: String,
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// How many to show
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    /// Don't cut descriptions
    #[arg(long)]
    no_trunc: bool,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
    /// A word; REGISTRY/WORD searches another registry than Docker Hub
    term: String,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The user
    #[arg(long, short)]
    username: Option<String>,
    /// The password or an access token; better piped in with --password-stdin
    #[arg(long, short, conflicts_with = "password_stdin", requires = "username")]
    password: Option<String>,
    /// Read the password from the standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// The registry
    #[arg(default_value = "docker.io")]
    server: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry
    #[arg(default_value = "docker.io")]
    server: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome<'a> {
    reference: &'a str,
    digest: &'a str,
}

pub(crate) async fn pull(args: PullArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot pull {}", args.image);
    let request = PullImageRequest {
        reference: args.image.clone(),
        credentials: docker::kept(registry_in(&args.image)),
    };
    let pulled = match daemon.engine().pull_image(request).await {
        Ok(stream) => follow(stream.into_inner(), &args.image, args.quiet).await,
        Err(status) => Err(status.into()),
    };
    let (digest, _) = pulled.map_err(|failure| failure.doing(&attempt))?;
    match args.format {
        Format::Json => output::json(&Outcome { reference: &args.image, digest: &digest }),
        Format::Table if args.quiet => output::line(&digest),
        Format::Table => output::line(&format!("Pulled {}: {digest}", args.image)),
    }
}

pub(crate) async fn push(args: PushArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot push {}", args.image);
    let request = PushImageRequest {
        reference: args.image.clone(),
        credentials: docker::kept(registry_in(&args.image)),
    };
    let pushed = match daemon.engine().push_image(request).await {
        Ok(stream) => follow(stream.into_inner(), &args.image, args.quiet).await,
        Err(status) => Err(status.into()),
    };
    let (digest, status) = pushed.map_err(|failure| failure.doing(&attempt))?;
    if let Some(remark) = status.strip_prefix("done, ") {
        output::note(&format!("note: pushed {remark}"));
    }
    match args.format {
        Format::Json => output::json(&Outcome { reference: &args.image, digest: &digest }),
        Format::Table if args.quiet => output::line(&digest),
        Format::Table => output::line(&format!("Pushed {}: {digest}", args.image)),
    }
}

/// Shows how far the engine is; gives the digest and the last word.
async fn follow(
    mut stream: Streaming<PullProgress>,
    reference: &str,
    quiet: bool,
) -> Result<(String, String)> {
    let mut progress = Progress::new(quiet);
    let mut last = None;
    let ended = loop {
        match stream.message().await {
            Ok(Some(message)) if !message.digest.is_empty() => last = Some((message.digest, message.status)),
            Ok(Some(message)) => show_progress(&mut progress, reference, &message),
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    progress.abandon();
    ended?;
    last.ok_or_else(|| Failure::operation("rorquald ended without a result; try again"))
}

fn show_progress(progress: &mut Progress, reference: &str, message: &PullProgress) {
    let name = match message.item.as_str() {
        "" => reference.to_owned(),
        item => human::short_digest(item),
    };
    let amount = match (message.done_bytes, message.total_bytes) {
        (0, 0) => String::new(),
        (done, 0) => format!(" {}", human::bytes_decimal(done)),
        (done, total) => format!(" {}/{}", human::bytes_decimal(done), human::bytes_decimal(total)),
    };
    let text = format!("{}{amount}", message.status);
    match message.status.as_str() {
        // Nothing comes after these.
        "unpacked" | "pushed" => progress.finish(&name, &text),
        status if status.starts_with("mounted from") => progress.finish(&name, &text),
        _ => progress.show(&name, message.done_bytes, message.total_bytes, &text),
    }
}

pub(crate) async fn tags(args: TagsArgs, daemon: &Daemon) -> Result<()> {
    let request = ListTagsRequest {
        reference: args.repository.clone(),
        credentials: docker::kept(registry_in(&args.repository)),
    };
    let answer = daemon.engine().list_tags(within(LONG_CALL, request)).await;
    let answer = answer.map_err(|status| {
        Failure::from(status).doing(&format!("cannot list the tags of {}", args.repository))
    })?;
    let tags = answer.into_inner().tags;
    match args.format {
        Format::Json => tags.iter().try_for_each(|tag| {
            #[derive(Serialize)]
            #[serde(rename_all = "PascalCase")]
            struct Row<'a> {
                repository: &'a str,
                tag: &'a str,
            }
            output::json(&Row { repository: &args.repository, tag })
        }),
        Format::Table => tags.iter().try_for_each(|tag| output::line(tag)),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Hit<'a> {
    name: &'a str,
    description: &'a str,
    star_count: u64,
    is_official: bool,
}

pub(crate) async fn search(args: SearchArgs, daemon: &Daemon) -> Result<()> {
    let registry = registry_in(&args.term);
    let term = match args.term.split_once('/') {
        Some((first, rest)) if registry_of(first) == registry => rest,
        _ => &args.term,
    };
    let request = SearchImagesRequest {
        registry: registry.to_owned(),
        term: term.to_owned(),
        limit: args.limit,
        credentials: docker::kept(registry),
    };
    let answer = daemon.engine().search_images(within(LONG_CALL, request)).await;
    let answer = answer
        .map_err(|status| Failure::from(status).doing(&format!("cannot search {registry} for {term}")))?;
    let hits = answer.into_inner().hits;
    if args.format == Format::Json {
        return hits.iter().try_for_each(|hit| output::json(&row(hit)));
    }
    let mut table = Table::new(&["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]);
    for hit in &hits {
        let mut description = hit.description.replace('\n', " ");
        if !args.no_trunc && description.chars().count() > DESCRIPTION_CHARS {
            description = description.chars().take(DESCRIPTION_CHARS - 1).chain(['…']).collect();
        }
        let official = if hit.official { "[OK]" } else { "" };
        table.row(vec![hit.name.clone(), description, hit.stars.to_string(), official.to_owned()]);
    }
    output::print(&table.render())
}

fn row(hit: &SearchHit) -> Hit<'_> {
    let SearchHit { name, description, stars, official } = hit;
    Hit { name, description, star_count: *stars, is_official: *official }
}

pub(crate) async fn login(args: LoginArgs, daemon: &Daemon) -> Result<()> {
    let registry = registry_of(&args.server).to_owned();
    let mut keys = Keys::open()?;
    let username = match args.username {
        Some(username) => username,
        None => terminal::ask("Username: ", true)?,
    };
    let password = match args.password {
        Some(password) => {
            output::note("warning: others on this machine see the command line; --password-stdin is safer");
            password
        }
        None if args.password_stdin => password_from_stdin()?,
        None => terminal::ask("Password: ", false)?,
    };
    if username.is_empty() || password.is_empty() {
        return Err(Failure::usage("neither the user nor the password may be empty"));
    }
    let mut credentials = RegistryCredentials { username, password, ..RegistryCredentials::default() };
    let request = LoginRequest { registry: registry.clone(), credentials: Some(credentials.clone()) };
    let answer = daemon.engine().login(within(LONG_CALL, request)).await;
    let answer =
        answer.map_err(|status| Failure::from(status).doing(&format!("cannot log in to {registry}")))?;
    credentials.identity_token = answer.into_inner().identity_token;
    let place = keys.keep(&registry, &credentials)?;
    output::note(&format!("The credentials are kept in {place}."));
    output::line(&format!("Logged in to {registry} as {}", credentials.username))
}

fn password_from_stdin() -> Result<String> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("--password-stdin takes a password that is piped in"));
    }
    let mut text = String::new();
    let read = std::io::stdin().take(PASSWORD_MAX_BYTES).read_to_string(&mut text);
    read.map_err(|error| Failure::operation(format!("cannot read the password: {error}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

pub(crate) fn logout(args: &LogoutArgs) -> Result<()> {
    let registry = registry_of(&args.server);
    match Keys::open()?.forget(registry)? {
        true => output::line(&format!("Logged out of {registry}")),
        false => output::line(&format!("Not logged in to {registry}")),
    }
}

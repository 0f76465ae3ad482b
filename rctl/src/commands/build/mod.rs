//! `rctl build`: the daemon builds, this side has the files.
//!
//! ```text
//! args.rs  what was asked for         context.rs, archive.rs  answers about files
//! show.rs  what the user sees         output.rs               archives and folders that come back
//! cache.rs where steps of other nodes are
//! ```

mod archive;
mod args;
mod cache;
mod context;
mod output;
mod show;

use std::collections::BTreeMap;
use std::sync::Arc;

use rorqual_proto::wire::{
    BuildRequest, BuildResult, BuildStart, ContextQuery, build_request, build_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

pub(crate) use args::BuildArgs;
use args::Wanted;
use context::Context;
use output::Output;
use show::Show;

use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::output as out;

/// Answers that wait to be sent.
const REQUESTS: usize = 16;

/// The contexts of a build, by name; the build's own has the empty one.
type Contexts = Arc<BTreeMap<String, Context>>;

/// Builds an image.
pub(crate) async fn run(args: BuildArgs, daemon: &Daemon) -> Result<()> {
    // Reads the Dockerfile, secrets, and an archive on the standard input.
    let wanted = tokio::task::spawn_blocking(move || args.read())
        .await
        .unwrap_or_else(|_| Err(Failure::operation("reading the build context was interrupted")))?;
    let Wanted { start, contexts, output, cache_folder, show, iidfile, quiet } = wanted;
    let tags = start.tags.clone();
    let outputs = (output, cache_folder.map(Output::Folder));
    let result = converse(daemon, start, Arc::new(contexts), outputs, show).await?;
    if let Some(path) = iidfile {
        std::fs::write(&path, &result.digest)
            .map_err(|error| Failure::operation(format!("cannot write {}: {error}", path.display())))?;
    }
    if quiet {
        return out::line(&result.digest);
    }
    let names = if tags.is_empty() { String::new() } else { format!(" as {}", tags.join(", ")) };
    out::note(&format!("built {}{names}", result.digest));
    Ok(())
}

/// Sends what is wanted, and answers until the result comes.
async fn converse(
    daemon: &Daemon,
    start: BuildStart,
    contexts: Contexts,
    (output, steps): (Option<Output>, Option<Output>),
    mut show: Show,
) -> Result<BuildResult> {
    let (requests, queue) = mpsc::channel(REQUESTS);
    let first = BuildRequest { kind: Some(build_request::Kind::Start(start)) };
    requests.send(first).await.map_err(|_| Failure::operation("the build was interrupted"))?;
    let answer = daemon.engine().build(ReceiverStream::new(queue)).await;
    let mut responses = answer.map_err(|status| Failure::from(status).doing("cannot build"))?.into_inner();
    let mut output = output.map(Output::open).transpose()?;
    let mut steps = steps.map(Output::open).transpose()?;
    loop {
        let message = match responses.message().await {
            Ok(Some(message)) => message,
            Ok(None) => {
                return Err(Failure::operation("cannot build: rorquald ended the build without a result"));
            }
            Err(status) => {
                show.failed();
                return Err(Failure::from(status).doing("cannot build"));
            }
        };
        match message.kind {
            Some(build_response::Kind::Query(query)) => answer_query(&contexts, query, &requests),
            Some(build_response::Kind::Event(event)) => show.event(event),
            Some(build_response::Kind::Output(bytes)) => {
                if let Some(output) = &mut output {
                    output.write(&bytes)?;
                }
            }
            Some(build_response::Kind::Cache(bytes)) => {
                if let Some(steps) = &mut steps {
                    steps.write(&bytes)?;
                }
            }
            Some(build_response::Kind::Result(result)) => {
                show.done();
                for output in output.into_iter().chain(steps) {
                    output.finish()?;
                }
                return Ok(result);
            }
            None => {}
        }
    }
}

/// Answers beside everything else: a question about large files must not hold up what the daemon says.
fn answer_query(contexts: &Contexts, query: ContextQuery, requests: &mpsc::Sender<BuildRequest>) {
    let (contexts, requests) = (Arc::clone(contexts), requests.clone());
    // Ends with the answer, or when the daemon takes no more.
    tokio::task::spawn_blocking(move || context::answer(&contexts, &query, &requests));
}

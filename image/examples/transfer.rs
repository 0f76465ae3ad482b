//! What tests/bench/pull and tests/bench/push measure: one pull, unpacking included, or one push, as a whole process.
//!
//!     transfer pull STORE REFERENCE
//!     transfer push STORE ARCHIVE REFERENCE      loads the archive first, and prints how long the push took
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::error::Error;
use std::time::Instant;

use rorqual_image::{Reference, RegistryClient, RegistryOptions, Store, pull, push};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let client = RegistryClient::new(RegistryOptions::default());
    match words[..] {
        ["pull", store, reference] => {
            let store = Store::open(store)?;
            let digest = pull(&store, &reference.parse()?, &[], Some(&client), |_| {}).await?;
            let prepared = tokio::task::spawn_blocking(move || store.prepare(&digest)).await??;
            println!("{} layers", prepared.layers.len());
        }
        ["push", store, archive, reference] => {
            let store = Store::open(store)?;
            let reference: Reference = reference.parse()?;
            let digest = match store.list().first() {
                Some(image) => image.digest.clone(),
                None => store.load(archive)?.remove(0).digest,
            };
            let began = Instant::now();
            push(&store, &digest, &reference, &client, |_| {}).await?;
            println!("{}", began.elapsed().as_millis());
        }
        _ => return Err("usage: transfer pull STORE REFERENCE | push STORE ARCHIVE REFERENCE".into()),
    }
    Ok(())
}

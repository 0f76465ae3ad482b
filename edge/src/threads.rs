//! The edge's own threads: each serves the connections that the kernel gives it from their beginning to their end, over
//! connections to replicas that are its own. So none waits for another, and nothing of a request crosses over
//! (`adr/0073`).
//!
//! They start with the first port and end with the edge.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// The threads, once there are some.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    handles: Vec<Handle>,
    /// They end when it is dropped.
    _until: watch::Sender<()>,
}

impl Threads {
    /// Where to run what, in the order of their numbers. Starts them where there are none.
    pub(crate) fn handles(&self, count: usize) -> io::Result<Vec<Handle>> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return Ok(running.handles.clone());
        }
        let (until, told) = watch::channel(());
        let handles: Vec<Handle> =
            (0..count).map(|number| start(number, told.clone())).collect::<io::Result<_>>()?;
        *running = Some(Running { handles: handles.clone(), _until: until });
        Ok(handles)
    }
}

fn start(number: usize, mut told: watch::Receiver<()>) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(async { while told.changed().await.is_ok() {} });
    std::thread::Builder::new().name(format!("edge-{number}")).spawn(run)?;
    Ok(handle)
}

//! What of a first process can be begun before it is planned: the channel to it, and its network namespace.

use std::io;

use super::Channel;
use super::channel::channel;
use crate::sys;

/// Both ends of the channel. Whoever makes the process goes on with the one, the process with the other.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(super) ours: Option<Channel>,
    pub(super) theirs: Option<Channel>,
    /// A network namespace is being made, and comes through the channel.
    network: bool,
}

impl Begun {
    /// `network`: the process is going to make a network namespace ([`crate::plan::makes_network`]).
    pub(crate) fn new(network: bool) -> io::Result<Begun> {
        let (ours, theirs) = channel()?;
        let begun = Begun { ours: Some(ours), theirs: Some(theirs), network };
        match &begun.ours {
            Some(ours) if network => ours.give_network()?,
            _ => sys::no_new_network(),
        }
        Ok(begun)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Whatever has its number next must not be sent to.
        if self.network && self.ours.is_some() {
            sys::wait_until_network_is_sent();
        }
    }
}

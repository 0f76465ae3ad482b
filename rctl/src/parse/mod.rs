//! Values on the command line, each in its own file. A parser takes the text and gives the value, or says
//! what was expected; clap puts the name of the flag in front.

mod amount;
mod duration;
mod env;
mod filter;
mod keys;
mod mount;
mod network;
mod order;
mod pair;
mod port;
mod restart;
mod route;
mod scale;
mod time;
mod words;

pub(crate) use amount::{bytes, cpus};
pub(crate) use duration::{duration, seconds, wait};
pub(crate) use env::{env_file, env_value};
pub(crate) use filter::filter;
pub(crate) use keys::keys;
pub(crate) use mount::{mount, volume};
pub(crate) use network::network;
pub(crate) use order::{client_affinity, is_dnsrr, on_unhealthy, update_order};
pub(crate) use pair::pair;
pub(crate) use port::ports;
pub(crate) use restart::{Restart, restart};
pub(crate) use route::{route, route_address};
pub(crate) use scale::{Scale, scale};
pub(crate) use time::since;
pub(crate) use words::words;

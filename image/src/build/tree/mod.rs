//! Files on their way into an image: where they are ([`Files`]), which of them are meant ([`select`]), and
//! how they get into a root file system ([`place`]) out of which nothing leads ([`root`]).

pub(crate) mod files;
pub(crate) mod place;
pub(crate) mod root;
pub(crate) mod select;
pub(crate) mod view;

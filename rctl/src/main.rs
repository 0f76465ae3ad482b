//! Part of Rorqual.

fn main() {}

//! Part of Rorqual.

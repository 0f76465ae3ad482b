//! What is acceptable in specs, for controllers and for the command line alike.

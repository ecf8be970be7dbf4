//! Flags and help.

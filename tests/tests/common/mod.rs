//! What the fault scenarios share.
#![allow(dead_code, reason = "each scenario uses its own part")]

pub mod disk;
pub mod setup;
pub mod upstream;
pub mod wire;

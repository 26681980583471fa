//! What happens to an exchange after its answer: the event schema, the journal on local disk, and its consumers.
//!
//! The data plane appends to the [`journal`] and goes on. Everything else, sinks and counters alike, reads the journal
//! at its own pace with a cursor of its own, so that nothing that happened is lost because a consumer was down, and no
//! request waits for one.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

pub mod dispatcher;
pub mod erasure;
pub mod event;
pub mod journal;
pub mod redis_source;
pub mod sinks;

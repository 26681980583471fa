//! A provider that is not one, and a load generator that asks it: everything this project measures and tests
//! itself against. The mock answers recorded bytes as OpenAI, Anthropic, Gemini and Azure do, breaks in every way
//! they do when told to, and keeps its own books, so that a test can compare what the proxy says with what happened.
//!
//! Neither side uses an HTTP library: a server must be able to answer what no library would send, and a generator
//! must cost less than what it measures.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

mod body;
pub mod generate;
pub mod mock;

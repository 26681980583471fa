//! What llm-proxy decides, as pure functions: tokens, routes, policies, limits, usage and prices.
//!
//! Nothing here does IO, waits, or looks at a clock; time and randomness are arguments. Every decision of the
//! data plane can therefore be read, and tested, as a table.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

pub mod answer;
pub mod body;
pub mod capture;
pub mod dialect;
pub mod histogram;
pub mod http1;
pub mod inject;
pub mod limits;
pub mod multipart;
pub mod network;
pub mod policy;
pub mod prices;
pub mod routing;
pub mod secret;
pub mod target;
pub mod token;
pub mod usage;
pub mod usd;
pub mod websocket;

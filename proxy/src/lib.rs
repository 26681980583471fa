//! llm-proxy: the data plane and the binary's commands.
//!
//! `edge` reads heads, `plane` carries exchanges, `settings` and `cli` say how, `server` puts the planes together.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

pub mod cli;
pub mod client;
pub mod data_dir;
pub mod demo;
pub mod dispatcher;
pub mod downstream;
pub mod edge;
pub mod events;
pub mod followers;
pub mod house;
pub mod http1;
pub mod http2;
pub mod logging;
pub mod manage;
pub mod plane;
pub mod provider;
pub mod reset;
pub mod seldom;
pub mod served;
pub mod server;
pub mod settings;
pub mod shutdown;
pub mod tls;
pub mod words;

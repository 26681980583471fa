//! HTTP/1.1 as bytes: heads judged and read by position, chunks followed by their grammar (RFC 9112).
//!
//! Stricter than the RFC asks wherever a lenient reading lets two parties see two messages. No IO: whoever owns a
//! connection feeds what it has read.

pub mod answer_head;
pub mod call;
pub mod chunks;
mod lines;
pub mod octets;
pub mod request_head;

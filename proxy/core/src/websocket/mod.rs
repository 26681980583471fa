//! WebSockets of the realtime APIs, as far as they can be judged without a connection (RFC 6455).
//!
//! Frames go through the proxy as they came; what is decided here is what happens beside that. [`handshake`] judges the
//! upgrade and the provider's answer to it, and moves the credential. [`frames`] follows the bytes of one direction: where
//! a frame ends, what the messages say, what is no frame. [`models`] reads which models a client's messages name, for the
//! token's model list. [`realtime`] sums up what the provider reports, for the record.
//!
//! No extension is ever agreed on: the client's offer is not passed on, and a provider that answers with one is refused.
//! Every payload can therefore be read as it stands.

pub mod frames;
pub mod handshake;
pub mod models;
pub mod realtime;

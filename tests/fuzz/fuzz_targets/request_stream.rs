//! Can a connection's bytes be two different streams of requests to two readers?
//!
//! What our parts read of it, head after body after head, has to be what each of two lenient readers sees: the same
//! requests, the same bodies, the same ends. They disagree on much, so this holds only while whatever they disagree on
//! is refused. It is the property behind all rules of `request_head` and `chunks`, without the rules.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::http1::call::{Framing, Version};
use llm_proxy_core::http1::chunks::{ChunkRules, Run};
use llm_proxy_core::http1::request_head::parse;
use llm_proxy_fuzz::http::head_end;
use llm_proxy_fuzz::lenient::{self, Message};

fuzz_target!(|stream: &[u8]| {
    let ours = taken(stream);
    for (reader, theirs) in [
        ("Transfer-Encoding wins", lenient::coding_first(stream)),
        ("Content-Length wins", lenient::length_first(stream)),
    ] {
        assert_eq!(theirs.get(..ours.len()), Some(&ours[..]), "{reader}: {theirs:?}");
    }
});

/// The requests of a connection, up to the first that is refused, not whole, or the last.
fn taken(stream: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut at = 0;
    while let Some(length) = head_end(&stream[at..]) {
        let Ok(call) = parse(Bytes::copy_from_slice(&stream[at..at + length])) else { break };
        at += length;
        let Some((body, length)) = body(call.framing, &stream[at..]) else { break };
        at += length;
        messages.push(Message { method: call.method().as_bytes().to_vec(), body, end: at });
        if call.wants_close || (call.version == Version::Http10 && !call.wants_keep_alive) {
            break;
        }
    }
    messages
}

/// A whole body and its length on the wire.
fn body(framing: Framing, rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    match framing {
        Framing::None => Some((Vec::new(), 0)),
        Framing::Length(length) => {
            let length = usize::try_from(length).ok()?;
            rest.get(..length).map(|body| (body.to_vec(), length))
        }
        Framing::Chunked => {
            let mut rules = ChunkRules::default();
            let mut data = Vec::new();
            let mut at = 0;
            while !rules.is_done() && at < rest.len() {
                at += match rules.run(&rest[at..]).ok()? {
                    Run::Framing(length) => length,
                    Run::Data(length) => {
                        data.extend_from_slice(&rest[at..at + length]);
                        length
                    }
                    Run::Beyond => 0,
                };
            }
            rules.is_done().then_some((data, at))
        }
    }
}

//! Is a request's head judged by its rules, and read as another parser reads it?
//!
//! The judge has to agree on every input with [`http::request`]: httparse, on which hyper and Pingora stand, and the
//! rules by which we are stricter, written a second time. So nothing that is taken can be another request to a parser
//! behind us, and nothing proper is refused by accident. What was read, written again, has to read the same.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::http1::call::{Call, Framing, Name, Version};
use llm_proxy_core::http1::request_head::parse;
use llm_proxy_fuzz::http::{self, Request};

fuzz_target!(|input: &[u8]| {
    let Some(end) = http::head_end(input) else {
        assert!(parse(Bytes::copy_from_slice(input)).is_err(), "a head that has no end was taken");
        return;
    };
    let raw = &input[..end];
    match (parse(Bytes::copy_from_slice(raw)), http::request(raw)) {
        (Err(_), None) => {}
        (Err(wrong), Some(expected)) => panic!("refused ({wrong}), but it reads as {expected:?}"),
        (Ok(call), None) => panic!("taken, but it has to be refused: {call:?}"),
        (Ok(call), Some(expected)) => {
            assert_eq!(seen(&call), expected);
            check(&call, &expected);
            let again = parse(Bytes::from(written(&call))).expect("what was read, written again, is read");
            assert_eq!(seen(&again), expected);
        }
    }
});

fn seen(call: &Call) -> Request {
    Request {
        method: call.method().to_owned(),
        target: call.target().to_owned(),
        version: call.version,
        framing: call.framing,
        fields: call.fields().iter().map(|field| (call.name(field).to_vec(), call.value(field).to_vec())).collect(),
    }
}

/// What a call knows beside its head's own words.
fn check(call: &Call, expected: &Request) {
    let fields = &expected.fields;
    assert_eq!(call.wants_close, http::has_option(fields, "close"));
    assert_eq!(call.wants_keep_alive, http::has_option(fields, "keep-alive"));
    let expects = http::values(fields, "expect").next().is_some();
    assert_eq!(
        call.expects_continue,
        expects && expected.version == Version::Http11 && expected.framing != Framing::None
    );
    for field in call.fields() {
        let name = call.name(field);
        assert_eq!(Name::of(&name.to_ascii_uppercase()), field.kind);
        assert_eq!(Name::of(&name.to_ascii_lowercase()), field.kind);
    }
}

fn written(call: &Call) -> Vec<u8> {
    let version = if call.version == Version::Http11 { "HTTP/1.1" } else { "HTTP/1.0" };
    let mut head = format!("{} {} {version}\r\n", call.method(), call.target()).into_bytes();
    for field in call.fields() {
        head.extend_from_slice(&[call.name(field), b":\t", call.value(field), b" \r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

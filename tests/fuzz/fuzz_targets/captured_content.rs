//! Is a captured body the same in every split, JSON where it says so, within its bounds, and redacted once and for all?
//!
//! The first byte chooses the type, the coding and the policy, the next three how the body is cut into pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::capture::{Body, Capture, Policy, request_body, response_body};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};
use serde::de::IgnoredAny;

const TYPES: [Option<&str>; 4] = [Some("application/json"), Some("text/event-stream"), Some("text/plain"), None];
/// Not brotli: that its decoder panics on some bytes is known, caught, and the business of another target.
const CODINGS: [Option<&str>; 4] = [None, Some("gzip"), Some("deflate"), Some("zstd")];
/// Inputs have at most 4 KiB: of every second nothing is missing, of the others much.
const MOST_BYTES: [usize; 2] = [512 * 1024, 1024];

fuzz_target!(|input: &[u8]| {
    let Some(([how, plan @ ..], bytes)) = input.split_first_chunk::<4>() else { return };
    let content_type = TYPES[usize::from(how % 4)];
    let coding = CODINGS[usize::from(how / 4 % 4)];
    let policy = if how & 16 == 0 { Policy::Redacted } else { Policy::Full };
    let max_bytes = MOST_BYTES[usize::from(how / 32 % 2)];
    let capture = Capture::new(policy, max_bytes).unwrap();
    let is_broken_off = how & 64 != 0;
    let is_request = how & 128 != 0;
    let kept = |bytes: &[u8], content_type, coding, plan: &[u8]| {
        let mut keeper = capture.keeper();
        pieces(bytes, plan).into_iter().for_each(|piece| keeper.push(piece));
        if is_broken_off {
            keeper.break_off();
        }
        let make = if is_request { request_body } else { response_body };
        make(capture, content_type, coding, &keeper)
    };
    let body = kept(bytes, content_type, coding, WHOLE);
    for plan in [BYTE_BY_BYTE, plan] {
        assert_eq!(kept(bytes, content_type, coding, plan), body, "in pieces of {plan:?}");
    }
    let Some(body) = body else { return assert!(bytes.is_empty()) };
    check(&body, bytes, max_bytes);
    assert!(body.truncated || !is_broken_off);
    if let (Policy::Redacted, Some(json), false) = (policy, &body.json, body.truncated) {
        let again = kept(json, Some("application/json"), None, WHOLE).and_then(|body| body.json);
        assert_eq!(again.as_ref(), Some(json), "redacted twice");
    }
});

fn check(body: &Body, bytes: &[u8], max_bytes: usize) {
    assert_eq!(body.bytes, bytes.len() as u64);
    let forms = [body.json.is_some(), body.text.is_some(), body.sha256.is_some(), body.omitted.is_some()];
    assert_eq!(forms.iter().filter(|is_there| **is_there).count(), 1, "{body:?}");
    if let Some(json) = &body.json {
        assert!(json.len() <= max_bytes && !json.contains(&b'\n'));
        serde_json::from_slice::<IgnoredAny>(json).unwrap();
    }
    if let Some(text) = &body.text {
        assert!(text.len() <= max_bytes);
    }
}

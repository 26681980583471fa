//! Is a provider's answer head judged by its rules, read as another parser reads it, and found in any split?
//!
//! The mirror image of `request_head`: [`http::answer`] is httparse and our stricter rules, written a second time.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::http1::answer_head::{AnswerHead, AnswerName, Asked, end};
use llm_proxy_fuzz::http::{self, Answer};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};

fuzz_target!(|input: &[u8]| {
    let Some(([how, plan @ ..], stream)) = input.split_first_chunk::<4>() else { return };
    let found = expected_end(stream);
    for plan in [WHOLE, BYTE_BY_BYTE, plan] {
        assert_eq!(end_in(&pieces(stream, plan)), found, "in pieces of {plan:?}");
    }
    let raw = match http::head_end(stream) {
        Some(end) => &stream[..end],
        None => stream,
    };
    let to_head = how & 1 == 1;
    match (
        AnswerHead::parse(Bytes::copy_from_slice(raw), if to_head { Asked::Head } else { Asked::Ordinary }),
        http::answer(raw, to_head),
    ) {
        (Err(_), None) => {}
        (Err(wrong), Some(expected)) => panic!("refused ({wrong:?}), but it reads as {expected:?}"),
        (Ok(head), None) => panic!("taken, but it has to be refused: {head:?}"),
        (Ok(head), Some(expected)) => {
            assert_eq!(found, Ok(Some(raw.len())), "a head that parses is found");
            let fields = head.fields().map(|(_, name, value)| (name.to_vec(), value.to_vec())).collect();
            let seen = Answer { status: head.status(), framing: head.framing(), persists: head.persists(), fields };
            assert_eq!(seen, expected);
            for (kind, name, value) in head.fields() {
                assert_eq!(AnswerName::of(&name.to_ascii_uppercase()), kind);
                assert_eq!(AnswerName::of(&name.to_ascii_lowercase()), kind);
                assert!(head.all(kind).any(|found| found == value));
            }
        }
    }
});

/// Looks for the end as bytes arrive; an error without its words.
fn end_in(pieces: &[&[u8]]) -> Result<Option<usize>, ()> {
    let mut arrived = Vec::new();
    let mut looked = 0;
    for piece in pieces {
        arrived.extend_from_slice(piece);
        match end(&arrived, &mut looked) {
            Ok(None) => {}
            found => return found.map_err(|_| ()),
        }
    }
    Ok(None)
}

/// The first empty line, or an error at a line before it that ends in bare LF.
fn expected_end(stream: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    for line in stream.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        at += line.len();
        match line {
            b"\r\n" => return Ok(Some(at)),
            line if line.ends_with(b"\r\n") => {}
            _ => return Err(()),
        }
    }
    Ok(None)
}

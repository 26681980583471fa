//! Does a chunked body read alike in every split, and as a second reader and httparse read it?
//!
//! The same verdict at the same byte, the same data up to there, and the same end: whoever finds the next request behind
//! a body must find it where we do.

#![no_main]

use httparse::{Status, parse_chunk_size};
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::http1::chunks::{ChunkRules, Run};
use llm_proxy_fuzz::chunked::{self, End};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};

fuzz_target!(|input: &[u8]| {
    let Some((plan, body)) = input.split_first_chunk::<3>() else { return };
    let expected = chunked::read(body);
    for (begin, end, size) in &expected.sizes {
        assert_eq!(parse_chunk_size(&body[*begin..]), Ok(Status::Complete((end - begin, *size))));
    }
    for plan in [WHOLE, BYTE_BY_BYTE, plan] {
        let (data, end) = followed(&pieces(body, plan));
        assert_eq!((&data, &end), (&expected.data, &expected.end), "in pieces of {plan:?}");
    }
    let mut rules = ChunkRules::default();
    let outcome = pieces(body, plan).into_iter().try_for_each(|piece| rules.feed(piece));
    assert_eq!(outcome.is_err(), expected.end == End::Broken);
    assert_eq!(outcome.is_ok() && rules.is_done(), matches!(expected.end, End::Whole(_)));
});

/// What a body carries, and how it ends, taken run by run.
fn followed(pieces: &[&[u8]]) -> (Vec<u8>, End) {
    let mut rules = ChunkRules::default();
    let mut data = Vec::new();
    let mut taken = 0;
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            assert!(!rules.is_done() || rules.run(rest) == Ok(Run::Beyond), "nothing of a body lies beyond its end");
            let length = match rules.run(rest) {
                Ok(Run::Framing(length)) => length,
                Ok(Run::Data(length)) => {
                    data.extend_from_slice(&rest[..length]);
                    length
                }
                Ok(Run::Beyond) => return (data, End::Whole(taken)),
                Err(_) => return (data, End::Broken),
            };
            assert!(length > 0, "every run goes on");
            taken += length;
            rest = &rest[length..];
        }
    }
    let end = if rules.is_done() { End::Whole(taken) } else { End::Open };
    (data, end)
}

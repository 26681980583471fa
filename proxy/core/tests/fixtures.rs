//! Every recorded exchange through the meter: are the numbers the manifest's, whatever the coding and the splits?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::usage::{Answer, Asked, Ended, Meter, Metered, Number, Source};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Manifest {
    files: Vec<Listed>,
}

/// One recording as the manifest lists it.
#[derive(Deserialize)]
struct Listed {
    file: String,
    kind: String,
    provider: String,
    path: String,
    status: u16,
    content_type: String,
    model: Option<String>,
    stream: bool,
    events: Option<u64>,
    expected: BTreeMap<String, Option<u64>>,
    usage_as_recorded: Option<Value>,
}

struct Fixture {
    listed: Listed,
    body: Vec<u8>,
}

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(|| {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/provider"));
    let manifest = std::fs::read(dir.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    let read = |listed: Listed| Fixture { body: std::fs::read(dir.join(&listed.file)).unwrap(), listed };
    manifest.files.into_iter().map(read).collect()
});

impl Fixture {
    fn dialect(&self) -> Dialect {
        match self.listed.provider.as_str() {
            "anthropic" => Dialect::Anthropic,
            "gemini" => Dialect::Gemini,
            "azure" => Dialect::Azure,
            _ => Dialect::OpenAi,
        }
    }

    /// Whether its usage is told in a place we know.
    fn is_read(&self) -> bool {
        let is_text = self.listed.file.ends_with(".json") || self.listed.file.ends_with(".sse");
        is_text && self.listed.provider != "cohere" && self.listed.kind != "anthropic.count_tokens"
    }

    fn meter(&self, content_encoding: &str) -> Meter {
        let answer = Answer {
            dialect: self.dialect(),
            status: self.listed.status,
            content_type: self.listed.content_type.as_bytes(),
            content_encoding: content_encoding.as_bytes(),
        };
        Meter::new(&answer, &self.listed.path)
    }

    fn metered<'p>(&self, content_encoding: &str, pieces: impl Iterator<Item = &'p [u8]>, ended: Ended) -> Metered {
        let mut meter = self.meter(content_encoding);
        for piece in pieces {
            meter.observe(piece);
        }
        meter.finish(ended, &Asked { endpoint: &self.listed.path, model: None, request_bytes: 1000 })
    }

    /// The manifest's number under our conventions.
    fn expected(&self, name: &str) -> Option<u64> {
        let told = |name: &str| self.listed.expected.get(name).copied().flatten();
        match (self.dialect(), name) {
            (Dialect::Anthropic, "prompt_tokens") => Some(
                told(name)?
                    + told("cached_tokens").unwrap_or_default()
                    + told("cache_creation_tokens").unwrap_or_default(),
            ),
            (Dialect::Gemini, "completion_tokens") => Some(told(name)? + told("reasoning_tokens").unwrap_or_default()),
            _ => told(name),
        }
    }

    fn check(&self, metered: &Metered, coding: &str) {
        let file = format!("{} {coding}", self.listed.file);
        if self.is_read() && self.listed.status < 400 {
            assert_eq!(metered.model, self.listed.model, "{file}");
        }
        if let Some(events) = self.listed.events.filter(|_| self.listed.stream && self.listed.file.ends_with(".sse")) {
            assert_eq!(metered.chunks, events, "{file}");
        }
        let usage = &metered.usage;
        let is_told = self.is_read() && self.listed.expected.values().any(Option::is_some);
        if !is_told {
            assert_ne!(usage.source(), Source::Reported, "{file}");
            assert!(usage.provider.is_none(), "{file}");
            let is_estimated = self.is_read() && self.listed.status < 400 && self.listed.stream;
            assert!(is_estimated || usage.source() == Source::Unknown, "{file}");
            return;
        }
        assert_eq!(usage.source(), Source::Reported, "{file}");
        let tokens = |number: Option<Number>| number.map(|number| number.tokens);
        for (name, number) in [
            ("prompt_tokens", usage.input_tokens),
            ("completion_tokens", usage.output_tokens),
            ("cached_tokens", usage.cache_read_input_tokens),
            ("cache_creation_tokens", usage.cache_creation_input_tokens),
            ("reasoning_tokens", usage.reasoning_output_tokens),
            ("audio_prompt_tokens", usage.audio_input_tokens),
            ("audio_completion_tokens", usage.audio_output_tokens),
        ] {
            assert_eq!(tokens(number), self.expected(name), "{name} of {file}");
        }
        let provider = usage.provider.as_deref().expect("the provider's object");
        let parsed: Value = serde_json::from_str(provider).unwrap();
        assert_eq!(Some(&parsed), self.listed.usage_as_recorded.as_ref(), "{file}");
        let is_merged = self.dialect() == Dialect::Anthropic && self.listed.stream;
        let is_verbatim = memchr::memmem::find(&self.body, provider.as_bytes()).is_some();
        assert!(is_verbatim || is_merged, "{file}: {provider}");
    }
}

fn encoded(plain: &[u8]) -> [(&'static str, &'static str, Vec<u8>); 3] {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(plain).unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(plain).unwrap();
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
    raw.write_all(plain).unwrap();
    [
        ("gzip", "gzip", gzip.finish().unwrap()),
        ("zlib", "deflate", zlib.finish().unwrap()),
        ("raw deflate", "deflate", raw.finish().unwrap()),
    ]
}

/// Cuts the body at pseudo-random places, small pieces more often than large ones.
fn pieces(mut body: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut state = seed | 1;
    let mut pieces = Vec::new();
    while !body.is_empty() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let length = 1 + (state % 7).pow(u32::try_from(state % 5).unwrap()) as usize;
        let (piece, rest) = body.split_at(length.min(body.len()));
        pieces.push(piece);
        body = rest;
    }
    pieces
}

#[test]
fn every_fixture_gives_the_manifests_numbers() {
    assert_eq!(FIXTURES.len(), 53);
    for fixture in FIXTURES.iter() {
        fixture.check(&fixture.metered("", std::iter::once(&fixture.body[..]), Ended::Whole), "identity");
    }
}

#[test]
fn encoded_fixtures_give_the_same_numbers() {
    for fixture in FIXTURES.iter() {
        for (name, field, wire) in encoded(&fixture.body) {
            fixture.check(&fixture.metered(field, std::iter::once(&wire[..]), Ended::Whole), name);
            fixture.check(&fixture.metered(field, pieces(&wire, 7).into_iter(), Ended::Whole), name);
        }
    }
}

#[test]
fn one_byte_at_a_time_changes_nothing() {
    for fixture in FIXTURES.iter() {
        fixture.check(&fixture.metered("", fixture.body.chunks(1), Ended::Whole), "byte by byte");
        let [(name, field, wire), ..] = &encoded(&fixture.body);
        fixture.check(&fixture.metered(field, wire.chunks(1), Ended::Whole), name);
    }
}

#[test]
fn codings_that_are_not_read_or_not_there_leave_usage_unknown() {
    for fixture in FIXTURES.iter() {
        for field in ["compress", "exi", "gzip, deflate", "gzip", "br", "zstd"] {
            let metered = fixture.metered(field, fixture.body.chunks(100), Ended::Whole);
            assert_eq!(metered.usage.source(), Source::Unknown, "{} {field}", fixture.listed.file);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_split_changes_the_result(seed: u64) {
        for fixture in FIXTURES.iter() {
            let whole = fixture.metered("", std::iter::once(&fixture.body[..]), Ended::Whole);
            let split = fixture.metered("", pieces(&fixture.body, seed).into_iter(), Ended::Whole);
            let (whole, split) = if fixture.listed.file.ends_with(".sse") {
                (whole, split)
            } else {
                // What is no stream counts its pieces.
                (Metered { chunks: 0, ..whole }, Metered { chunks: 0, ..split })
            };
            prop_assert_eq!(format!("{whole:?}"), format!("{split:?}"), "{}", fixture.listed.file);
        }
    }

    #[test]
    fn a_cut_anywhere_never_invents_a_report(place in 0.0f64..1.0, seed: u64) {
        for fixture in FIXTURES.iter() {
            let end = (fixture.body.len() as f64 * place) as usize;
            let body = &fixture.body[..end];
            let cut = fixture.metered("", std::iter::once(body), Ended::Cut);
            let split = fixture.metered("", pieces(body, seed).into_iter(), Ended::Cut);
            prop_assert_eq!(format!("{:?}", cut.usage), format!("{:?}", split.usage), "{}", fixture.listed.file);
            if fixture.listed.expected.values().all(Option::is_none) {
                prop_assert_ne!(cut.usage.source(), Source::Reported, "{}", fixture.listed.file);
            }
            if !fixture.is_read() || fixture.listed.status >= 400 {
                prop_assert_eq!(cut.usage.source(), Source::Unknown, "{}", fixture.listed.file);
            }
        }
    }
}

#[test]
fn events_of_ours_fit_only_between_two_of_theirs() {
    for fixture in FIXTURES.iter().filter(|fixture| fixture.listed.file.ends_with(".sse")) {
        let mut meter = fixture.meter("");
        assert!(meter.at_event_boundary() && meter.is_event_stream());
        for place in 0..fixture.body.len().min(4000) {
            meter.observe(&fixture.body[place..=place]);
            let so_far = &fixture.body[..=place];
            let is_boundary = so_far.ends_with(b"\n\n") || so_far.ends_with(b"\r\n\r\n");
            assert_eq!(meter.at_event_boundary(), is_boundary, "{} at {place}", fixture.listed.file);
        }
    }
}

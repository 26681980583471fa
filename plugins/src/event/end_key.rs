//! What counting usage needs of an [`super::Exchange`], without decoding the rest of it.
//!
//! Like [`super::BeginKey`], for the other record of an exchange: the counter comes by every one of them, and of its
//! texts, lists and maps it wants six, which it only looks at.

use super::wire::{Value, take_field};
use super::{EventType, Outcome, Source};

/// The classes of tokens that a record counts, by the names of their fields, in the order of [`EndKey::tokens`].
pub const TOKEN_CLASSES: [&str; 7] = [
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "reasoning_output_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
];

/// How an exchange ended, and what it used. A text that is unknown is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndKey<'a> {
    /// Whether this is the record of an exchange or of something else.
    pub r#type: EventType,
    /// [`super::Exchange::project_id`].
    pub project_id: &'a str,
    /// [`super::Exchange::token_id`].
    pub token_id: &'a str,
    /// [`super::Exchange::api`].
    pub api: &'a str,
    /// [`super::Exchange::model_requested`].
    pub model_requested: &'a str,
    /// [`super::Exchange::model`].
    pub model: &'a str,
    /// [`super::Exchange::stream`]; false where that is unknown.
    pub stream: bool,
    /// [`super::Exchange::status`]; 0 where that is unknown.
    pub status: u32,
    /// [`super::Exchange::outcome`].
    pub outcome: Outcome,
    /// [`super::Usage::source`].
    pub source: Source,
    /// For each of [`TOKEN_CLASSES`] how many, where that is known, and who says so.
    pub tokens: [Option<(u64, Source)>; 7],
    /// [`super::Cost::usd`].
    pub cost_usd: &'a str,
    /// [`super::Times::received_us`]: microseconds since the Unix epoch.
    pub received_us: Option<i64>,
    /// [`super::Times::first_byte_us`]: microseconds after it, like the two below.
    pub first_byte_us: Option<u64>,
    /// [`super::Times::first_chunk_us`].
    pub first_chunk_us: Option<u64>,
    /// [`super::Times::last_byte_us`].
    pub last_byte_us: Option<u64>,
    /// [`super::Exchange::count`], at least 1.
    pub count: u64,
}

impl<'a> EndKey<'a> {
    /// Reads the payload of a [`crate::journal::Kind::End`] record. `None` if it is no such message; other fields are
    /// passed over, known or not, and of their values only the length is looked at.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let mut key = Self::default();
        let mut numbers = Numbers::default();
        let mut rest = payload;
        // The numbers of the fields are those of `event.proto`. One that comes twice counts as it came last.
        while !rest.is_empty() {
            match take_field(&mut rest)? {
                (2, Value::Varint(code)) => key.r#type = known(code),
                (4, Value::Bytes(bytes)) => key.project_id = text(bytes)?,
                (5, Value::Bytes(bytes)) => key.token_id = text(bytes)?,
                (6, Value::Bytes(bytes)) => key.api = text(bytes)?,
                (10, Value::Bytes(bytes)) => key.model_requested = text(bytes)?,
                (11, Value::Bytes(bytes)) => key.model = text(bytes)?,
                (12, Value::Varint(truth)) => key.stream = truth != 0,
                // As the format has it, a number of 32 bits is the lowest ones of what is there.
                (13, Value::Varint(status)) => key.status = status as u32,
                (14, Value::Varint(code)) => key.outcome = known(code),
                (16, Value::Bytes(message)) => numbers.read(message)?,
                (17, Value::Bytes(message)) => key.read_cost(message)?,
                (18, Value::Bytes(message)) => key.read_times(message)?,
                (26, Value::Varint(count)) => key.count = count,
                _ => {}
            }
        }
        key.source = numbers.source;
        key.tokens = numbers.told();
        key.count = key.count.max(1);
        Some(key)
    }

    fn read_cost(&mut self, message: &'a [u8]) -> Option<()> {
        let mut rest = message;
        while !rest.is_empty() {
            if let (1, Value::Bytes(bytes)) = take_field(&mut rest)? {
                self.cost_usd = text(bytes)?;
            }
        }
        Some(())
    }

    fn read_times(&mut self, message: &[u8]) -> Option<()> {
        let mut rest = message;
        while !rest.is_empty() {
            match take_field(&mut rest)? {
                (1, Value::Varint(time)) => self.received_us = Some(time.cast_signed()),
                (3, Value::Varint(time)) => self.first_byte_us = Some(time),
                (4, Value::Varint(time)) => self.first_chunk_us = Some(time),
                (5, Value::Varint(time)) => self.last_byte_us = Some(time),
                _ => {}
            }
        }
        Some(())
    }
}

/// A usage message. Fields may come in any order, so whose word a number is shows at its end.
#[derive(Default)]
struct Numbers {
    source: Source,
    /// Where the numbers' sources differ.
    sources: [Option<Source>; 7],
    tokens: [Option<u64>; 7],
}

impl Numbers {
    fn read(&mut self, message: &[u8]) -> Option<()> {
        let mut rest = message;
        while !rest.is_empty() {
            match take_field(&mut rest)? {
                (1, Value::Varint(code)) => self.source = known(code),
                (2, Value::Bytes(entry)) => self.read_source(entry)?,
                // 3 to 9, in the order of the classes.
                (number, Value::Varint(tokens)) => {
                    let class = number.checked_sub(3).and_then(|class| usize::try_from(class).ok());
                    if let Some(kept) = class.and_then(|class| self.tokens.get_mut(class)) {
                        *kept = Some(tokens);
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// An entry of the map: a message of key and value.
    fn read_source(&mut self, entry: &[u8]) -> Option<()> {
        let (mut name, mut source) = ("", Source::default());
        let mut rest = entry;
        while !rest.is_empty() {
            match take_field(&mut rest)? {
                (1, Value::Bytes(bytes)) => name = text(bytes)?,
                (2, Value::Varint(code)) => source = known(code),
                _ => {}
            }
        }
        let class = TOKEN_CLASSES.iter().position(|class| *class == name);
        if let Some(kept) = class.and_then(|class| self.sources.get_mut(class)) {
            *kept = Some(source);
        }
        Some(())
    }

    fn told(&self) -> [Option<(u64, Source)>; 7] {
        let mut told = [None; 7];
        for ((told, tokens), source) in told.iter_mut().zip(self.tokens).zip(self.sources) {
            *told = tokens.map(|tokens| (tokens, source.unwrap_or(self.source)));
        }
        told
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A code that a later version knows is the default, as when the whole message is decoded.
fn known<E: TryFrom<i32> + Default>(code: u64) -> E {
    E::try_from(code as i32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Cost, Exchange, Message, Times, Usage};
    use super::*;

    fn number() -> impl Strategy<Value = Option<u64>> {
        prop::option::of(prop_oneof![any::<u64>(), 0..3_u64])
    }

    fn some_text() -> impl Strategy<Value = Option<String>> {
        prop::option::of(prop_oneof!["[a-z0-9-]{0,40}", "(?s:.{0,20})"])
    }

    fn usage() -> impl Strategy<Value = Usage> {
        let class = prop_oneof![prop::sample::select(TOKEN_CLASSES.to_vec()).prop_map(str::to_owned), "[a-z]{0,3}"];
        let sources = prop::collection::btree_map(class, -1..4_i32, 0..5);
        let numbers = prop::collection::vec(number(), 7);
        (-1..4_i32, sources, numbers, any::<Option<Vec<u8>>>()).prop_map(|(source, sources, numbers, provider_json)| {
            let mut numbers = numbers.into_iter();
            let mut number = || numbers.next().flatten();
            Usage {
                source,
                sources,
                input_tokens: number(),
                output_tokens: number(),
                cache_read_input_tokens: number(),
                cache_creation_input_tokens: number(),
                reasoning_output_tokens: number(),
                audio_input_tokens: number(),
                audio_output_tokens: number(),
                provider_json,
            }
        })
    }

    fn times() -> impl Strategy<Value = Times> {
        (any::<Option<i64>>(), prop::collection::vec(number(), 4)).prop_map(|(received_us, times)| {
            let mut times = times.into_iter();
            let mut time = || times.next().flatten();
            Times {
                received_us,
                forwarded_us: time(),
                first_byte_us: time(),
                first_chunk_us: time(),
                last_byte_us: time(),
            }
        })
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        let texts = prop::collection::vec(some_text(), 9);
        let codes = (-1..3_i32, -1..12_i32, any::<Option<bool>>(), any::<Option<u32>>(), any::<u64>());
        let parts = (prop::option::of(usage()), prop::option::of(times()));
        (texts, codes, parts).prop_map(|(texts, (r#type, outcome, stream, status, count), (usage, times))| {
            let mut texts = texts.into_iter();
            let mut text = || texts.next().flatten();
            Exchange {
                id: text().unwrap_or_default(),
                r#type,
                project_id: text(),
                token_id: text(),
                api: text(),
                endpoint: text(),
                model_requested: text(),
                model: text(),
                stream,
                status,
                outcome,
                usage,
                cost: Some(Cost { usd: text(), prices: text() }),
                times,
                finish_reasons: vec!["stop".to_owned()],
                count,
                ..Exchange::default()
            }
        })
    }

    /// The same, of the whole message.
    fn of(exchange: &Exchange) -> EndKey<'_> {
        let usage = exchange.usage.clone().unwrap_or_default();
        let told = |class: usize, tokens: Option<u64>| {
            let code = usage.sources.get(TOKEN_CLASSES[class]).copied().unwrap_or(usage.source);
            tokens.map(|tokens| (tokens, Source::try_from(code).unwrap_or_default()))
        };
        let times = exchange.times.unwrap_or_default();
        EndKey {
            r#type: exchange.r#type(),
            project_id: exchange.project_id.as_deref().unwrap_or_default(),
            token_id: exchange.token_id.as_deref().unwrap_or_default(),
            api: exchange.api.as_deref().unwrap_or_default(),
            model_requested: exchange.model_requested.as_deref().unwrap_or_default(),
            model: exchange.model.as_deref().unwrap_or_default(),
            stream: exchange.stream.unwrap_or_default(),
            status: exchange.status.unwrap_or_default(),
            outcome: exchange.outcome(),
            source: usage.source(),
            tokens: [
                told(0, usage.input_tokens),
                told(1, usage.output_tokens),
                told(2, usage.cache_read_input_tokens),
                told(3, usage.cache_creation_input_tokens),
                told(4, usage.reasoning_output_tokens),
                told(5, usage.audio_input_tokens),
                told(6, usage.audio_output_tokens),
            ],
            cost_usd: exchange.cost.as_ref().and_then(|cost| cost.usd.as_deref()).unwrap_or_default(),
            received_us: times.received_us,
            first_byte_us: times.first_byte_us,
            first_chunk_us: times.first_chunk_us,
            last_byte_us: times.last_byte_us,
            count: exchange.count.max(1),
        }
    }

    #[test]
    fn a_number_has_its_own_source_where_they_differ_and_else_that_of_all() {
        let sources = [("output_tokens", Source::Estimated), ("of_a_later_version", Source::Reported)];
        let mut usage = Usage {
            source: Source::Reported.into(),
            input_tokens: Some(7),
            output_tokens: Some(0),
            ..Usage::default()
        };
        for (differing, expected) in [(0, Source::Reported), (2, Source::Estimated)] {
            let named = sources.iter().take(differing);
            usage.sources = named.map(|(name, source)| ((*name).to_owned(), (*source).into())).collect();
            let bytes = Exchange { usage: Some(usage.clone()), ..Exchange::default() }.encode_to_vec();
            let key = EndKey::read(&bytes).unwrap();
            assert_eq!(key.tokens[..3], [Some((7, Source::Reported)), Some((0, expected)), None]);
        }
    }

    #[test]
    fn an_empty_record_is_one_of_which_nothing_is_known() {
        assert_eq!(EndKey::read(b""), Some(EndKey { count: 1, ..EndKey::default() }));
        for bytes in [&b"\x22\x02p"[..], b"\x22\x01\xff", b"\x82\x01\x01\x08", b"\x02\x00"] {
            assert_eq!(EndKey::read(bytes), None, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn the_key_is_what_decoding_the_whole_message_gives(
            exchange in exchange(),
            at in any::<prop::sample::Index>(),
        ) {
            let bytes = exchange.encode_to_vec();
            prop_assert_eq!(EndKey::read(&bytes), Some(of(&exchange)));
            let cut = &bytes[..at.index(bytes.len() + 1)];
            if let Ok(exchange) = Exchange::decode(cut) {
                prop_assert_eq!(EndKey::read(cut), Some(of(&exchange)));
            }
        }

        #[test]
        fn no_bytes_at_all_crash_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let (Some(key), Ok(exchange)) = (EndKey::read(&bytes), Exchange::decode(bytes.as_slice())) {
                prop_assert_eq!(key, of(&exchange));
            }
        }
    }
}

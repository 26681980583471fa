//! What an exchange cost, from its usage and a versioned table of prices.
//!
//! Arithmetic is exact: prices are whole numbers of 10⁻²⁴ USD, read from their decimal text, so no sum carries the noise of
//! floating point. What cannot be priced is `None`, never 0: an unknown model, or usage without its numbers.
//!
//! A model is looked up by the name the provider answered, then (where the answered one is a version of it, or none is
//! named) the requested name, then both with the prefixes the table uses for the dialect's providers (`gemini/`, `azure/`,
//! `groq/` ...). OpenAI's dialect is spoken by many providers: where several sell a model of that name at different prices,
//! the price is unknown.
//!
//! Of the prompt, cache reads, cache writes (Anthropic's for one hour told apart) and audio have their own prices, of the
//! answer reasoning and audio; where the table has none for such a part, it costs what plain input or output does. A part
//! never exceeds the whole it is of. `_above_200k_tokens` and the like replace a price for the whole request where the
//! prompt is larger than that. Service tiers (batch, flex, priority), searches and per-second prices are not read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::dialect::Dialect;
use crate::usage::Usage;

/// Decimal places of a price in units.
const PLACES: u32 = 24;
/// Cuts a price into parts of twelve digits, which 64 bits hold.
const TRILLION: u128 = 10u128.pow(12);

static SHIPPED: LazyLock<PriceTable> = LazyLock::new(|| {
    // A table that does not parse prices nothing; a test reads the shipped one.
    PriceTable::parse(include_bytes!("../data/model_prices.json")).unwrap_or_default()
});

/// Prices by model name.
#[derive(Debug, Default)]
pub struct PriceTable {
    version: String,
    models: HashMap<Box<str>, Model>,
}

/// Why a file is no price table.
#[derive(Debug, thiserror::Error)]
pub enum PriceTableError {
    #[error("the price table is not JSON of the form {{\"models\": {{NAME: {{FIELD: PRICE}}}}}}: {0}")]
    /// The table is not the JSON it should be.
    Json(#[from] serde_json::Error),
    #[error("the price table's model {model}: {field} is not a number from 0 to 10^6 of at most 24 decimals")]
    /// A price is not a decimal number.
    Price {
        /// The model it stands at.
        model: String,
        /// Which price it is.
        field: String,
    },
}

/// One model's prices: those the table has, of all tiers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model(Box<[Price]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Price {
    part: Part,
    /// It holds where the prompt has more than so many thousand tokens.
    above_thousands: u64,
    units: u128,
}

/// What a price is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Input,
    CacheRead,
    CacheCreation,
    CacheCreationOneHour,
    AudioInput,
    Output,
    Reasoning,
    AudioOutput,
}

impl Part {
    fn of(field: &str) -> Option<Self> {
        Some(match field {
            "input_cost_per_token" => Self::Input,
            "cache_read_input_token_cost" => Self::CacheRead,
            "cache_creation_input_token_cost" => Self::CacheCreation,
            "cache_creation_input_token_cost_above_1hr" => Self::CacheCreationOneHour,
            "input_cost_per_audio_token" => Self::AudioInput,
            "output_cost_per_token" => Self::Output,
            "output_cost_per_reasoning_token" => Self::Reasoning,
            "output_cost_per_audio_token" => Self::AudioOutput,
            _ => return None,
        })
    }

    /// What is charged where the table has no price for this part.
    const fn instead(self) -> Option<Self> {
        match self {
            Self::CacheRead | Self::CacheCreation | Self::AudioInput => Some(Self::Input),
            Self::CacheCreationOneHour => Some(Self::CacheCreation),
            Self::Reasoning | Self::AudioOutput => Some(Self::Output),
            Self::Input | Self::Output => None,
        }
    }
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(rename = "_meta", default)]
    meta: Meta,
    #[serde(borrow)]
    models: HashMap<Cow<'a, str>, &'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Meta {
    #[serde(default)]
    version: Option<String>,
}

impl PriceTable {
    /// Reads a table in the form of the shipped one (`data/README.md`). Fields that are no price of a token are ignored.
    ///
    /// # Errors
    /// If it is not JSON of that form, or a price is negative, no number, above 10⁶ USD, or finer than 24 decimals.
    pub fn parse(json: &[u8]) -> Result<Self, PriceTableError> {
        let file: File<'_> = serde_json::from_slice(json)?;
        let mut models = HashMap::with_capacity(file.models.len());
        for (name, fields) in file.models {
            let model = Model::parse(&name, fields)?;
            models.insert(name.into_owned().into_boxed_str(), model);
        }
        let checksum = crc32fast::hash(json);
        let version = match file.meta.version {
            Some(version) => format!("{version}+{checksum:08x}"),
            None => format!("{checksum:08x}"),
        };
        Ok(Self { version, models })
    }

    /// The table this build ships; parsed when first asked for, which takes some milliseconds.
    pub fn shipped() -> &'static Self {
        &SHIPPED
    }

    /// Names the table's contents: the source's version if it states one, and the CRC-32 of the file.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The cost in USD, as a plain decimal number without trailing zeros, exact.
    ///
    /// `None` if the model or a price it needs is not in the table, or usage lacks its input or output (the output of
    /// models that charge nothing for it, as embeddings, may be missing).
    pub fn cost(
        &self,
        dialect: Dialect,
        answered: Option<&str>,
        requested: Option<&str>,
        usage: &Usage,
    ) -> Option<String> {
        // No lookup, and no parsing of the table, for usage that cannot be priced.
        usage.input_tokens?;
        let model = self.model(dialect, answered, requested)?;
        model.cost(usage).map(decimal)
    }

    /// The model that answered; the requested one only where the answer names none, or a version of it that has no price
    /// of its own. What another model costs is not known by the one that was asked for.
    fn model(&self, dialect: Dialect, answered: Option<&str>, requested: Option<&str>) -> Option<&Model> {
        let requested = requested.map(without_folder);
        let answered = answered.map(without_folder);
        let same = requested.filter(|requested| answered.is_none_or(|answered| is_version_of(answered, requested)));
        let names = || [answered, same].into_iter().flatten();
        names().find_map(|name| self.models.get(name)).or_else(|| names().find_map(|name| self.prefixed(dialect, name)))
    }

    fn prefixed(&self, dialect: Dialect, name: &str) -> Option<&Model> {
        let mut found =
            prefixes(dialect).iter().filter_map(|prefix| self.models.get([*prefix, name].concat().as_str()));
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    }
}

/// Whether a dated or numbered one of the requested model has answered: `gpt-4o-2024-08-06` for `gpt-4o`, or
/// `claude-sonnet-4-20250514` for `claude-sonnet-4-latest`. A maker's name before either does not count.
fn is_version_of(answered: &str, requested: &str) -> bool {
    let plain = |name: &'_ str| name.rfind('/').map_or(0, |slash| slash.saturating_add(1));
    let answered = answered.get(plain(answered)..).unwrap_or(answered);
    let requested = requested.get(plain(requested)..).unwrap_or(requested);
    let requested = requested.strip_suffix("-latest").unwrap_or(requested);
    let rest = answered.strip_prefix(requested);
    rest.is_some_and(|rest| {
        rest.is_empty()
            || (rest.starts_with(['-', '@']) && rest.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'-' | b'@')))
    })
}

/// Gemini's way of naming models, `models/NAME`.
fn without_folder(mut name: &str) -> &str {
    while let Some(rest) = name.strip_prefix("models/") {
        name = rest;
    }
    name
}

fn prefixes(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Gemini => &["gemini/"],
        Dialect::Azure => &["azure/"],
        Dialect::Anthropic => &["anthropic/"],
        Dialect::OpenAi => &[
            "openai/",
            "groq/",
            "mistral/",
            "deepseek/",
            "xai/",
            "perplexity/",
            "together_ai/",
            "fireworks_ai/",
            "deepinfra/",
            "cerebras/",
            "moonshot/",
            "voyage/",
        ],
    }
}

impl Model {
    fn parse(name: &str, fields: &RawValue) -> Result<Self, PriceTableError> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(fields.get())?;
        let mut prices = Vec::new();
        for (field, value) in fields {
            let Some((part, above_thousands)) = part_and_tier(&field) else { continue };
            if value.get() == "null" {
                continue;
            }
            let Some(units) = units(value.get()) else {
                return Err(PriceTableError::Price { model: name.to_owned(), field });
            };
            prices.push(Price { part, above_thousands, units });
        }
        Ok(Self(prices.into_boxed_slice()))
    }

    /// The price of the highest tier that a prompt of so many tokens reaches.
    fn price(&self, part: Part, prompt_tokens: u64) -> Option<u128> {
        self.0
            .iter()
            .filter(|price| price.part == part)
            .filter(|price| price.above_thousands == 0 || price.above_thousands.saturating_mul(1000) < prompt_tokens)
            .max_by_key(|price| price.above_thousands)
            .map(|price| price.units)
    }

    fn cost(&self, usage: &Usage) -> Option<u128> {
        let input = usage.input_tokens?.tokens;
        let output = match usage.output_tokens {
            Some(number) => number.tokens,
            None if self.price(Part::Output, input).unwrap_or(0) == 0 => 0,
            None => return None,
        };
        let part = |number: Option<crate::usage::Number>| number.map_or(0, |number| number.tokens);

        let mut plain_input = input;
        let cache_read = take(&mut plain_input, part(usage.cache_read_input_tokens));
        let mut cache_creation = take(&mut plain_input, part(usage.cache_creation_input_tokens));
        let one_hour = if cache_creation > 0 { one_hour_cache_tokens(usage) } else { 0 };
        let one_hour = take(&mut cache_creation, one_hour);
        let audio_input = take(&mut plain_input, part(usage.audio_input_tokens));
        let mut plain_output = output;
        let reasoning = take(&mut plain_output, part(usage.reasoning_output_tokens));
        let audio_output = take(&mut plain_output, part(usage.audio_output_tokens));

        [
            (Part::Input, plain_input),
            (Part::CacheRead, cache_read),
            (Part::CacheCreation, cache_creation),
            (Part::CacheCreationOneHour, one_hour),
            (Part::AudioInput, audio_input),
            (Part::Output, plain_output),
            (Part::Reasoning, reasoning),
            (Part::AudioOutput, audio_output),
        ]
        .into_iter()
        .filter(|(_, tokens)| *tokens > 0)
        .try_fold(0u128, |sum, (part, tokens)| sum.checked_add(self.charge(part, tokens, input)?))
    }

    fn charge(&self, part: Part, tokens: u64, prompt_tokens: u64) -> Option<u128> {
        let mut part = part;
        loop {
            if let Some(units) = self.price(part, prompt_tokens) {
                return units.checked_mul(u128::from(tokens));
            }
            part = part.instead()?;
        }
    }
}

/// Takes at most what is there.
fn take(from: &mut u64, wanted: u64) -> u64 {
    let taken = wanted.min(*from);
    *from = from.saturating_sub(taken);
    taken
}

/// Of Anthropic's cache writes, those that live an hour: only its own object tells.
fn one_hour_cache_tokens(usage: &Usage) -> u64 {
    #[derive(Deserialize)]
    struct Told {
        cache_creation: Option<Lifetimes>,
    }
    #[derive(Deserialize)]
    struct Lifetimes {
        ephemeral_1h_input_tokens: Option<u64>,
    }
    let told = usage.provider.as_deref().and_then(|object| serde_json::from_str::<Told>(object).ok());
    told.and_then(|told| told.cache_creation?.ephemeral_1h_input_tokens).unwrap_or(0)
}

/// `FIELD` or `FIELD_above_NNNk_tokens`.
fn part_and_tier(field: &str) -> Option<(Part, u64)> {
    if let Some(part) = Part::of(field) {
        return Some((part, 0));
    }
    let (base, thousands) = field.strip_suffix("k_tokens")?.rsplit_once("_above_")?;
    let thousands = thousands.parse().ok().filter(|thousands| *thousands > 0)?;
    Some((Part::of(base)?, thousands))
}

/// A JSON number as a whole number of units; `None` if it is negative, none, too large or too fine.
fn units(json: &str) -> Option<u128> {
    let (mantissa, exponent) = match json.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (json, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: String = [whole, fraction].concat();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    if digits == 0 {
        return Some(0);
    }
    let places = i32::try_from(fraction.len()).ok()?;
    let shift = i32::try_from(PLACES).ok()?.checked_add(exponent)?.checked_sub(places)?;
    let power = 10u128.checked_pow(shift.unsigned_abs())?;
    let units = if shift >= 0 {
        digits.checked_mul(power)?
    } else {
        if digits.checked_rem(power)? != 0 {
            return None;
        }
        digits.checked_div(power)?
    };
    // A million USD a token leaves room for a hundred million tokens in 128 bits.
    (units <= 10u128.pow(30)).then_some(units)
}

/// Units as USD. By hand, as this runs for every exchange: 128 bits divided twice, then digits of 64-bit numbers.
fn decimal(units: u128) -> String {
    let (above, lower) = split(units);
    let (whole, upper) = split(above);
    // 2^128 units are less than 10^15 USD.
    let (mut whole_digits, mut places) = ([b'0'; 15], [b'0'; PLACES as usize]);
    fill(&mut whole_digits, u64::try_from(whole).unwrap_or(u64::MAX));
    let (upper_places, lower_places) = places.split_at_mut(12);
    fill(upper_places, upper);
    fill(lower_places, lower);

    // The last digit stays, also as 0.
    let leading = whole_digits.iter().position(|digit| *digit != b'0').unwrap_or(14);
    let last = places.iter().rposition(|digit| *digit != b'0');
    let whole_digits = whole_digits.get(leading..).unwrap_or_default();
    let places = last.and_then(|last| places.get(..=last)).unwrap_or_default();
    let mut text = String::with_capacity(whole_digits.len().saturating_add(1).saturating_add(places.len()));
    text.push_str(std::str::from_utf8(whole_digits).unwrap_or_default());
    if !places.is_empty() {
        text.push('.');
        text.push_str(std::str::from_utf8(places).unwrap_or_default());
    }
    text
}

/// What stands above the lowest twelve digits, and these.
fn split(number: u128) -> (u128, u64) {
    let above = number.checked_div(TRILLION).unwrap_or(0);
    let lowest = number.wrapping_sub(above.wrapping_mul(TRILLION));
    (above, u64::try_from(lowest).unwrap_or(u64::MAX))
}

/// Writes a number's digits over zeros, from the right.
fn fill(zeros: &mut [u8], mut number: u64) {
    for digit in zeros.iter_mut().rev() {
        if number == 0 {
            return;
        }
        *digit = b'0'.wrapping_add(u8::try_from(number % 10).unwrap_or(0));
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{Number, Source};

    fn some(tokens: u64) -> Option<Number> {
        Some(Number { tokens, source: Source::Reported })
    }

    fn usage(input: u64, output: u64) -> Usage {
        Usage { input_tokens: some(input), output_tokens: some(output), ..Usage::default() }
    }

    #[test]
    fn prices_are_read_exactly_from_their_text() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0.0", Some(0)),
            ("1", Some(10u128.pow(24))),
            ("1.5e-07", Some(15 * 10u128.pow(16))),
            ("3.3333333333333335e-05", Some(33_333_333_333_333_335_000)),
            ("0.134", Some(134 * 10u128.pow(21))),
            ("2.500E+1", Some(25 * 10u128.pow(24))),
            ("1e-24", Some(1)),
            ("10e-25", Some(1)),
            ("1e-25", None),
            ("1e999999999999", None),
            ("1e13", None),
            ("-1", None),
            ("\"1\"", None),
            ("true", None),
            ("{}", None),
        ] {
            assert_eq!(units(text), expected, "{text}");
        }
    }

    #[test]
    fn costs_are_plain_decimals() {
        for (units, expected) in [
            (0, "0"),
            (1, "0.000000000000000000000001"),
            (10u128.pow(24), "1"),
            (1234 * 10u128.pow(22), "12.34"),
            (215 * 10u128.pow(17), "0.0000215"),
        ] {
            assert_eq!(decimal(units), expected);
        }
    }

    #[test]
    fn a_decimal_is_what_formatting_would_write() {
        let one = 10u128.pow(PLACES);
        let round = (0..39).flat_map(|digits| [1, 7, 12_345].map(|number| 10u128.pow(digits).wrapping_mul(number)));
        let uneven = round.flat_map(|units| [units, units.wrapping_sub(1), units ^ 0x5555_5555_5555]);
        for units in uneven.chain([0, u128::MAX]) {
            let expected = format!("{}.{:024}", units / one, units % one);
            assert_eq!(decimal(units), expected.trim_end_matches('0').trim_end_matches('.'), "{units}");
        }
    }

    #[test]
    fn the_shipped_table_prices_known_models() {
        let table = PriceTable::shipped();
        assert_eq!(table.models.len(), 1942);
        assert!(table.version().starts_with("1.106.2+"), "{}", table.version());

        let cached = Usage { cache_read_input_tokens: some(4012), ..usage(4020, 4) };
        let audio = Usage { audio_input_tokens: some(69), ..usage(81, 72) };
        let thinking = Usage { reasoning_output_tokens: some(787), ..usage(34, 1256) };
        let written =
            Usage { cache_read_input_tokens: some(1111), cache_creation_input_tokens: some(418), ..usage(1532, 33) };
        let embedded = Usage { input_tokens: some(27), ..Usage::default() };
        for (dialect, answered, requested, usage, expected) in [
            // 12 × 0.15 + 5 × 0.6 = 4.8 millionths
            (Dialect::OpenAi, Some("gpt-4o-mini-2024-07-18"), None, &usage(12, 5), Some("0.0000048")),
            (Dialect::OpenAi, Some("no-such-model"), Some("gpt-4o-mini"), &usage(12, 5), None),
            // 8 × 4 + 4012 × 0.4 + 4 × 20 = 1716.8 millionths
            (Dialect::OpenAi, Some("gpt-5.6-sol"), None, &cached, Some("0.0017168")),
            // 12 × 2.5 + 69 × 40 + 72 × 10 = 3510 millionths
            (Dialect::OpenAi, Some("gpt-4o-audio-preview-2024-12-17"), None, &audio, Some("0.00351")),
            // 34 × 1.25 + 1256 × 10 = 12602.5 millionths
            (Dialect::Gemini, Some("gemini-2.5-pro"), None, &thinking, Some("0.0126025")),
            (Dialect::Gemini, None, Some("models/gemini-2.5-pro"), &thinking, Some("0.0126025")),
            // 3 × 3 + 1111 × 0.3 + 418 × 3.75 + 33 × 15 = 2404.8 millionths
            (Dialect::Anthropic, Some("claude-sonnet-4-5-20250929"), None, &written, Some("0.0024048")),
            // 300,000 is above 272k: 300000 × 10 + 1000 × 45 = 3045000 millionths
            (Dialect::OpenAi, Some("gpt-5.5-2026-04-23"), None, &usage(300_000, 1000), Some("3.045")),
            (Dialect::OpenAi, Some("gpt-5.5-2026-04-23"), None, &usage(272_000, 1000), Some("1.39")),
            // 27 × 0.02 = 0.54 millionths
            (Dialect::OpenAi, Some("text-embedding-3-small"), None, &embedded, Some("0.00000054")),
            (Dialect::OpenAi, Some("gpt-4o-mini"), None, &embedded, None),
            (Dialect::OpenAi, Some("no-such-model"), None, &usage(1, 1), None),
            (Dialect::OpenAi, None, None, &usage(1, 1), None),
            (Dialect::OpenAi, Some("gpt-4o-mini"), None, &Usage::default(), None),
        ] {
            let cost = table.cost(dialect, answered, requested, usage);
            assert_eq!(cost.as_deref(), expected, "{answered:?} {requested:?} {usage:?}");
        }
    }

    #[test]
    fn names_are_tried_in_their_order_and_ambiguity_is_unknown() {
        let table = PriceTable::parse(
            br#"{"models": {
                "answered": {"input_cost_per_token": 1, "output_cost_per_token": 0},
                "requested": {"input_cost_per_token": 2, "output_cost_per_token": 0},
                "groq/both": {"input_cost_per_token": 3, "output_cost_per_token": 0},
                "xai/both": {"input_cost_per_token": 4, "output_cost_per_token": 0},
                "groq/same": {"input_cost_per_token": 5, "output_cost_per_token": 0},
                "xai/same": {"input_cost_per_token": 5.0, "output_cost_per_token": 0e0},
                "azure/deployed": {"input_cost_per_token": 6, "output_cost_per_token": 0},
                "free": {"input_cost_per_token": 0, "output_cost_per_token": 0.0},
                "unpriced": {"output_cost_per_token": 1, "input_cost_per_second": 1e-30}
            }}"#,
        )
        .unwrap();
        for (dialect, answered, requested, expected) in [
            (Dialect::OpenAi, Some("answered"), Some("requested"), Some("1")),
            (Dialect::OpenAi, Some("other"), Some("requested"), None),
            (Dialect::OpenAi, None, Some("requested"), Some("2")),
            (Dialect::OpenAi, Some("requested-2026-01-31"), Some("requested"), Some("2")),
            (Dialect::OpenAi, Some("requested-mini"), Some("requested"), None),
            (Dialect::OpenAi, Some("requested-001"), Some("maker/requested-latest"), None),
            (Dialect::OpenAi, Some("both"), None, None),
            (Dialect::OpenAi, Some("same"), None, Some("5")),
            (Dialect::Azure, Some("deployed"), None, Some("6")),
            (Dialect::OpenAi, Some("deployed"), None, None),
            (Dialect::OpenAi, Some("free"), None, Some("0")),
            (Dialect::OpenAi, Some("unpriced"), None, None),
        ] {
            let cost = table.cost(dialect, answered, requested, &usage(1, 0));
            assert_eq!(cost.as_deref(), expected, "{answered:?} {requested:?}");
        }
    }

    #[test]
    fn parts_without_a_price_cost_what_the_whole_does() {
        let table = PriceTable::parse(
            br#"{"models": {"m": {"input_cost_per_token": 1, "output_cost_per_token": 10,
                "output_cost_per_reasoning_token": 20, "output_cost_per_audio_token": null,
                "cache_creation_input_token_cost": 3, "cache_creation_input_token_cost_above_1hr": 5}}}"#,
        )
        .unwrap();
        let provider = |json: &str| Some(Box::from(json));
        for (usage, expected) in [
            (Usage { cache_read_input_tokens: some(4), ..usage(10, 0) }, "10"),
            (Usage { audio_output_tokens: some(4), ..usage(0, 10) }, "100"),
            (Usage { reasoning_output_tokens: some(4), ..usage(0, 10) }, "140"),
            (Usage { reasoning_output_tokens: some(11), ..usage(0, 10) }, "200"),
            (Usage { cache_creation_input_tokens: some(4), ..usage(10, 0) }, "18"),
            (
                Usage {
                    cache_creation_input_tokens: some(4),
                    provider: provider(r#"{"cache_creation":{"ephemeral_1h_input_tokens":3}}"#),
                    ..usage(10, 0)
                },
                "24",
            ),
        ] {
            let cost = table.cost(Dialect::Anthropic, Some("m"), None, &usage);
            assert_eq!(cost.as_deref(), Some(expected), "{usage:?}");
        }
        let huge = Usage { reasoning_output_tokens: some(u64::MAX), ..usage(u64::MAX, u64::MAX) };
        assert_eq!(table.cost(Dialect::Anthropic, Some("m"), None, &huge), None);
    }

    #[test]
    fn a_table_that_is_wrong_says_where() {
        for (json, expected) in [
            ("[]", "is not JSON of the form"),
            ("{}", "is not JSON of the form"),
            (r#"{"models": {"m": []}}"#, "is not JSON of the form"),
            (r#"{"models": {"m": {"input_cost_per_token": -1}}}"#, "model m: input_cost_per_token"),
            (r#"{"models": {"m": {"output_cost_per_token_above_200k_tokens": "1"}}}"#, "above_200k_tokens is not"),
        ] {
            let error = PriceTable::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}

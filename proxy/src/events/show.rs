//! `llm-proxy events show`

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use llm_proxy_plugins::event::{Begin, Exchange, Message, to_json_line};
use llm_proxy_plugins::journal::{Kind, RecordRef};
use uuid::Uuid;

use super::log::{self, Log};
use super::moment::to_the_second;
use super::pretty::pretty;

/// Digits of a whole id.
const ID_DIGITS: usize = 32;
/// Fewer would fit too many events.
const LEAST_DIGITS: usize = 8;

#[derive(Args)]
pub(super) struct ShowArgs {
    /// The event's id, which is the x-llm-proxy-request-id of the answer, or at least the last 8 characters of it
    #[arg(value_name = "ID", value_parser = id_end)]
    id: IdEnd,
}

/// The end of an id, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct IdEnd {
    text: String,
    value: u128,
    mask: u128,
}

impl IdEnd {
    fn fits(&self, id: Uuid) -> bool {
        id.as_u128() & self.mask == self.value
    }
}

fn id_end(text: &str) -> Result<IdEnd, String> {
    let digits = text.replace('-', "");
    let is_id = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = u128::from_str_radix(&digits, 16).ok().filter(|_| is_id);
    match value {
        Some(value) if (LEAST_DIGITS..=ID_DIGITS).contains(&digits.len()) => {
            let missing_bits = ID_DIGITS.saturating_sub(digits.len()).saturating_mul(4);
            let mask = u128::MAX.checked_shr(u32::try_from(missing_bits).unwrap_or(u32::MAX)).unwrap_or(0);
            Ok(IdEnd { text: text.to_owned(), value, mask })
        }
        _ => Err("expected an event's id, or at least the last 8 characters of it".to_owned()),
    }
}

/// What the journal has of one event.
enum Found {
    Whole(Box<Exchange>),
    /// Its begin, and when that was.
    Begun(Box<Begin>, i64),
}

pub(super) fn run(args: &ShowArgs, data_dir: &Path, out: &mut dyn Write) -> Result<()> {
    let log = Log::open(data_dir)?;
    let mut found: BTreeMap<Uuid, Found> = BTreeMap::new();
    log.read(0, log.position(), |record| {
        if args.id.fits(record.event_id) {
            note(record, &mut found);
        }
        ControlFlow::Continue(())
    })?;
    let mut events = found.into_iter();
    let (id, event) = match (events.next(), events.len()) {
        (Some(only), 0) => only,
        (None, _) => bail!(
            "there is no event {} in {}, or not any more: what every sink has taken is deleted",
            args.id.text,
            log.dir().display()
        ),
        (Some((first, _)), more) => {
            bail!(
                "{} events end with {}, one of them is {first}: give more of its id",
                more.saturating_add(1),
                args.id.text
            )
        }
    };
    let exchange = match event {
        Found::Whole(exchange) => *exchange,
        Found::Begun(begin, time_us) => {
            let begun = to_the_second(time_us);
            eprintln!(
                "{id} was begun at {begun} and has not ended: it runs, or its process died and did not start again"
            );
            Exchange { reason: None, ..Exchange::found_unended(*begin) }
        }
    };
    out.write_all(pretty(&String::from_utf8_lossy(&to_json_line(&exchange))).as_bytes())?;
    out.flush()?;
    Ok(())
}

fn note(record: &RecordRef<'_>, found: &mut BTreeMap<Uuid, Found>) {
    if record.kind == Kind::Begin {
        if let Ok(begin) = Begin::decode(record.payload) {
            found.entry(record.event_id).or_insert(Found::Begun(Box::new(begin), record.time_us));
        }
    } else if let Some(exchange) = log::exchange(record) {
        found.insert(record.event_id, Found::Whole(Box::new(exchange)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_whole_or_the_end_of_one() {
        let id: Uuid = "0199aa00-0000-7000-8000-0000cccc0003".parse().unwrap();
        let other: Uuid = "0199aa00-0000-7000-8000-1000cccc0003".parse().unwrap();
        for (text, fits, fits_other) in [
            ("0199aa00-0000-7000-8000-0000cccc0003", true, false),
            ("0199AA00000070008000 0000cccc0003".replace(' ', "").as_str(), true, false),
            ("cccc0003", true, true),
            ("0000cccc0003", true, false),
            ("8000-0000cccc0003", true, false),
            ("dddd0003", false, false),
        ] {
            let end = id_end(text).unwrap();
            assert_eq!((end.fits(id), end.fits(other)), (fits, fits_other), "{text}");
        }
        for text in ["", "cc0003", "0199aa00-0000-7000-8000-0000cccc00030", "xxxxxxxx", "+1234567", "sk-lp-aaaaaaaaaa"]
        {
            assert!(id_end(text).is_err(), "{text}");
        }
    }
}

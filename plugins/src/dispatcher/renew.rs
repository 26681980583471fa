//! Events in memory, brought up to what the journal says of them now.
//!
//! Captured content can be erased from the journal while an event that had it waits here, for hours if its receiver is
//! away. Such events are read again before anything is done with them.

use super::sink::Event;
use crate::erasure::without_content;
use crate::event::{Exchange, Message};
use crate::journal::{Feed, JournalError, Reader};

/// Reads those of `events` again that have content. One that the journal no longer holds loses it: it may have been
/// erased, and nobody can say.
pub(super) fn renew<'a>(feed: &Feed, events: impl Iterator<Item = &'a mut Event>) -> Result<(), JournalError> {
    let mut reader: Option<Reader> = None;
    for event in events.filter(|event| event.exchange.content.is_some()) {
        // Mostly one passage through the journal, since events are mostly in its order.
        let mut current = match reader.take().filter(|reader| reader.last_seq() < event.seq) {
            Some(reader) => reader,
            None => feed.reader(event.seq.saturating_sub(1)),
        };
        match read(&mut current, event.seq)? {
            Some((exchange, payload)) => (event.exchange, event.payload) = (exchange, payload),
            None => {
                event.exchange.content = None;
                if let Some(payload) = without_content(&event.payload) {
                    event.payload = payload.into();
                }
            }
        }
        reader = Some(current);
    }
    Ok(())
}

/// An event, and its message as the journal has it.
type Read = (Exchange, Box<[u8]>);

fn read(reader: &mut Reader, seq: u64) -> Result<Option<Read>, JournalError> {
    while let Some(record) = reader.next_ref()? {
        if record.seq >= seq {
            let exchange = Exchange::decode(record.payload).ok().filter(|_| record.seq == seq);
            return Ok(exchange.map(|exchange| (exchange, record.payload.into())));
        }
    }
    Ok(None)
}

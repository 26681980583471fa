//! The request body on its way to the provider: held where a policy reads it, else passed on piece by piece.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::body::ModelScan;
use llm_proxy_core::http1::call::{Call, Framing};
use tokio::time::timeout;

use super::bodies::Copy;
use super::held::{HeldBytes, Hold};
use crate::client::Client;
use crate::http1::Fault;
use crate::provider::Provider;

/// The most that is taken from the client while there is no connection to the provider yet, in bytes.
const MOST_QUEUED: usize = 64 * 1024;

/// The same in pieces: a body may come in chunks of one byte.
const MOST_PIECES: usize = 256;
/// The most of a piece that a provider must take before that counts as progress, in bytes.
const MOST_PUT: usize = 64 * 1024;
/// The most of a body that is kept once it has been sent, in bytes: longer ones cannot be said again.
const MOST_KEPT: usize = 64 * 1024;

/// What a client is told that stops sending its body.
pub const STALLED: &str = "the body stopped coming";

/// One request body.
pub struct Upload {
    /// How it goes to the provider.
    pub framing: Framing,
    /// Everything of it has been written to the provider.
    pub sent_all: bool,
    /// Something of it may have reached the provider.
    pub sent_any: bool,
    /// Finds the model as the body passes.
    pub scan: ModelScan,
    /// Where the body is copied to as it comes, if it is to be kept for the record.
    copy: Option<Copy>,
    queue: VecDeque<Bytes>,
    queued: usize,
    client_done: bool,
    /// Bytes that the connection to the provider has, and has not sent yet.
    under_way: usize,
    /// The connection has the end, too.
    ended: bool,
    /// What was put, where it may have to be said again. `None`: it cannot be.
    kept: Option<Vec<Bytes>>,
    /// The bytes of that.
    kept_bytes: usize,
    /// The provider has answered already: what still comes is thrown away.
    discard: bool,
    limit: u64,
    taken: u64,
    hold: Option<Hold>,
}

/// Why the client's side ends the exchange.
#[derive(Debug)]
pub enum ClientFault {
    /// It closed the connection.
    Gone,
    /// It broke the framing, or sent more than the limit.
    Refused(Refusal),
}

impl Upload {
    /// A body that streams through, at most `limit` bytes of it.
    pub fn streamed(call: &Call, limit: u64) -> Self {
        Self::new(call.framing, limit, VecDeque::new(), call.framing == Framing::None, None)
    }

    /// A body that was read whole.
    pub fn held(body: Bytes, hold: Hold) -> Self {
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let queue = if body.is_empty() { VecDeque::new() } else { VecDeque::from([body]) };
        Self::new(Framing::Length(length), length, queue, true, Some(hold))
    }

    fn new(framing: Framing, limit: u64, queue: VecDeque<Bytes>, client_done: bool, hold: Option<Hold>) -> Self {
        let nothing = matches!(framing, Framing::None | Framing::Length(0));
        Self {
            framing,
            sent_all: nothing,
            sent_any: false,
            scan: ModelScan::default(),
            copy: None,
            queued: queue.iter().map(Bytes::len).sum(),
            queue,
            client_done: client_done || nothing,
            under_way: 0,
            ended: nothing,
            kept: None,
            kept_bytes: 0,
            discard: false,
            limit,
            taken: 0,
            hold,
        }
    }

    /// Copies what comes from here on.
    pub fn copy_to(&mut self, copy: Option<Copy>) {
        if let Some(copy) = copy.as_ref().filter(|_| self.client_done) {
            copy.end();
        }
        self.copy = copy;
    }

    /// Whether there is room for more of the client's body while nothing can be written.
    pub fn has_room(&self) -> bool {
        self.client_done || (self.queued < MOST_QUEUED && self.queue.len() < MOST_PIECES)
    }

    /// Whether the client owes more of the body.
    pub fn waits_for_client(&self) -> bool {
        !self.client_done && !self.discard
    }

    /// The provider has answered without waiting for the body: take the rest and throw it away.
    pub fn discard_rest(&mut self) {
        self.discard = true;
        self.queue.clear();
        self.queued = 0;
        self.hold = None;
    }

    /// Waits for the next piece, or for the client to leave. Cancel safe.
    ///
    /// # Errors
    /// [`ClientFault`].
    pub async fn next(&mut self, client: &mut Client) -> Result<(), ClientFault> {
        if self.client_done {
            client.left().await;
            return Err(ClientFault::Gone);
        }
        let piece = match client.read_body().await {
            Ok(Some(piece)) => piece,
            Ok(None) => {
                self.client_done = true;
                if let Some(copy) = &self.copy {
                    copy.end();
                }
                return Ok(());
            }
            Err(Fault::Invalid(why)) => {
                return Err(ClientFault::Refused(Refusal::InvalidRequest(format!("the body: {why}").into())));
            }
            Err(_) => return Err(ClientFault::Gone),
        };
        self.client_done = client.body_is_over();
        self.taken = self.taken.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if self.taken > self.limit && !self.discard {
            return Err(ClientFault::Refused(Refusal::TooLarge(self.limit)));
        }
        if let Some(copy) = &self.copy {
            copy.push(&piece);
            if self.client_done {
                copy.end();
            }
        }
        if !self.discard {
            self.scan.feed(&piece);
            self.queued = self.queued.saturating_add(piece.len());
            self.queue.push_back(piece);
        }
        Ok(())
    }

    /// Hands what is queued to the connection, as far as it has room. Waiting for the answer sends it.
    pub fn put(&mut self, provider: &mut Provider) {
        while provider.has_room()
            && let Some(mut piece) = self.queue.pop_front()
        {
            if piece.len() > MOST_PUT {
                let rest = piece.split_off(MOST_PUT);
                self.queue.push_front(rest);
            }
            self.keep(&piece);
            self.queued = self.queued.saturating_sub(piece.len());
            self.under_way = self.under_way.saturating_add(piece.len());
            self.sent_any = true;
            provider.put_body(piece);
        }
        if provider.has_room() && self.queue.is_empty() && self.client_done && !self.ended && !self.discard {
            provider.end_body();
            self.ended = true;
            self.note_sent_all(provider);
        }
    }

    /// Everything that was put has been sent: how many bytes of the body that was.
    pub fn note_sent(&mut self, provider: &Provider) -> u64 {
        self.note_sent_all(provider);
        u64::try_from(std::mem::take(&mut self.under_way)).unwrap_or(u64::MAX)
    }

    fn note_sent_all(&mut self, provider: &Provider) {
        if self.ended && !provider.has_output() {
            self.sent_all = true;
            if self.kept_bytes > MOST_KEPT {
                self.kept = None;
            }
            if self.kept.is_none() {
                self.hold = None; // the bytes are gone, and the answer may take long
            }
        }
    }

    /// Keeps what is put from here on, until an answer comes: the provider may say that it has not begun to look at it.
    pub fn keep_what_is_put(&mut self) {
        self.kept = Some(Vec::new());
        self.kept_bytes = 0;
    }

    fn keep(&mut self, piece: &Bytes) {
        let Some(kept) = &mut self.kept else { return };
        self.kept_bytes = self.kept_bytes.saturating_add(piece.len());
        // A body that is held is in memory anyway, as long as it is being sent.
        if self.hold.is_none() && (self.kept_bytes > MOST_KEPT || kept.len() >= MOST_PIECES) {
            self.kept = None;
        } else {
            kept.push(piece.clone());
        }
    }

    /// An answer has come: nothing of this will be said again.
    pub fn forget(&mut self) {
        self.kept = None;
        if self.sent_all {
            self.hold = None;
        }
    }

    /// Whether another connection could be told the same from the beginning.
    pub fn can_repeat(&self) -> bool {
        !self.discard && (!self.sent_any || self.kept.is_some())
    }

    /// Begins again, for another connection, where that [can be](Self::can_repeat).
    pub fn rewind(&mut self) {
        let nothing = matches!(self.framing, Framing::None | Framing::Length(0));
        for piece in self.kept.take().unwrap_or_default().into_iter().rev() {
            self.queued = self.queued.saturating_add(piece.len());
            self.queue.push_front(piece);
        }
        self.under_way = 0;
        (self.sent_any, self.sent_all, self.ended) = (false, nothing, nothing);
    }
}

/// Reads a whole body, at most `limit` bytes and within the process's budget. One whose announced length is more has been
/// refused before.
///
/// # Errors
/// [`ClientFault`]: too large (413), no memory (503), broken framing (400), or the client left.
pub async fn read_whole(
    client: &mut Client,
    call: &Call,
    limit: u64,
    budget: &HeldBytes,
    idle: Duration,
) -> Result<(Bytes, Hold), ClientFault> {
    let refuse = |refusal| Err(ClientFault::Refused(refusal));
    let mut hold = budget.hold();
    let mut upload = Upload::streamed(call, limit);
    let mut whole = BytesMut::new();
    let mut single: Option<Bytes> = None;
    while !upload.client_done {
        match timeout(idle, upload.next(client)).await {
            Ok(taken) => taken?,
            Err(_) => return refuse(Refusal::InvalidRequest(STALLED.into())),
        };
        while let Some(piece) = upload.queue.pop_front() {
            // What has been announced counts only as it comes: announcing costs a client nothing.
            if !hold.grow(u64::try_from(piece.len()).unwrap_or(u64::MAX)) {
                return refuse(Refusal::Overloaded);
            }
            // The ordinary small body comes in one piece, and needs no copy.
            match (single.take(), whole.is_empty()) {
                (None, true) => single = Some(piece),
                (first, _) => {
                    if let Some(first) = first {
                        whole.reserve(first.len().saturating_add(piece.len()));
                        whole.extend_from_slice(&first);
                    }
                    whole.extend_from_slice(&piece);
                }
            }
        }
    }
    Ok((single.unwrap_or_else(|| whole.freeze()), hold))
}

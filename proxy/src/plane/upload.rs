//! The request body on its way to the provider: held where a policy reads it, else passed on piece by piece.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::body::ModelScan;
use llm_proxy_core::http1::call::{Call, Framing};
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::Turn;
use super::held::{HeldBytes, Hold};
use crate::client::Client;
use crate::http1::{Fault, Provider};

/// The most that is taken from the client while there is no connection to the provider yet, in bytes.
const MOST_QUEUED: usize = 64 * 1024;

/// The same in pieces: a body may come in chunks of one byte.
const MOST_PIECES: usize = 256;
/// The most that is written before somebody looks at the answer, the client and the clocks again, in bytes.
const MOST_WRITTEN: usize = 64 * 1024;

/// One request body.
pub struct Upload {
    /// How it goes to the provider.
    pub framing: Framing,
    /// Everything of it has been written to the provider.
    pub sent_all: bool,
    /// Something of it has been written to the provider.
    pub sent_any: bool,
    /// Finds the model as the body passes.
    pub scan: ModelScan,
    queue: VecDeque<Bytes>,
    queued: usize,
    client_done: bool,
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

/// Why nothing more can be written to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFault {
    /// The connection failed.
    Failed,
    /// The idle clock ran out.
    TooSlow,
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
        let mut upload = Self::new(Framing::Length(length), length, queue, true, Some(hold));
        upload.sent_all = length == 0;
        upload
    }

    fn new(framing: Framing, limit: u64, queue: VecDeque<Bytes>, client_done: bool, hold: Option<Hold>) -> Self {
        let nothing = matches!(framing, Framing::None | Framing::Length(0));
        Self {
            framing,
            sent_all: nothing,
            sent_any: false,
            scan: ModelScan::default(),
            queued: queue.iter().map(Bytes::len).sum(),
            queue,
            client_done: client_done || nothing,
            discard: false,
            limit,
            taken: 0,
            hold,
        }
    }

    /// Whether there is room for more of the client's body while nothing can be written.
    pub fn has_room(&self) -> bool {
        self.client_done || (self.queued < MOST_QUEUED && self.queue.len() < MOST_PIECES)
    }

    /// Whether something waits to be written.
    pub fn has_queued(&self) -> bool {
        !self.discard && (!self.queue.is_empty() || (self.client_done && !self.sent_all))
    }

    /// The provider has answered without waiting for the body: take the rest and throw it away.
    pub fn discard_rest(&mut self) {
        self.discard = true;
        self.queue.clear();
        self.queued = 0;
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
        if !self.discard {
            self.scan.feed(&piece);
            self.queued = self.queued.saturating_add(piece.len());
            self.queue.push_back(piece);
        }
        Ok(())
    }

    /// Writes of what is queued up to [`MOST_WRITTEN`], and whatever waits with it. Not cancel safe: race it only to give
    /// the connection up.
    ///
    /// # Errors
    /// [`WriteFault`].
    pub async fn write_queued(
        &mut self,
        provider: &mut Provider,
        turn: Turn<'_>,
        sent: &mut u64,
    ) -> Result<(), WriteFault> {
        let until = turn.idle_deadline(Instant::now());
        let mut written = 0usize;
        while written < MOST_WRITTEN
            && let Some(mut piece) = self.queue.pop_front()
        {
            if piece.len() > MOST_WRITTEN {
                let rest = piece.split_off(MOST_WRITTEN);
                self.queue.push_front(rest);
            }
            self.queued = self.queued.saturating_sub(piece.len());
            self.sent_any = true;
            patient(until, provider.write_body(&piece)).await?;
            written = written.saturating_add(piece.len());
            *sent = sent.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        }
        let ends = self.queue.is_empty() && self.client_done && !self.sent_all && !self.discard;
        if ends {
            provider.end_body();
        }
        patient(until, provider.flush()).await?;
        self.sent_all |= ends;
        if self.sent_all {
            self.hold = None; // the bytes are gone, and the answer may take long
        }
        Ok(())
    }
}

async fn patient(until: Instant, writing: impl Future<Output = std::io::Result<()>>) -> Result<(), WriteFault> {
    timeout_at(until, writing).await.map_err(|_| WriteFault::TooSlow)?.map_err(|_| WriteFault::Failed)
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
            Err(_) => return refuse(Refusal::InvalidRequest("the body stopped coming".into())),
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

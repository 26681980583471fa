//! A bounded copy of a body that passes.

/// Keeps the beginning of a body and counts the whole of it.
///
/// Nothing is allocated before the first byte, and never more than twice what came or the limit, whichever is less:
/// most bodies are small, and one that is long says so as it goes.
#[derive(Clone, Debug)]
pub struct Keeper {
    limit: usize,
    kept: Kept,
    bytes: u64,
    has_broken_off: bool,
}

/// The bytes of somebody's prompt: they show only how many they are.
#[derive(Clone)]
struct Kept(Vec<u8>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

impl Keeper {
    /// Keeps at most `limit` bytes. [`Capture::keeper`](super::Capture::keeper) knows how many make sense.
    pub const fn new(limit: usize) -> Self {
        Self { limit, kept: Kept(Vec::new()), bytes: 0, has_broken_off: false }
    }

    /// Takes the next piece of the body, as it came from the wire. How it is cut into pieces makes no difference.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes = self.bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        let kept = &mut self.kept.0;
        let room = self.limit.saturating_sub(kept.len());
        let piece = piece.get(..room).unwrap_or(piece);
        let needed = kept.len().saturating_add(piece.len());
        if needed > kept.capacity() {
            let wanted = kept.capacity().saturating_mul(2).clamp(needed, self.limit.max(needed));
            kept.reserve_exact(wanted.saturating_sub(kept.len()));
        }
        kept.extend_from_slice(piece);
    }

    /// Gives back the memory, and keeps nothing of what still comes. It is counted all the same.
    pub fn let_go(&mut self) {
        self.limit = 0;
        self.kept = Kept(Vec::new());
    }

    /// Notes that the body did not come to its end: the sender, the receiver or we broke it off.
    pub const fn break_off(&mut self) {
        self.has_broken_off = true;
    }

    /// How many bytes the body had, kept or not.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is kept: the first bytes.
    pub fn kept(&self) -> &[u8] {
        &self.kept.0
    }

    /// The most that is kept, in bytes.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Memory that it holds, in bytes.
    pub const fn held_bytes(&self) -> usize {
        self.kept.0.capacity()
    }

    /// Whether a part of the body is missing: beyond the limit, or never sent.
    pub fn is_cut(&self) -> bool {
        self.has_broken_off || u64::try_from(self.kept.0.len()).is_ok_and(|kept| kept < self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_let_go_is_counted_and_kept_no_more() {
        let mut keeper = Keeper::new(10);
        keeper.push(b"abc");
        keeper.let_go();
        keeper.push(b"defg");
        assert_eq!((keeper.bytes(), keeper.kept(), keeper.held_bytes(), keeper.is_cut()), (7, &b""[..], 0, true));
    }

    #[test]
    fn memory_grows_with_what_comes_and_ends_at_the_limit() {
        let mut keeper = Keeper::new(1000);
        assert_eq!((keeper.held_bytes(), keeper.is_cut()), (0, false));
        keeper.push(b"");
        assert_eq!(keeper.held_bytes(), 0);
        for sent in 1..=3000u64 {
            keeper.push(b"x");
            let kept = usize::try_from(sent).unwrap().min(1000);
            assert_eq!((keeper.bytes(), keeper.kept().len(), keeper.is_cut()), (sent, kept, sent > 1000));
            assert!(keeper.held_bytes() <= (2 * kept).min(1000), "{} bytes for {kept}", keeper.held_bytes());
        }
    }

    #[test]
    fn a_body_that_broke_off_is_cut_though_all_of_it_is_kept() {
        let mut keeper = Keeper::new(10);
        keeper.push(b"12345");
        assert!(!keeper.is_cut());
        keeper.break_off();
        assert!(keeper.is_cut());
        assert_eq!(keeper.kept(), b"12345");
    }

    #[test]
    fn what_is_kept_is_not_printed() {
        let mut keeper = Keeper::new(10);
        keeper.push(b"secret");
        let shown = format!("{keeper:?}");
        assert!(shown.contains("6 bytes") && !shown.contains("secret") && !shown.contains("115"), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_split_keeps_the_same(
            body in prop::collection::vec(any::<u8>(), 0..300),
            limit in 0usize..300,
            piece in 1usize..50,
        ) {
            let mut whole = Keeper::new(limit);
            whole.push(&body);
            let mut split = Keeper::new(limit);
            body.chunks(piece).for_each(|piece| split.push(piece));
            prop_assert_eq!(whole.kept(), &body[..limit.min(body.len())]);
            prop_assert_eq!((split.kept(), split.bytes(), split.is_cut()), (whole.kept(), whole.bytes(), whole.is_cut()));
        }
    }
}

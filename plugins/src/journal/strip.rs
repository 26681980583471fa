//! What an event gives up so that it can be recorded at all: captured bodies first, numbers last.
//!
//! A body that is not there is named as missing with its size and the reason, so that nobody takes the event for one of
//! a project that captures nothing.

use crate::event::{AdminAction, Body, Exchange, Message, Usage};

/// [`Body::omitted`] of what was left out because nothing more fitted on the disk.
pub(super) const DISK_IS_FULL: &str = "the disk is full";
/// [`Body::omitted`] of what was left out because the whole would not have been a record.
pub(super) const TOO_LARGE: &str = "too large for a record";

const WITHOUT_DETAILS: &str = "too large for a record: tags and the provider's usage object were left out";
const WITHOUT_LONG_TEXTS: &str = "too large for a record: tags, the provider's usage object, finish reasons and the ends of long texts were left out";
/// What is left of a long text, in bytes.
const MOST_TEXT_BYTES: usize = 1_024;

/// An encoded exchange without its captured bodies; `None` if it has none, or is no exchange.
pub(super) fn without_bodies(payload: &[u8]) -> Option<Vec<u8>> {
    let mut exchange = Exchange::decode(payload).ok()?;
    leave_out_bodies(&mut exchange, DISK_IS_FULL).then(|| exchange.encode_to_vec())
}

/// An encoded exchange made as small as `most_bytes`; `None` if it is no exchange.
pub(super) fn to_fit(payload: &[u8], most_bytes: usize) -> Option<Vec<u8>> {
    let mut exchange = Exchange::decode(payload).ok()?;
    fit(&mut exchange, most_bytes);
    Some(exchange.encode_to_vec())
}

/// Leaves out as little as makes the exchange as small as `most_bytes`, which is at least 64 KiB.
fn fit(exchange: &mut Exchange, most_bytes: usize) {
    if exchange.encoded_len() <= most_bytes {
        return;
    }
    leave_out_bodies(exchange, TOO_LARGE);
    if exchange.encoded_len() <= most_bytes {
        return;
    }
    exchange.tags.clear();
    if let Some(usage) = &mut exchange.usage {
        usage.provider_json = None;
    }
    let reason = exchange.reason.clone();
    note(exchange, WITHOUT_DETAILS);
    if exchange.encoded_len() <= most_bytes {
        return;
    }
    exchange.reason = reason;
    shorten_texts(exchange);
    note(exchange, WITHOUT_LONG_TEXTS);
}

/// True if there was something to leave out.
fn leave_out_bodies(exchange: &mut Exchange, why: &str) -> bool {
    let Some(content) = &mut exchange.content else { return false };
    let mut left_out = false;
    for body in [&mut content.request, &mut content.response].into_iter().flatten() {
        if body.json.is_some() || body.text.is_some() {
            *body = Body { bytes: body.bytes, omitted: Some(why.to_owned()), ..Body::default() };
            left_out = true;
        }
    }
    left_out
}

fn note(exchange: &mut Exchange, what: &str) {
    exchange.reason = Some(match exchange.reason.take() {
        Some(reason) => format!("{reason}; {what}"),
        None => what.to_owned(),
    });
}

/// Bounds everything whose size is not bounded by its type.
fn shorten_texts(exchange: &mut Exchange) {
    exchange.finish_reasons.clear();
    shorten(&mut exchange.id);
    let Exchange { project_id, token_id, api, dialect, endpoint, method, model_requested, model, .. } = exchange;
    for text in [project_id, token_id, api, dialect, endpoint, method, model_requested, model].into_iter().flatten() {
        shorten(text);
    }
    let Exchange { reason, client_request_id, provider_request_id, client_address, .. } = exchange;
    for text in [reason, client_request_id, provider_request_id, client_address].into_iter().flatten() {
        shorten(text);
    }
    if let Some(Usage { sources, .. }) = &mut exchange.usage {
        sources.clear();
    }
    if let Some(cost) = &mut exchange.cost {
        for text in [&mut cost.usd, &mut cost.prices].into_iter().flatten() {
            shorten(text);
        }
    }
    if let Some(content) = &mut exchange.content {
        for body in [&mut content.request, &mut content.response].into_iter().flatten() {
            for text in [&mut body.content_type, &mut body.sha256, &mut body.omitted].into_iter().flatten() {
                shorten(text);
            }
        }
    }
    if let Some(AdminAction { action, actor, resource, resource_id, before_json, after_json }) = &mut exchange.admin {
        (*before_json, *after_json) = (None, None);
        for text in [action, actor, resource].into_iter().chain(resource_id) {
            shorten(text);
        }
    }
}

fn shorten(text: &mut String) {
    text.truncate(text.floor_char_boundary(MOST_TEXT_BYTES));
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Content, Cost, Outcome};

    const MOST: usize = 64 << 10;

    fn json(bytes: usize) -> Body {
        Body {
            content_type: Some("application/json".to_owned()),
            bytes: 7,
            json: Some(vec![b'1'; bytes]),
            ..Body::default()
        }
    }

    fn omitted(why: &str) -> Body {
        Body { bytes: 7, omitted: Some(why.to_owned()), ..Body::default() }
    }

    fn exchange(request: Option<Body>, response: Option<Body>) -> Exchange {
        let content = Content { request, response, ..Content::default() };
        Exchange { id: "id".to_owned(), content: Some(content), count: 1, ..Exchange::default() }
    }

    #[test]
    fn a_full_disk_costs_the_bodies_that_are_there_and_nothing_else() {
        let text = Body { bytes: 7, truncated: true, text: Some("half of it".to_owned()), ..Body::default() };
        let hash = Body { bytes: 7, sha256: Some("ab".to_owned()), ..Body::default() };
        let policy = Body { bytes: 7, omitted: Some("not captured".to_owned()), ..Body::default() };
        let full = || Some(omitted(DISK_IS_FULL));
        for (request, response, expected) in [
            (Some(json(9)), None, Some((full(), None))),
            (Some(json(9)), Some(text.clone()), Some((full(), full()))),
            (Some(hash.clone()), Some(text), Some((Some(hash.clone()), full()))),
            (Some(hash), Some(policy), None),
            (None, None, None),
        ] {
            let stripped = without_bodies(&exchange(request, response).encode_to_vec());
            let expected = expected.map(|(request, response)| exchange(request, response));
            assert_eq!(stripped.map(|payload| Exchange::decode(payload.as_slice()).unwrap()), expected);
        }
        assert_eq!(without_bodies(&Exchange::default().encode_to_vec()), None);
        assert_eq!(without_bodies(&[0xff; 9]), None);
    }

    #[test]
    fn what_is_too_large_gives_up_bodies_then_details_then_long_texts() {
        let usage = |bytes| Usage { input_tokens: Some(3), provider_json: Some(vec![b'1'; bytes]), ..Usage::default() };
        let with = |usage, reason: Option<&str>, api: usize| Exchange {
            usage: Some(usage),
            reason: reason.map(str::to_owned),
            api: Some("a".repeat(api)),
            ..exchange(Some(json(9)), Some(omitted("not captured")))
        };
        let left = |usage, reason: Option<&str>, api| Exchange {
            content: exchange(Some(omitted(TOO_LARGE)), Some(omitted("not captured"))).content,
            ..with(usage, reason, api)
        };
        let bare = || Usage { provider_json: None, ..usage(0) };
        let big = Exchange {
            content: exchange(Some(json(MOST)), Some(omitted("not captured"))).content,
            ..with(usage(9), None, 3)
        };
        for (exchange, expected) in [
            (with(usage(9), None, 3), with(usage(9), None, 3)),
            (big, left(usage(9), None, 3)),
            (with(usage(MOST), None, 3), left(bare(), Some(WITHOUT_DETAILS), 3)),
            (with(usage(MOST), Some("idle"), 3), left(bare(), Some(&format!("idle; {WITHOUT_DETAILS}")), 3)),
            (with(usage(9), None, MOST), left(bare(), Some(WITHOUT_LONG_TEXTS), MOST_TEXT_BYTES)),
            (
                with(usage(9), Some(&"é".repeat(MOST)), MOST),
                left(bare(), Some(&format!("{}; {WITHOUT_LONG_TEXTS}", "é".repeat(512))), MOST_TEXT_BYTES),
            ),
        ] {
            let fitted = to_fit(&exchange.encode_to_vec(), MOST).unwrap();
            assert_eq!(Exchange::decode(fitted.as_slice()).unwrap(), expected);
        }
        assert_eq!(to_fit(&[0xff; 9], MOST), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn no_exchange_is_too_large_and_its_numbers_stay(
            sizes in vec(prop_oneof![Just(0), 0..100_usize, 0..2 * MOST], 24),
            tags in btree_map("[a-z]{0,9}", "[a-z]{0,9}", 0..4),
            status in any::<Option<u32>>(),
        ) {
            let mut sizes = sizes.into_iter();
            let mut text = || "ä".repeat(sizes.next().unwrap_or(0) / 2);
            let mut some = || Some(text());
            let exchange = Exchange {
                id: some().unwrap(),
                project_id: some(),
                token_id: some(),
                api: some(),
                dialect: some(),
                endpoint: some(),
                method: some(),
                model_requested: some(),
                model: some(),
                reason: some(),
                client_request_id: some(),
                provider_request_id: some(),
                client_address: some(),
                finish_reasons: vec![text(), text()],
                cost: Some(Cost { usd: Some(text()), prices: Some(text()) }),
                admin: Some(AdminAction {
                    action: text(),
                    actor: text(),
                    resource: text(),
                    resource_id: Some(text()),
                    after_json: Some(text().into_bytes()),
                    ..AdminAction::default()
                }),
                usage: Some(Usage { sources: [(text(), 1)].into(), output_tokens: Some(5), ..Usage::default() }),
                tags,
                status,
                outcome: Outcome::Timeout.into(),
                ..exchange(Some(json(9)), None)
            };
            let fitted = to_fit(&exchange.encode_to_vec(), MOST).unwrap();
            prop_assert!(fitted.len() <= MOST, "{} bytes", fitted.len());
            let fitted = Exchange::decode(fitted.as_slice()).unwrap();
            prop_assert_eq!((fitted.status, fitted.outcome()), (status, Outcome::Timeout));
            prop_assert_eq!(fitted.usage.and_then(|usage| usage.output_tokens), Some(5));
        }
    }
}

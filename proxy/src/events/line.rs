//! One event in one line, for a person who watches them pass.
//!
//! Columns have a width of their own and do not wait for the widest of them, because the next event is not there yet. A
//! cell that is too long pushes the rest of its line aside, and is never cut: it may be what is looked for.

use llm_proxy_plugins::event::{EventType, Exchange, Outcome};

use super::moment::{span, to_the_second};
use super::paint::{Hue, Paint};
use crate::manage::table::printable;

/// Titles, widths, and whether the cells stand at the right. The last column has what is left.
const COLUMNS: [(&str, usize, bool); 13] = [
    ("TIME", 20, false),
    ("OUTCOME", 11, false),
    ("STATUS", 6, true),
    ("API", 9, false),
    ("MODEL", 24, false),
    ("IN", 7, true),
    ("OUT", 7, true),
    ("USD", 10, true),
    ("TOOK", 7, true),
    ("PROJECT", 8, false),
    ("TOKEN", 8, false),
    ("ID", 8, false),
    ("REASON", 0, false),
];
/// Between two columns.
const GAP: &str = "  ";
/// Of an id, its last characters: the first ones are the time.
const ID_CHARACTERS: usize = 8;

/// The titles of the columns.
pub(super) fn head(paint: Paint) -> String {
    paint.on(Hue::Dim, &laid_out(COLUMNS.map(|(title, _, _)| (title.to_owned(), None)).into(), Paint::default()))
}

/// One event, recorded at `time_us`.
pub(super) fn line(exchange: &Exchange, time_us: i64, paint: Paint) -> String {
    let cells = match exchange.r#type() {
        EventType::Exchange => exchange_cells(exchange, time_us),
        EventType::Admin => admin_cells(exchange, time_us),
    };
    laid_out(cells, paint)
}

type Cell = (String, Option<Hue>);

fn exchange_cells(exchange: &Exchange, time_us: i64) -> Vec<Cell> {
    let plain = |text: String| (text, None);
    let dim = |text: String| (text, Some(Hue::Dim));
    let number = |number: Option<u64>| number.map_or_else(dash, |number| number.to_string());
    let usage = exchange.usage.as_ref();
    let status = exchange.status;
    let model = exchange.model.as_deref().or(exchange.model_requested.as_deref());
    let took = exchange.times.and_then(|times| times.last_byte_us);
    let mut reason = exchange.reason.as_deref().map(printable).unwrap_or_default();
    if exchange.count > 1 {
        reason = format!("{reason} ×{}", exchange.count);
    }
    vec![
        dim(to_the_second(time_us)),
        (exchange.outcome().name().to_owned(), Some(hue(exchange.outcome(), status))),
        (number(status.map(u64::from)), status.filter(|status| *status >= 400).map(hue_of_status)),
        plain(text(exchange.api.as_deref())),
        plain(text(model)),
        plain(number(usage.and_then(|usage| usage.input_tokens))),
        plain(number(usage.and_then(|usage| usage.output_tokens))),
        plain(text(exchange.cost.as_ref().and_then(|cost| cost.usd.as_deref()))),
        plain(took.map_or_else(dash, span)),
        dim(end_of_id(exchange.project_id.as_deref())),
        dim(end_of_id(exchange.token_id.as_deref())),
        plain(end_of_id(Some(&exchange.id))),
        plain(reason),
    ]
}

/// What was done stands where an exchange has API and model.
fn admin_cells(exchange: &Exchange, time_us: i64) -> Vec<Cell> {
    let admin = exchange.admin.as_ref();
    let said = |said: Option<&str>| text(said.filter(|said| !said.is_empty()));
    let action = said(admin.map(|admin| admin.action.as_str()));
    let actor = said(admin.map(|admin| admin.actor.as_str()));
    let resource = end_of_id(admin.and_then(|admin| admin.resource_id.as_deref()));
    vec![
        (to_the_second(time_us), Some(Hue::Dim)),
        (EventType::Admin.name().to_owned(), Some(Hue::Cyan)),
        (end_of_id(Some(&exchange.id)), None),
        (action, None),
        (format!("{resource} by {actor}"), None),
    ]
}

/// Green is what went well from end to end: an answer that was relayed whole may be the provider's refusal.
fn hue(outcome: Outcome, status: Option<u32>) -> Hue {
    match outcome {
        Outcome::Finished => status.filter(|status| *status >= 400).map_or(Hue::Green, hue_of_status),
        Outcome::Refused => Hue::Yellow,
        Outcome::ClientGone | Outcome::Revoked | Outcome::OverBudget => Hue::Magenta,
        Outcome::UpstreamUnreachable | Outcome::UpstreamCut | Outcome::Timeout | Outcome::Shed => Hue::Red,
        Outcome::Unknown => Hue::Dim,
    }
}

fn hue_of_status(status: u32) -> Hue {
    if status >= 500 { Hue::Red } else { Hue::Yellow }
}

fn laid_out(cells: Vec<Cell>, paint: Paint) -> String {
    let mut line = String::new();
    let last = cells.len().saturating_sub(1);
    for (index, ((text, hue), (_, width, is_right))) in cells.into_iter().zip(COLUMNS).enumerate() {
        let blanks = " ".repeat(width.saturating_sub(text.chars().count()));
        let text = match hue {
            Some(hue) if !text.is_empty() => paint.on(hue, &text),
            _ => text,
        };
        if is_right {
            line.push_str(&blanks);
        }
        line.push_str(&text);
        if index < last {
            if !is_right {
                line.push_str(&blanks);
            }
            line.push_str(GAP);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

fn dash() -> String {
    "-".to_owned()
}

fn text(text: Option<&str>) -> String {
    text.map_or_else(dash, printable)
}

fn end_of_id(id: Option<&str>) -> String {
    let Some(id) = id else { return dash() };
    let skipped = id.chars().count().saturating_sub(ID_CHARACTERS);
    printable(&id.chars().skip(skipped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use llm_proxy_plugins::event::{Cost, Times, Usage};

    use super::*;

    /// 2026-11-21T01:02:03Z.
    const TIME_US: i64 = 1_795_222_923_000_000;

    fn exchange() -> Exchange {
        let some = |text: &str| Some(text.to_owned());
        Exchange {
            id: "0199aa00-0000-7000-8000-0000cccc0003".to_owned(),
            project_id: some("0199aa00-0000-7000-8000-0000aaaa0001"),
            token_id: some("0199aa00-0000-7000-8000-0000bbbb0002"),
            api: some("openai"),
            model: some("gpt-4o-mini"),
            status: Some(200),
            outcome: Outcome::Finished.into(),
            usage: Some(Usage { input_tokens: Some(12), output_tokens: Some(340), ..Usage::default() }),
            cost: Some(Cost { usd: some("0.000206"), prices: None }),
            times: Some(Times { last_byte_us: Some(1_234_567), ..Times::default() }),
            count: 1,
            ..Exchange::default()
        }
    }

    #[test]
    fn a_line_has_its_cells_below_the_titles() {
        let expected = "\
TIME                  OUTCOME      STATUS  API        MODEL                          IN      OUT         USD     TOOK  PROJECT   TOKEN     ID        REASON
2026-11-21 01:02:03Z  finished        200  openai     gpt-4o-mini                    12      340    0.000206    1.23s  aaaa0001  bbbb0002  cccc0003
";
        let shown = format!("{}\n{}\n", head(Paint::NONE), line(&exchange(), TIME_US, Paint::NONE));
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_unknown_is_a_dash_and_what_a_refusal_stands_for_is_told() {
        let refused = Exchange {
            id: "x".to_owned(),
            status: Some(401),
            outcome: Outcome::Refused.into(),
            reason: Some("invalid_api_key\u{1b}[2J".to_owned()),
            count: 12,
            ..Exchange::default()
        };
        let shown = line(&refused, TIME_US, Paint::NONE);
        let cells: Vec<_> = shown.split_whitespace().skip(2).collect();
        assert_eq!(
            cells,
            ["refused", "401", "-", "-", "-", "-", "-", "-", "-", "-", "x", "invalid_api_key", "[2J", "×12"]
        );
    }

    #[test]
    fn what_an_administrator_did_is_a_line_of_its_own_kind() {
        let mut admin = Exchange { id: "0199aa00-0000-7000-8000-0000cccc0003".to_owned(), ..Exchange::default() };
        admin.r#type = EventType::Admin.into();
        let action = admin.admin.get_or_insert_default();
        action.action = "token.create".to_owned();
        action.actor = "management_token".to_owned();
        action.resource_id = Some("0199aa00-0000-7000-8000-0000bbbb0002".to_owned());
        let shown = line(&admin, TIME_US, Paint::NONE);
        let expected = "2026-11-21 01:02:03Z  admin        cccc0003  token.create  bbbb0002 by management_token";
        assert_eq!(shown, expected);
    }

    #[test]
    fn colour_says_how_it_went_and_changes_no_width() {
        for (outcome, status, expected) in [
            (Outcome::Finished, Some(200), Hue::Green),
            (Outcome::Finished, Some(404), Hue::Yellow),
            (Outcome::Finished, Some(529), Hue::Red),
            (Outcome::Finished, None, Hue::Green),
            (Outcome::Refused, Some(503), Hue::Yellow),
            (Outcome::Timeout, Some(504), Hue::Red),
            (Outcome::ClientGone, None, Hue::Magenta),
            (Outcome::Unknown, None, Hue::Dim),
        ] {
            assert_eq!(hue(outcome, status), expected, "{outcome} {status:?}");
        }
        let mut coloured = line(&exchange(), TIME_US, Paint::ALWAYS);
        assert!(coloured.contains("\u{1b}[32mfinished\u{1b}[0m"), "{coloured}");
        for code in ["\u{1b}[32m", "\u{1b}[2m", "\u{1b}[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, line(&exchange(), TIME_US, Paint::NONE));
    }
}

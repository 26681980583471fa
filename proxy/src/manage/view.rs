//! The server's answers laid out for people.

use anyhow::Context;
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::table::{columns, fields, printable};

/// What an answer shows.
pub(super) enum View {
    Projects,
    Project,
    Tokens,
    Token,
    NewToken,
    Revoked,
    Usage,
    Erased,
    Sinks,
    /// Nothing but success: what was done.
    Done(String),
}

impl View {
    /// The text for people. `now` is the time as the server writes times: it decides which tokens have expired.
    ///
    /// # Errors
    /// When the answer is not JSON.
    pub(super) fn lay_out(&self, answer: &str, now: &str) -> anyhow::Result<String> {
        let answer: Value = match self {
            Self::Done(_) => Value::Null,
            _ => serde_json::from_str(answer).context("the server's answer is not JSON")?,
        };
        Ok(match self {
            Self::Projects => list(&answer, &["ID", "NAME", "STATE", "KEYS", "CONTENT", "CREATED"], project_row),
            Self::Tokens => {
                let head = ["ID", "PROJECT", "STATE", "EXPIRES", "REQUESTS", "PER MINUTE", "MODELS", "LAST USED"];
                list(&answer, &head, |token| token_row(token, now))
            }
            Self::Project => project(&answer),
            Self::Token => token(&answer, now),
            Self::NewToken => {
                let shown_once = text(&answer, "token");
                format!("{}\n{shown_once}\n\nKeep it now: it is not shown again.\n", token(&answer, now))
            }
            Self::Usage => usage(&answer),
            Self::Erased => {
                format!("erased from {} records, in {} files\n", text(&answer, "records"), text(&answer, "files"))
            }
            Self::Sinks => {
                let head = [
                    "NAME",
                    "KIND",
                    "HEALTH",
                    "DELIVERED",
                    "DUPLICATES",
                    "PENDING",
                    "LAG",
                    "RETRIED",
                    "DEAD",
                    "DROPPED",
                    "LAST ERROR",
                ];
                list(&answer, &head, sink_row)
            }
            Self::Revoked => format!(
                "{} revoked now, {} before, {} tokens in all\n",
                text(&answer, "revoked_count"),
                text(&answer, "already_revoked_count"),
                text(&answer, "total_tokens")
            ),
            Self::Done(what) => format!("{what}\n"),
        })
    }
}

/// This moment as the server writes times.
pub(super) fn now() -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    OffsetDateTime::now_utc().format(form).unwrap_or_default()
}

fn list(answer: &Value, head: &[&str], row: impl Fn(&Value) -> Vec<String>) -> String {
    let items = answer.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut shown = columns(head, &items.iter().map(row).collect::<Vec<_>>());
    if let Some(cursor) = answer.get("next_cursor").and_then(Value::as_str) {
        shown.push_str(&format!("\nThere are more: go on with --cursor {}\n", printable(cursor)));
    }
    shown
}

fn project_row(project: &Value) -> Vec<String> {
    vec![
        text(project, "id"),
        text(project, "name"),
        project_state(project).to_owned(),
        keys(project),
        project.get("content").map_or_else(|| "-".to_owned(), |content| text(content, "capture")),
        moment(project, "created_at"),
    ]
}

fn project(project: &Value) -> String {
    fields(&[
        ("id", text(project, "id")),
        ("name", text(project, "name")),
        ("state", project_state(project).to_owned()),
        ("keys", keys(project)),
        ("content", project.get("content").map_or_else(|| "-".to_owned(), content)),
        ("created", moment(project, "created_at")),
        ("updated", moment(project, "updated_at")),
    ])
}

/// What is kept of bodies; if it is more than nothing, how much of one, and for how long.
fn content(content: &Value) -> String {
    let capture = text(content, "capture");
    if !["redacted", "full"].contains(&capture.as_str()) {
        return capture;
    }
    let kept = match content.get("retention_days").and_then(Value::as_u64) {
        None => "without an end".to_owned(),
        Some(1) => "for one day".to_owned(),
        Some(days) => format!("for {days} days"),
    };
    format!("{capture}, up to {} bytes of a body, {kept}", text(content, "max_bytes"))
}

fn sink_row(sink: &Value) -> Vec<String> {
    let lag =
        sink.get("lag_seconds").and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |lag| format!("{lag:.1} s"));
    let mut row: Vec<_> =
        ["name", "kind", "health", "delivered", "duplicates", "pending_records"].map(|name| text(sink, name)).into();
    row.push(lag);
    row.extend(["retried", "dead", "dropped", "last_error"].map(|name| text(sink, name)));
    row
}

fn token_row(token: &Value, now: &str) -> Vec<String> {
    vec![
        text(token, "id"),
        text(token, "project_id"),
        token_state(token, now).to_owned(),
        moment(token, "expires_at"),
        requests(token),
        text(token, "requests_per_minute"),
        models(token),
        moment(token, "last_used_at"),
    ]
}

fn token(token: &Value, now: &str) -> String {
    fields(&[
        ("id", text(token, "id")),
        ("project", text(token, "project_id")),
        ("state", token_state(token, now).to_owned()),
        ("expires", moment(token, "expires_at")),
        ("requests", requests(token)),
        ("per minute", text(token, "requests_per_minute")),
        ("models", models(token)),
        ("created", moment(token, "created_at")),
        ("last used", moment(token, "last_used_at")),
    ])
}

/// A field as text; a dash where it is absent, null or empty.
fn text(item: &Value, field: &str) -> String {
    match item.get(field) {
        Some(Value::String(text)) if !text.is_empty() => printable(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".to_owned(),
    }
}

/// A time to the minute. The server's times are UTC and say so with a Z, and so does this.
fn moment(item: &Value, field: &str) -> String {
    let whole = text(item, field);
    match (whole.get(..10), whole.get(11..16)) {
        (Some(day), Some(clock)) => format!("{day} {clock}Z"),
        _ => whole,
    }
}

fn project_state(project: &Value) -> &'static str {
    if is_active(project) { "active" } else { "inactive" }
}

fn token_state(token: &Value, now: &str) -> &'static str {
    let expires_at = token.get("expires_at").and_then(Value::as_str).unwrap_or_default();
    match (is_active(token), expires_at <= now) {
        (false, _) => "revoked",
        (true, true) => "expired",
        (true, false) => "active",
    }
}

fn is_active(item: &Value) -> bool {
    item.get("is_active").and_then(Value::as_bool).unwrap_or(false)
}

/// Requests made, and of how many.
fn requests(token: &Value) -> String {
    let made = text(token, "request_count");
    match token.get("max_requests").and_then(Value::as_u64) {
        Some(most) => format!("{made} of {most}"),
        None => made,
    }
}

fn models(token: &Value) -> String {
    match token.get("allowed_models").and_then(Value::as_array) {
        Some(models) => joined(models.iter().filter_map(Value::as_str).map(printable)),
        None => "all".to_owned(),
    }
}

/// The APIs that have a key, with its last four characters where the key is long enough to show them.
fn keys(project: &Value) -> String {
    let keys = project.get("provider_keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    joined(keys.iter().map(|key| match key.get("last4").and_then(Value::as_str) {
        Some(last4) if !last4.is_empty() => format!("{} …{}", text(key, "api"), printable(last4)),
        _ => text(key, "api"),
    }))
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = parts.collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

/// What the items have in common first, then their sums. Estimated tokens count like reported ones here.
fn usage(answer: &Value) -> String {
    let items = answer.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let told_apart = ["hour", "day", "project_id", "token_id", "api", "model"];
    let told_apart: Vec<&str> =
        told_apart.into_iter().filter(|name| items.iter().any(|item| item.get(name).is_some())).collect();
    let mut head: Vec<String> = told_apart.iter().map(|name| name.trim_end_matches("_id").to_uppercase()).collect();
    head.extend(["REQUESTS", "FINISHED", "INPUT", "OUTPUT", "USD", "P50 MS", "P99 MS"].map(str::to_owned));
    let tokens = |item: &Value, class: &str| {
        let of = |source: &str| item.pointer(&format!("/usage/{class}/{source}")).and_then(Value::as_u64);
        of("reported").unwrap_or(0).saturating_add(of("estimated").unwrap_or(0)).to_string()
    };
    let at = |item: &Value, pointer: &str| match item.pointer(pointer) {
        Some(Value::String(text)) => printable(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".to_owned(),
    };
    let row = |item: &Value| {
        let mut row: Vec<String> = told_apart
            .iter()
            .map(|name| if matches!(*name, "hour" | "day") { moment(item, name) } else { text(item, name) })
            .collect();
        row.extend([at(item, "/requests"), at(item, "/outcomes/finished")]);
        row.extend([tokens(item, "input_tokens"), tokens(item, "output_tokens"), at(item, "/cost/usd")]);
        row.extend([at(item, "/latency_ms/p50"), at(item, "/latency_ms/p99")]);
        row
    };
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut shown = columns(&head, &items.iter().map(row).collect::<Vec<_>>());
    shown.push_str(&format!("\nFrom {} to {}\n", moment(answer, "from"), moment(answer, "to")));
    if let Some(cursor) = answer.get("next_cursor").and_then(Value::as_str) {
        let (from, to) = (text(answer, "from"), text(answer, "to"));
        shown.push_str(&format!("There are more: go on with --from {from} --to {to} --cursor {}\n", printable(cursor)));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T10:00:00.000000Z";

    #[test]
    fn a_list_of_tokens_is_a_table() {
        let answer = r#"{"data":[
            {"id":"t1","project_id":"p","is_active":true,"expires_at":"2026-11-22T09:30:00.000000Z","max_requests":10,
             "request_count":3,"requests_per_minute":null,"allowed_models":["a","b*"],"last_used_at":null},
            {"id":"t2","project_id":"p","is_active":true,"expires_at":"2026-11-20T09:30:00.000000Z","max_requests":null,
             "request_count":0,"requests_per_minute":60,"allowed_models":null,"last_used_at":"2026-11-19T01:02:03.000004Z"},
            {"id":"t3","project_id":"p","is_active":false,"expires_at":"2026-11-20T09:30:00.000000Z","max_requests":null,
             "request_count":0,"requests_per_minute":null,"allowed_models":null,"last_used_at":null}
        ],"next_cursor":"c"}"#;
        let expected = "\
ID  PROJECT  STATE    EXPIRES            REQUESTS  PER MINUTE  MODELS  LAST USED
t1  p        active   2026-11-22 09:30Z  3 of 10   -           a, b*   -
t2  p        expired  2026-11-20 09:30Z  0         60          all     2026-11-19 01:02Z
t3  p        revoked  2026-11-20 09:30Z  0         -           all     -

There are more: go on with --cursor c
";
        assert_eq!(View::Tokens.lay_out(answer, NOW).unwrap(), expected);
    }

    #[test]
    fn a_project_shows_its_keys_by_their_ends() {
        let answer = r#"{"id":"p","name":"shop\u001b[2J","is_active":false,"created_at":"2026-11-21T10:00:00.000000Z",
            "provider_keys":[{"api":"openai","last4":"6789"},{"api":"local","last4":""}]}"#;
        let shown = View::Project.lay_out(answer, NOW).unwrap();
        assert!(shown.contains("openai …6789, local"), "{shown}");
        assert!(shown.contains("inactive") && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn a_project_shows_what_is_kept_of_bodies() {
        for (content, row, all) in [
            (r#"{"capture":"metadata","max_bytes":65536,"retention_days":null}"#, "metadata", "metadata\n"),
            (r#"{"capture":"none","max_bytes":1024,"retention_days":30}"#, "none", "none\n"),
            (
                r#"{"capture":"full","max_bytes":1024,"retention_days":1}"#,
                "full",
                "full, up to 1024 bytes of a body, for one day\n",
            ),
            (
                r#"{"capture":"redacted","max_bytes":65536,"retention_days":30}"#,
                "redacted",
                "redacted, up to 65536 bytes of a body, for 30 days\n",
            ),
            (
                r#"{"capture":"redacted","max_bytes":65536,"retention_days":null}"#,
                "redacted",
                "redacted, up to 65536 bytes of a body, without an end\n",
            ),
        ] {
            let answer = format!(r#"{{"id":"p","name":"shop","is_active":true,"content":{content}}}"#);
            let shown = View::Project.lay_out(&answer, NOW).unwrap();
            assert!(shown.contains(&format!("content  {all}")), "{shown}");
            let listed = View::Projects.lay_out(&format!(r#"{{"data":[{answer}]}}"#), NOW).unwrap();
            assert!(listed.contains(&format!("-     {row}")), "{listed}");
        }
    }

    #[test]
    fn sinks_are_a_table() {
        let answer = r#"{"data":[
            {"name":"team","kind":"webhook","health":"down","delivered":10,"duplicates":1,"dead":2,"dropped":0,"retried":3,
             "pending_records":4,"lag_seconds":61.3,"last_error":"503\u001b[2J"},
            {"name":"f","kind":"file","health":"delivering","delivered":5,"duplicates":0,"dead":0,"dropped":0,"retried":0,
             "pending_records":0,"lag_seconds":0.0,"last_error":null}
        ],"next_cursor":null}"#;
        let expected = "\
NAME  KIND     HEALTH      DELIVERED  DUPLICATES  PENDING  LAG     RETRIED  DEAD  DROPPED  LAST ERROR
team  webhook  down        10         1           4        61.3 s  3        2     0        503 [2J
f     file     delivering  5          0           0        0.0 s   0        0     0        -
";
        assert_eq!(View::Sinks.lay_out(answer, NOW).unwrap(), expected);
    }

    #[test]
    fn an_erasure_says_how_much_it_was() {
        let shown = View::Erased.lay_out(r#"{"records":12,"files":3}"#, NOW).unwrap();
        assert_eq!(shown, "erased from 12 records, in 3 files\n");
    }

    #[test]
    fn a_new_token_is_shown_once_and_says_so() {
        let shown = View::NewToken.lay_out(r#"{"id":"t","token":"sk-lp-x","is_active":true}"#, NOW).unwrap();
        assert!(shown.contains("\nsk-lp-x\n") && shown.contains("not shown again"), "{shown}");
    }
}

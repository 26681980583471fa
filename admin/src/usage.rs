//! What was used: requests, tokens, cost and times, added up over a range and told apart as asked.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use llm_proxy_core::histogram::Histogram;
use llm_proxy_plugins::event::{Outcome, Source, TOKEN_CLASSES};
use llm_proxy_store::{DAY_US, GroupBy, HOUR_US, Paged, Period, Totals, UsageGroup, UsageQuery};
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Admin;
use crate::extract::Listing;
use crate::fields;
use crate::listing;
use crate::problem::Problem;
use crate::tokens::catch_up;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Query {
    from: Option<String>,
    to: Option<String>,
    group_by: Option<String>,
    project_id: Option<String>,
    token_id: Option<String>,
    api: Option<String>,
    model: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

/// A list, and the range that it is of.
#[derive(Serialize)]
pub(crate) struct UsageList {
    data: Vec<GroupView>,
    next_cursor: Option<String>,
    from: String,
    to: String,
}

/// A group. Of what it has in common only that is there which was asked to be told apart; null is what is not known.
#[derive(Serialize)]
struct GroupView {
    #[serde(skip_serializing_if = "Option::is_none")]
    hour: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Option<String>>,
    requests: u64,
    outcomes: Named<u64>,
    usage: UsageView,
    cost: CostView,
    latency_ms: TimesView,
    time_to_first_chunk_ms: TimesView,
}

#[derive(Serialize)]
struct UsageView {
    /// By the source of their usage.
    requests: Named<u64>,
    #[serde(flatten)]
    tokens: Named<TokensView>,
}

#[derive(Serialize)]
struct TokensView {
    reported: u64,
    estimated: u64,
}

#[derive(Serialize)]
struct CostView {
    /// Null where no request has a price.
    usd: Option<String>,
    /// Those that have one.
    requests: u64,
}

#[derive(Serialize)]
struct TimesView {
    requests: u64,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

/// An object whose fields stand in this order.
struct Named<T>(Vec<(&'static str, T)>);

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|entry| (entry.0, &entry.1)))
    }
}

/// Groups in the order of hour or day, project, token, API and model, whichever of these are told apart.
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Listing(query): Listing<Query>,
) -> Result<Json<UsageList>, Problem> {
    let page = listing::page(query.cursor, query.limit)?;
    if page.cursor.is_some() && (query.from.is_none() || query.to.is_none()) {
        return Err(Problem::query(
            "`cursor` goes with the `from` and `to` of the answer that it came with: send them too",
        ));
    }
    let (from_us, to_us) = range(query.from.as_deref(), query.to.as_deref(), fields::now_us())?;
    let asked = UsageQuery {
        from_us,
        to_us,
        project_id: filter("project_id", query.project_id)?,
        token_id: filter("token_id", query.token_id)?,
        api: filter("api", query.api)?,
        model: filter("model", query.model)?,
        group_by: query.group_by.as_deref().map(group_by).transpose()?.unwrap_or_default(),
    };
    // Nothing at all would say that a mistyped project or token was not used.
    if let Some(id) = &asked.project_id {
        admin.store.project(id).await?.ok_or_else(Problem::project_not_found)?;
    }
    if let Some(id) = &asked.token_id {
        admin.store.token(id).await?.ok_or_else(Problem::token_not_found)?;
    }
    catch_up(&admin).await;
    let Paged { data, next_cursor } = admin.store.usage(&asked, &page).await?;
    let data = data.into_iter().map(|group| view(group, asked.group_by)).collect();
    Ok(Json(UsageList { data, next_cursor, from: fields::timestamp(from_us), to: fields::timestamp(to_us) }))
}

/// The range that is asked for, in microseconds since the epoch: the day up to the end of this hour, if it is not said.
fn range(from: Option<&str>, to: Option<&str>, now_us: i64) -> Result<(i64, i64), Problem> {
    let to_us = match to {
        Some(text) => full_hour("to", text)?,
        None => now_us.saturating_sub(now_us.checked_rem_euclid(HOUR_US).unwrap_or(0)).saturating_add(HOUR_US),
    };
    let from_us = match from {
        Some(text) => full_hour("from", text)?,
        None => to_us.saturating_sub(DAY_US),
    };
    if from_us >= to_us {
        return Err(Problem::query("`from` must lie before `to` (which is the end of this hour if it is not sent)"));
    }
    Ok((from_us, to_us))
}

/// A moment at which an hour begins. Usage is kept by the hour, and a part of one cannot be told.
fn full_hour(name: &str, text: &str) -> Result<i64, Problem> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        Problem::query(format!(
            "`{name}` must be a time as in RFC 3339, such as 2026-11-21T10:00:00Z (in a URL, + is %2B)"
        ))
    })?;
    let moment_us = i64::try_from(moment.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
    let is_full = moment.nanosecond() == 0 && moment_us.checked_rem_euclid(HOUR_US) == Some(0);
    if !is_full || moment_us < 0 {
        return Err(Problem::query(format!(
            "`{name}` must be a full hour by UTC, such as 2026-11-21T10:00:00Z: usage is kept by the hour"
        )));
    }
    Ok(moment_us)
}

fn filter(name: &str, value: Option<String>) -> Result<Option<String>, Problem> {
    match value {
        Some(text) if text.is_empty() => {
            Err(Problem::query(format!("`{name}` is empty; leave it out for all of them")))
        }
        value => Ok(value),
    }
}

fn group_by(text: &str) -> Result<GroupBy, Problem> {
    let mut group_by = GroupBy::default();
    for name in text.split(',') {
        let was_there = match name {
            "hour" => group_by.period.replace(Period::Hour).is_some(),
            "day" => group_by.period.replace(Period::Day).is_some(),
            "project" => std::mem::replace(&mut group_by.project, true),
            "token" => std::mem::replace(&mut group_by.token, true),
            "api" => std::mem::replace(&mut group_by.api, true),
            "model" => std::mem::replace(&mut group_by.model, true),
            _ => {
                return Err(Problem::query(
                    "`group_by` must be some of project, token, api, model, and hour or day, separated by commas",
                ));
            }
        };
        if was_there {
            return Err(Problem::query("`group_by` names one thing twice, or hour and day together"));
        }
    }
    Ok(group_by)
}

fn view(UsageGroup { key, totals }: UsageGroup, group_by: GroupBy) -> GroupView {
    let period = key.period_us.map(fields::timestamp);
    let (hour, day) = match group_by.period {
        Some(Period::Hour) => (period, None),
        Some(Period::Day) => (None, period),
        None => (None, None),
    };
    let known = |text: String| Some(text).filter(|text| !text.is_empty());
    GroupView {
        hour,
        day,
        project_id: key.project_id.map(known),
        token_id: key.token_id.map(known),
        api: key.api.map(known),
        model: key.model.map(known),
        requests: totals.requests(),
        outcomes: Named(Outcome::ALL.iter().map(|outcome| outcome.name()).zip(totals.outcomes).collect()),
        usage: usage(&totals),
        cost: CostView {
            usd: (totals.priced_requests > 0).then(|| totals.cost.to_string()),
            requests: totals.priced_requests,
        },
        latency_ms: times(&totals.latency_us),
        time_to_first_chunk_ms: times(&totals.first_chunk_us),
    }
}

fn usage(totals: &Totals) -> UsageView {
    // In the order of their codes, as the totals are.
    let sources = [Source::Unknown, Source::Reported, Source::Estimated].map(Source::name);
    let tokens = totals.tokens.map(|sum| TokensView { reported: sum.reported, estimated: sum.estimated });
    UsageView {
        requests: Named(sources.into_iter().zip(totals.sources).collect()),
        tokens: Named(TOKEN_CLASSES.into_iter().zip(tokens).collect()),
    }
}

fn times(histogram: &Histogram) -> TimesView {
    let quantile = |thousandths| histogram.quantile(thousandths).map(|us| us as f64 / 1_000.0);
    TimesView { requests: histogram.count(), p50: quantile(500), p95: quantile(950), p99: quantile(990) }
}

#[cfg(test)]
mod tests {
    use llm_proxy_store::GroupKey;

    use super::*;

    const NOW_US: i64 = 1_795_256_400_123_456; // 2026-11-21T10:20:00.123456Z

    #[test]
    fn a_range_is_of_full_hours_and_a_day_long_unless_said() {
        for (from, to, expected) in [
            (None, None, Some(("2026-11-20T11:00:00.000000Z", "2026-11-21T11:00:00.000000Z"))),
            (Some("2026-11-21T00:00:00Z"), None, Some(("2026-11-21T00:00:00.000000Z", "2026-11-21T11:00:00.000000Z"))),
            (
                None,
                Some("2026-11-01T00:00:00.000Z"),
                Some(("2026-10-31T00:00:00.000000Z", "2026-11-01T00:00:00.000000Z")),
            ),
            (
                Some("2026-11-01T05:30:00+05:30"),
                Some("2026-11-01T00:00:00-01:00"),
                Some(("2026-11-01T00:00:00.000000Z", "2026-11-01T01:00:00.000000Z")),
            ),
            (Some("2026-11-21T10:00:00Z"), Some("2026-11-21T10:00:00Z"), None),
            (Some("2026-11-21T11:00:00Z"), None, None),
            (Some("2026-11-21T10:00:01Z"), None, None),
            (Some("2026-11-21T10:00:00.000000001Z"), None, None),
            (Some("2026-11-21T05:30:00Z"), None, None),
            (Some("2026-11-21T10:00:00"), None, None),
            (Some("2026-11-21T10:00:00 01:00"), None, None),
            (Some("2026-11-21"), None, None),
            (Some("1795255200"), None, None),
            (Some("1969-12-31T23:00:00Z"), None, None),
            (None, Some(""), None),
        ] {
            let found = range(from, to, NOW_US).ok().map(|(from, to)| (fields::timestamp(from), fields::timestamp(to)));
            let expected = expected.map(|(from, to)| (from.to_owned(), to.to_owned()));
            assert_eq!(found, expected, "from {from:?} to {to:?}");
        }
    }

    #[test]
    fn groups_are_named_once() {
        let nothing = GroupBy::default();
        for (text, expected) in [
            ("project", Some(GroupBy { project: true, ..nothing })),
            ("hour", Some(GroupBy { period: Some(Period::Hour), ..nothing })),
            (
                "model,day,api,token",
                Some(GroupBy { period: Some(Period::Day), project: false, token: true, api: true, model: true }),
            ),
            ("", None),
            ("project,", None),
            ("project, token", None),
            ("Project", None),
            ("endpoint", None),
            ("project,project", None),
            ("hour,hour", None),
            ("hour,day", None),
        ] {
            assert_eq!(group_by(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_null_and_fields_stand_in_their_order() {
        let totals = Totals::default();
        let key = GroupKey {
            period_us: Some(0),
            project_id: Some("p".to_owned()),
            model: Some(String::new()),
            ..Default::default()
        };
        let group_by = GroupBy { period: Some(Period::Day), project: true, model: true, ..GroupBy::default() };
        let text = serde_json::to_string(&view(UsageGroup { key, totals }, group_by)).unwrap();
        let begins = concat!(
            r#"{"day":"1970-01-01T00:00:00.000000Z","project_id":"p","model":null,"requests":0,"#,
            r#""outcomes":{"unknown":0,"finished":0,"refused":0,"#
        );
        assert!(text.starts_with(begins), "{text}");
        for part in [
            r#""usage":{"requests":{"unknown":0,"reported":0,"estimated":0},"input_tokens":{"reported":0,"estimated":0}"#,
            r#""cost":{"usd":null,"requests":0},"latency_ms":{"requests":0,"p50":null,"p95":null,"p99":null}"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

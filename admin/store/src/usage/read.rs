//! Asking what was used: rows of a range, added up into groups, a page of these at a time.
//!
//! Groups are made here and not in SQL, because histograms cannot be added there, and because a `GROUP BY` that a caller
//! chooses would be SQL put together at run time. Rows come hour by hour, and only the groups of one page are held:
//! a group that comes behind all of these is not on it, whatever follows.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{DAY_US, HOUR_US, Totals};
use crate::error::StoreError;
use crate::page::{Page, Paged};
use crate::store::Store;

/// Which usage is asked for, and how it is grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageQuery {
    /// The first hour, in microseconds since the epoch. One that began before it is left out.
    pub from_us: i64,
    /// The first hour that is no longer asked for.
    pub to_us: i64,
    /// Only this project's. `None` is all, here and below.
    pub project_id: Option<String>,
    /// Only this token's.
    pub token_id: Option<String>,
    /// Only at this API.
    pub api: Option<String>,
    /// Only of this model.
    pub model: Option<String>,
    /// What is told apart.
    pub group_by: GroupBy,
}

/// What is told apart; everything else is added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBy {
    /// Hours or days.
    pub period: Option<Period>,
    /// Projects.
    pub project: bool,
    /// Tokens.
    pub token: bool,
    /// APIs.
    pub api: bool,
    /// Models.
    pub model: bool,
}

/// A stretch of time, by UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// From full hour to full hour.
    Hour,
    /// From midnight to midnight.
    Day,
}

/// What a group has in common. `None` is what is not told apart; a text that is empty is not known. Groups are ordered
/// by these, from first to last.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// The beginning of the hour or day, in microseconds since the epoch.
    pub period_us: Option<i64>,
    /// The project.
    pub project_id: Option<String>,
    /// The token.
    pub token_id: Option<String>,
    /// The API.
    pub api: Option<String>,
    /// The model.
    pub model: Option<String>,
}

/// A group and its sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageGroup {
    /// What it has in common.
    pub key: GroupKey,
    /// What it adds up to.
    pub totals: Totals,
}

impl Store {
    /// A page of the groups that a query asks for. Where nothing is told apart there is always one, also of nothing.
    /// Looks at every row of the range, or, where periods are told apart, of those on the page.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a cursor that no page of the same grouping gave.
    pub async fn usage(&self, query: &UsageQuery, page: &Page) -> Result<Paged<UsageGroup>, StoreError> {
        let after = page.cursor.as_deref().map(|cursor| query.group_by.key_from(cursor)).transpose()?;
        let begun_us = after.as_ref().and_then(|after| after.period_us);
        // One more than asked tells whether there is a next page.
        let most = usize::try_from(page.rows_to_read()).unwrap_or(usize::MAX);
        let mut first = First { most, groups: BTreeMap::new() };
        let filters = [&query.project_id, &query.token_id, &query.api, &query.model];
        let mut select =
            sqlx::query(SELECT).bind(begun_us.map_or(query.from_us, |us| us.max(query.from_us))).bind(query.to_us);
        for filter in filters {
            select = select.bind(i64::from(filter.is_some())).bind(filter.as_deref().unwrap_or_default());
        }
        let mut rows = select.fetch(self.database().scanner());
        while let Some(row) = rows.try_next().await? {
            let key = query.group_by.key(&row)?;
            if after.as_ref().is_some_and(|after| key <= *after) {
                continue;
            }
            if !first.add(key, || Totals::of_row(&row, KEY_COLUMNS))? {
                break;
            }
        }
        if query.group_by == GroupBy::default() && after.is_none() {
            first.groups.entry(GroupKey::default()).or_default();
        }
        Ok(first.into_page())
    }
}

/// The columns before those of the totals.
const KEY_COLUMNS: usize = 5;
const SELECT: &str = concat!(
    "SELECT hour_us, project_id, token_id, api, model, ",
    columns!(),
    " FROM usage_hours WHERE hour_us >= ? AND hour_us < ? AND (? = 0 OR project_id = ?) \
     AND (? = 0 OR token_id = ?) AND (? = 0 OR api = ?) AND (? = 0 OR model = ?) ORDER BY hour_us"
);

impl GroupBy {
    /// The group of a row.
    fn key(self, row: &SqliteRow) -> Result<GroupKey, StoreError> {
        let period_us = match self.period {
            None => None,
            Some(period) => Some(period.beginning(row.try_get(0)?)),
        };
        let text = |is_told_apart: bool, column: usize| -> Result<Option<String>, StoreError> {
            if is_told_apart { Ok(Some(row.try_get(column)?)) } else { Ok(None) }
        };
        Ok(GroupKey {
            period_us,
            project_id: text(self.project, 1)?,
            token_id: text(self.token, 2)?,
            api: text(self.api, 3)?,
            model: text(self.model, 4)?,
        })
    }

    /// The last group of the page before, as its cursor says.
    fn key_from(self, cursor: &str) -> Result<GroupKey, StoreError> {
        let json = URL_SAFE_NO_PAD.decode(cursor).ok();
        let parts = json.and_then(|json| serde_json::from_slice(&json).ok());
        parts
            .map(|(period_us, project_id, token_id, api, model)| GroupKey {
                period_us,
                project_id,
                token_id,
                api,
                model,
            })
            .filter(|key| self.tells_apart(key))
            .ok_or_else(|| {
                StoreError::Invalid("the cursor is not one that this list gave, grouped like this".to_owned())
            })
    }

    fn tells_apart(self, key: &GroupKey) -> bool {
        key.period_us.is_some() == self.period.is_some()
            && key.project_id.is_some() == self.project
            && key.token_id.is_some() == self.token
            && key.api.is_some() == self.api
            && key.model.is_some() == self.model
    }
}

impl GroupKey {
    fn cursor(&self) -> Option<String> {
        let parts = (self.period_us, &self.project_id, &self.token_id, &self.api, &self.model);
        serde_json::to_vec(&parts).ok().map(|json| URL_SAFE_NO_PAD.encode(json))
    }
}

impl Period {
    /// When the period of an hour began.
    fn beginning(self, hour_us: i64) -> i64 {
        let length_us = match self {
            Self::Hour => HOUR_US,
            Self::Day => DAY_US,
        };
        hour_us.saturating_sub(hour_us.checked_rem_euclid(length_us).unwrap_or(0))
    }
}

/// The first groups, of however many there are.
struct First {
    /// How many; above zero.
    most: usize,
    groups: BTreeMap<GroupKey, Totals>,
}

impl First {
    /// Adds a row to its group if that is among the first so far. False: nothing that follows can be, as rows come in
    /// the order of their hours.
    fn add(&mut self, key: GroupKey, totals: impl FnOnce() -> Result<Totals, StoreError>) -> Result<bool, StoreError> {
        if let Some(sum) = self.groups.get_mut(&key) {
            sum.merge(&totals()?);
            return Ok(true);
        }
        if self.groups.len() >= self.most {
            if let Some((last, _)) = self.groups.last_key_value()
                && key > *last
            {
                return Ok(key.period_us == last.period_us);
            }
            // It comes before the last one, which will not come back: whatever follows only brings the end nearer.
            self.groups.pop_last();
        }
        self.groups.insert(key, totals()?);
        Ok(true)
    }

    fn into_page(mut self) -> Paged<UsageGroup> {
        let has_more = self.groups.len() >= self.most;
        if has_more {
            self.groups.pop_last();
        }
        let next_cursor = self.groups.last_key_value().filter(|_| has_more).and_then(|(key, _)| key.cursor());
        let data = self.groups.into_iter().map(|(key, totals)| UsageGroup { key, totals });
        Paged { data: data.collect(), next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OTHER_MODEL, Stretch, UsageKey};
    use super::*;
    use crate::testing::Fixture;

    /// One finished request, in the third hour of the second day, say.
    fn row(day: i64, hour: i64, project: &str, token: &str, model: &str) -> (UsageKey, Totals) {
        let key = UsageKey {
            hour_us: day * DAY_US + hour * HOUR_US,
            project_id: project.to_owned(),
            token_id: token.to_owned(),
            api: "openai".to_owned(),
            model: model.to_owned(),
        };
        let mut totals = Totals::default();
        totals.outcomes[1] = 1;
        totals.latency_us.record(u64::try_from(hour).unwrap());
        (key, totals)
    }

    async fn filled(usage: Vec<(UsageKey, Totals)>) -> Fixture {
        let fixture = Fixture::new().await;
        let stretch = Stretch { up_to_seq: 1, usage, ..Stretch::default() };
        assert_eq!(fixture.store.count("journal", stretch).await.unwrap(), 1);
        fixture
    }

    fn some_rows() -> Vec<(UsageKey, Totals)> {
        vec![
            row(1, 0, "p", "t1", "a"),
            row(1, 0, "p", "t2", "b"),
            row(1, 23, "p", "t1", "b"),
            row(2, 3, "q", "t3", "a"),
            row(2, 3, "", "", ""),
            row(2, 4, "q", "t3", OTHER_MODEL),
        ]
    }

    /// The groups as `day/hour project token model: requests`, what is not told apart left out.
    fn lines(groups: &[UsageGroup]) -> Vec<String> {
        let line = |group: &UsageGroup| {
            let key = &group.key;
            let period = key.period_us.map(|us| format!("{}/{}", us / DAY_US, us % DAY_US / HOUR_US));
            let texts = [&key.project_id, &key.token_id, &key.api, &key.model].map(Clone::clone);
            let parts: Vec<String> = [period].into_iter().chain(texts).flatten().collect();
            format!("{}: {}", parts.join(" "), group.totals.requests())
        };
        groups.iter().map(line).collect()
    }

    async fn all(fixture: &Fixture, query: &UsageQuery) -> Vec<UsageGroup> {
        let page = Page { cursor: None, limit: 1_000 };
        let Paged { data, next_cursor } = fixture.store.usage(query, &page).await.unwrap();
        assert_eq!(next_cursor, None);
        data
    }

    fn everything(group_by: GroupBy) -> UsageQuery {
        UsageQuery { to_us: i64::MAX, group_by, ..UsageQuery::default() }
    }

    const NOTHING: GroupBy = GroupBy { period: None, project: false, token: false, api: false, model: false };

    #[tokio::test]
    async fn what_is_not_told_apart_is_added_up() {
        let fixture = filled(some_rows()).await;
        for (group_by, expected) in [
            (NOTHING, &[": 6"][..]),
            (GroupBy { api: true, ..NOTHING }, &["openai: 6"]),
            (GroupBy { project: true, ..NOTHING }, &[": 1", "p: 3", "q: 2"]),
            (GroupBy { model: true, ..NOTHING }, &[": 1", "a: 2", "b: 2", "other: 1"]),
            (GroupBy { period: Some(Period::Day), ..NOTHING }, &["1/0: 3", "2/0: 3"]),
            (
                GroupBy { period: Some(Period::Hour), project: true, ..NOTHING },
                &["1/0 p: 2", "1/23 p: 1", "2/3 : 1", "2/3 q: 1", "2/4 q: 1"],
            ),
            (
                GroupBy { period: Some(Period::Day), token: true, ..NOTHING },
                &["1/0 t1: 2", "1/0 t2: 1", "2/0 : 1", "2/0 t3: 2"],
            ),
        ] {
            assert_eq!(lines(&all(&fixture, &everything(group_by)).await), expected, "{group_by:?}");
        }
        let groups = all(&fixture, &everything(NOTHING)).await;
        assert_eq!(groups[0].totals.latency_us.to_string(), "0:2 3:2 4:1 19:1");
    }

    #[tokio::test]
    async fn a_range_is_half_open_and_filters_hold_together() {
        let fixture = filled(some_rows()).await;
        let of = |day: i64, hour: i64| day * DAY_US + hour * HOUR_US;
        let some = |text: &str| Some(text.to_owned());
        let all_time = everything(NOTHING);
        for (query, expected) in [
            (UsageQuery { from_us: of(1, 0), to_us: of(1, 23), ..all_time.clone() }, ": 2"),
            (UsageQuery { from_us: of(1, 1), to_us: of(2, 4), ..all_time.clone() }, ": 3"),
            (UsageQuery { from_us: of(3, 0), ..all_time.clone() }, ": 0"),
            (UsageQuery { project_id: some("p"), ..all_time.clone() }, ": 3"),
            (UsageQuery { token_id: some("t1"), model: some("b"), ..all_time.clone() }, ": 1"),
            (UsageQuery { api: some("openai"), model: some("a"), ..all_time.clone() }, ": 2"),
            (UsageQuery { api: some("azure"), ..all_time.clone() }, ": 0"),
        ] {
            assert_eq!(lines(&all(&fixture, &query).await), [expected], "{query:?}");
        }
    }

    #[tokio::test]
    async fn pages_hold_every_group_once_and_in_order() {
        let rows = (0..40).map(|n| row(n % 3, n % 5, &format!("p{}", n % 2), &format!("t{}", n % 7), "a"));
        let fixture = filled(rows.collect()).await;
        let by_all = GroupBy { period: Some(Period::Hour), project: true, token: true, api: true, model: true };
        for group_by in [
            by_all,
            GroupBy { period: Some(Period::Day), ..by_all },
            GroupBy { period: None, ..by_all },
            GroupBy { token: true, ..NOTHING },
        ] {
            let query = everything(group_by);
            let expected = all(&fixture, &query).await;
            assert!(expected.is_sorted_by_key(|group| group.key.clone()));
            for limit in [1, 2, 7, 40] {
                let (mut groups, mut cursor) = (Vec::new(), None);
                loop {
                    let paged = fixture.store.usage(&query, &Page { cursor, limit }).await.unwrap();
                    assert!(paged.data.len() <= usize::try_from(limit).unwrap());
                    groups.extend(paged.data);
                    cursor = paged.next_cursor;
                    if cursor.is_none() {
                        break;
                    }
                }
                assert_eq!(groups, expected, "{group_by:?}, {limit} a page");
            }
        }
    }

    #[tokio::test]
    async fn a_cursor_is_good_for_its_own_grouping_only() {
        let fixture = filled(some_rows()).await;
        let by_model = everything(GroupBy { model: true, ..NOTHING });
        let page = fixture.store.usage(&by_model, &Page { cursor: None, limit: 1 }).await.unwrap();
        let by_token = everything(GroupBy { token: true, ..NOTHING });
        let cursors = [page.next_cursor.as_deref().unwrap(), "", "x", "bnVsbA", "WzEsMl0"];
        for cursor in cursors {
            let page = Page { cursor: Some(cursor.to_owned()), limit: 1 };
            let refused = fixture.store.usage(&by_token, &page).await;
            assert!(matches!(refused, Err(StoreError::Invalid(_))), "{cursor}");
        }
    }

    #[tokio::test]
    async fn a_row_that_others_have_damaged_is_told_of() {
        let fixture = filled(some_rows()).await;
        fixture.sql("UPDATE usage_hours SET latency_histogram = 'x' WHERE token_id = 't1'").await;
        let refused = fixture.store.usage(&everything(NOTHING), &Page { cursor: None, limit: 1 }).await;
        assert!(matches!(refused, Err(StoreError::Corrupt(_))));
        let others = UsageQuery { token_id: Some("t2".to_owned()), ..everything(NOTHING) };
        assert_eq!(lines(&all(&fixture, &others).await), [": 1"]);
    }
}

//! Content that was kept of bodies, and its erasure: for somebody who has the right to be forgotten, or for a secret
//! that went where it should not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::Admin;
use crate::audit::{self, Caller, Deed, Subject};
use crate::extract::{Sent, present};
use crate::fields;
use crate::problem::Problem;

/// Most events that one request names.
const MAX_EVENTS: usize = 1_000;

/// Whose content is to be erased: what fulfils all that is said here. Something always is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EraseRequest {
    /// Of this project only.
    pub project_id: Option<String>,
    /// Of exchanges received before this moment only, in microseconds since the epoch.
    pub before_us: Option<i64>,
    /// Of these only, unless it is empty; at most 1,000.
    pub event_ids: Vec<Uuid>,
}

/// What was erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Records that had content and have none any more.
    pub records: u64,
    /// Files that were written anew for it.
    pub files: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EraseBody {
    // A null is refused: what it was meant to narrow would be erased as a whole.
    #[serde(default, deserialize_with = "present")]
    project_id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    before: Option<String>,
    #[serde(default, deserialize_with = "present")]
    event_ids: Option<Vec<String>>,
}

/// What the event of an erasure tells: what was asked for, and what came of it.
#[derive(Serialize)]
struct Deleted<'a> {
    project_id: Option<&'a str>,
    before: Option<String>,
    event_ids: &'a [Uuid],
    #[serde(flatten)]
    erased: Erased,
}

/// Erases content for ever. The records themselves stay, with all their numbers.
pub(crate) async fn erase(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Sent(body): Sent<EraseBody>,
) -> Result<Json<Erased>, Problem> {
    let request = body.checked()?;
    if let Some(id) = &request.project_id {
        // Nothing erased would say that a mistyped project has no content.
        admin.store.project(id).await?.ok_or_else(Problem::project_not_found)?;
    }
    // To its end, also when the caller goes away meanwhile: what is erased is to be told of.
    let erasing = tokio::spawn(async move { erase_and_tell(&admin, &caller, request).await });
    match erasing.await {
        Ok(erased) => erased.map(Json),
        Err(error) => {
            tracing::error!(%error, "Content was not erased");
            Err(Problem::internal())
        }
    }
}

/// An erasure of which nothing can be told is answered with an error: sent again, it finds nothing more to erase, and is
/// told of then.
async fn erase_and_tell(admin: &Admin, caller: &Caller, request: EraseRequest) -> Result<Erased, Problem> {
    let erased = (admin.erase)(request.clone()).await.map_err(|reason| {
        tracing::error!(%reason, "Content was not erased");
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_erased",
            "some of the content could not be erased and may still be there; the log has the reason. Send the request \
             again: what is erased already stays so",
        )
    })?;
    let deleted = Deleted {
        project_id: request.project_id.as_deref(),
        before: request.before_us.map(fields::timestamp),
        event_ids: &request.event_ids,
        erased,
    };
    let subject = Subject {
        resource: "content",
        project_id: request.project_id.clone(),
        after: audit::json(&deleted),
        ..Subject::default()
    };
    admin.store.add_to_outbox(caller.tell(Deed("content.erase", StatusCode::OK), subject)).await?;
    Ok(erased)
}

impl EraseBody {
    fn checked(self) -> Result<EraseRequest, Problem> {
        if self.project_id.is_none() && self.before.is_none() && self.event_ids.is_none() {
            return Err(Problem::field("name what is to be erased: `project_id`, `before`, `event_ids` or several"));
        }
        Ok(EraseRequest {
            project_id: self.project_id,
            before_us: self.before.as_deref().map(moment).transpose()?,
            event_ids: self.event_ids.map(event_ids).transpose()?.unwrap_or_default(),
        })
    }
}

/// A moment in microseconds since the epoch.
fn moment(text: &str) -> Result<i64, Problem> {
    let refused = || Problem::field("`before` must be a time as in RFC 3339, such as 2026-11-21T10:00:00Z");
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| refused())?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).map_err(|_| refused())
}

fn event_ids(texts: Vec<String>) -> Result<Vec<Uuid>, Problem> {
    if !(1..=MAX_EVENTS).contains(&texts.len()) {
        return Err(Problem::field(format!("`event_ids` must have 1 to {MAX_EVENTS} entries")));
    }
    let read = |(place, text): (usize, &String)| {
        let refused = || Problem::field(format!("`event_ids[{place}]` must be the id of a record, a UUID"));
        Uuid::parse_str(text).map_err(|_| refused())
    };
    texts.iter().enumerate().map(read).collect()
}

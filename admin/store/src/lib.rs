//! The memory of llm-proxy: projects, provider keys and tokens in SQL, with what the data plane needs from them.
//!
//! Four promises are kept here because only a transaction can keep them:
//! * **No request over `max_requests`**: replicas take leases with one conditional update ([`Store::renew_lease`]).
//! * **No change unheard**: a mutation and its row in the change feed commit together, numbered by a counter row that
//!   the same transaction locks, so that a follower never skips one ([`Store::changes_after`]).
//! * **No count twice**: what the journal tells commits together with the journal's cursor ([`Store::count`]).
//! * **No change untold**: what an administrator changes and what tells of it commit together ([`Store::audited`]).
//!
//! Provider keys are sealed before they reach SQL and are opened only for [`Store::holder`]. A stolen database without
//! the root key opens no provider key and confirms no leaked token.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test may be blunt"))]

mod changes;
mod content;
mod database;
mod error;
mod holder;
mod leases;
mod migrations;
mod outbox;
mod page;
mod projects;
mod provider_keys;
mod root_key;
mod seal;
mod secrets;
mod store;
#[cfg(test)]
mod testing;
mod tokens;
mod usage;
mod writable;

pub use changes::{Change, ChangeKind};
pub use content::{ContentChange, ContentPolicy};
pub use error::StoreError;
pub use holder::Holder;
pub use leases::{Count, Lease};
pub use outbox::{AuditEntry, Mutation};
pub use page::{Page, Paged};
pub use projects::{NewProject, Project, ProjectChange};
pub use provider_keys::ProviderKeyInfo;
pub use root_key::{RootKey, RootKeyError};
pub use store::Store;
pub use tokens::{NewToken, Revoked, Token, TokenChange};
pub use usage::{
    DAY_US, GroupBy, GroupKey, HOUR_US, MOST_MODELS, OTHER_MODEL, Period, Stretch, TokenSum, Totals, UsageGroup,
    UsageKey, UsageQuery,
};

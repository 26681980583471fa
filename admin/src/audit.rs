//! What administrators do, as events: who did what to what, from where, and how it was before and after.
//!
//! The event of a change is made inside the change's own transaction and committed with it ([`Store::audited`]); the
//! [`Courier`](crate::Courier) brings it to the journal. It shows resources as the API shows them, so nothing is in it
//! that an answer would not tell: no token, and of provider keys the last four characters.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath};
use http::request::Parts;
use http::{Method, StatusCode};
use llm_proxy_plugins::event::{AdminAction, Exchange, Message};
use llm_proxy_store::{AuditEntry, Mutation, Store};
use serde::Serialize;
use uuid::Uuid;

use crate::Admin;
use crate::fields::now_us;
use crate::projects::{ProjectView, RevokedView};
use crate::tokens::TokenView;

/// Whoever holds the management token. There are no other administrators.
const ACTOR: &str = "management_token";

/// Who opened the connection that a request came by. Put beside it by the listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Who asks, and in which request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// As records may have it.
    address: Option<String>,
    method: Method,
    /// The route's template.
    endpoint: String,
}

impl FromRequestParts<Arc<Admin>> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin>) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>();
        let endpoint = parts.extensions.get::<MatchedPath>().map_or(parts.uri.path(), MatchedPath::as_str);
        Ok(Self {
            address: peer.and_then(|Peer(address)| (admin.client_address)(address.to_canonical())),
            method: parts.method.clone(),
            endpoint: endpoint.to_owned(),
        })
    }
}

/// One thing done, with the status that its success is answered with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deed(pub(crate) &'static str, pub(crate) StatusCode);

/// What it was done to.
#[derive(Default)]
pub(crate) struct Subject {
    pub(crate) resource: &'static str,
    pub(crate) id: Option<String>,
    pub(crate) project_id: Option<String>,
    pub(crate) token_id: Option<String>,
    /// JSON.
    pub(crate) before: Option<Vec<u8>>,
    /// JSON.
    pub(crate) after: Option<Vec<u8>>,
}

impl Admin {
    /// The store, with whatever is changed by it told of as this deed of this caller.
    pub(crate) fn audited(&self, caller: Caller, deed: Deed) -> Store {
        self.store.audited(move |mutation| caller.tell(deed, Subject::of(mutation)))
    }
}

impl Caller {
    /// The event, as it goes to the outbox.
    pub(crate) fn tell(&self, Deed(name, status): Deed, subject: Subject) -> AuditEntry {
        let Subject { resource, id: resource_id, project_id, token_id, before, after } = subject;
        let (id, time_us) = (Uuid::now_v7(), now_us());
        let action = AdminAction {
            action: name.to_owned(),
            actor: ACTOR.to_owned(),
            resource: resource.to_owned(),
            resource_id,
            before_json: before,
            after_json: after,
        };
        let event = Exchange::of_admin(
            id,
            time_us,
            action,
            project_id,
            token_id,
            self.address.clone(),
            status.as_u16(),
            self.method.as_str(),
            &self.endpoint,
        );
        AuditEntry { id, time_us, payload: event.encode_to_vec() }
    }
}

impl Subject {
    fn of(mutation: &Mutation<'_>) -> Self {
        match *mutation {
            Mutation::Project { before, after } => Self {
                resource: "project",
                id: Some(after.id.clone()),
                project_id: Some(after.id.clone()),
                before: before.and_then(|project| json(&ProjectView::from(project.clone()))),
                after: json(&ProjectView::from(after.clone())),
                ..Self::default()
            },
            Mutation::Token { before, after } => Self {
                resource: "token",
                id: Some(after.id.clone()),
                project_id: Some(after.project_id.clone()),
                token_id: Some(after.id.clone()),
                before: before.and_then(|token| json(&TokenView::from(token.clone()))),
                after: json(&TokenView::from(after.clone())),
            },
            Mutation::TokensRevoked { project_id, revoked } => Self {
                resource: "project",
                id: Some(project_id.to_owned()),
                project_id: Some(project_id.to_owned()),
                after: json(&RevokedView::from(*revoked)),
                ..Self::default()
            },
        }
    }
}

/// What an answer would show.
pub(crate) fn json(view: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(view).ok()
}

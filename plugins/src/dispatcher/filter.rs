//! Which events a sink is meant to get.
//!
//! Sampling is decided by the event's id and by nothing else: the same event is kept or left out on every host, after
//! every restart, and by every sink with the same share, so that what one sink has can be looked up in another.

use llm_proxy_core::policy::Glob;
use uuid::Uuid;

use crate::event::{EventType, Exchange, Outcome};

/// What a sink gets: what `only` describes, without what `except` describes, and of that a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `None`: everything.
    pub only: Option<Match>,
    /// `None`: nothing.
    pub except: Option<Match>,
    /// The share that is kept.
    pub sample: Sample,
}

impl Filter {
    /// Whether the sink is meant to get this event.
    pub fn keeps(&self, id: Uuid, exchange: &Exchange) -> bool {
        self.only.as_ref().is_none_or(|only| only.describes(exchange))
            && !self.except.as_ref().is_some_and(|except| except.describes(exchange))
            && self.sample.keeps(id)
    }
}

/// A description of events. Each list that is not empty must have the event's value; an empty one says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// What the event tells of.
    pub types: Vec<EventType>,
    /// Project ids.
    pub projects: Vec<String>,
    /// Names of APIs.
    pub apis: Vec<String>,
    /// Globs over the model that answered, or else the one that was asked for.
    pub models: Vec<Glob>,
    /// How the exchange ended.
    pub outcomes: Vec<Outcome>,
}

impl Match {
    /// Whether every list that says something has the event's value.
    pub fn describes(&self, exchange: &Exchange) -> bool {
        let has = |list: &[String], value: Option<&String>| {
            list.is_empty() || value.is_some_and(|value| list.contains(value))
        };
        let model = exchange.model.as_ref().or(exchange.model_requested.as_ref());
        (self.types.is_empty() || self.types.contains(&exchange.r#type()))
            && has(&self.projects, exchange.project_id.as_ref())
            && has(&self.apis, exchange.api.as_ref())
            && (self.models.is_empty() || model.is_some_and(|model| self.models.iter().any(|glob| glob.matches(model))))
            && (self.outcomes.is_empty() || self.outcomes.contains(&exchange.outcome()))
    }
}

/// A share of all events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of 2^32 values that the checksum of an id can have, how many are kept.
    kept: u64,
}

impl Sample {
    /// The share that keeps `ratio` of all events, 0 to 1; `None` for any other number.
    pub fn new(ratio: f64) -> Option<Self> {
        // A float has room for 2^32 and everything below.
        (0.0..=1.0).contains(&ratio).then_some(Self { kept: (ratio * 4_294_967_296.0) as u64 })
    }

    /// Whether this event is kept.
    pub fn keeps(self, id: Uuid) -> bool {
        u64::from(crc32c::crc32c(id.as_bytes())) < self.kept
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { kept: 1 << 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange() -> Exchange {
        Exchange {
            project_id: Some("blue".to_owned()),
            api: Some("openai".to_owned()),
            model_requested: Some("gpt-4o".to_owned()),
            outcome: Outcome::Finished.into(),
            ..Exchange::default()
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_list_that_says_something_must_have_the_value() {
        let models = |globs: &[&str]| globs.iter().map(|glob| Glob::new(glob)).collect::<Vec<_>>();
        for (description, expected) in [
            (Match::default(), true),
            (Match { projects: names(&["red", "blue"]), ..Match::default() }, true),
            (Match { projects: names(&["red"]), ..Match::default() }, false),
            (Match { apis: names(&["openai"]), projects: names(&["blue"]), ..Match::default() }, true),
            (Match { apis: names(&["gemini"]), projects: names(&["blue"]), ..Match::default() }, false),
            (Match { models: models(&["claude*", "gpt-4*"]), ..Match::default() }, true),
            (Match { models: models(&["claude*"]), ..Match::default() }, false),
            (Match { outcomes: vec![Outcome::Finished], ..Match::default() }, true),
            (Match { outcomes: vec![Outcome::Refused], ..Match::default() }, false),
            (Match { types: vec![EventType::Exchange], ..Match::default() }, true),
            (Match { types: vec![EventType::Admin], ..Match::default() }, false),
        ] {
            assert_eq!(description.describes(&exchange()), expected, "{description:?}");
        }
        let answered = Exchange { model: Some("claude-4".to_owned()), ..exchange() };
        assert!(Match { models: models(&["claude*"]), ..Match::default() }.describes(&answered));
        let bare = Exchange::default();
        assert!(!Match { projects: names(&["blue"]), ..Match::default() }.describes(&bare));
    }

    #[test]
    fn a_filter_takes_only_and_leaves_except() {
        let of = |project: &str| Match { projects: names(&[project]), ..Match::default() };
        for (only, except, expected) in [
            (None, None, true),
            (Some(of("blue")), None, true),
            (Some(of("red")), None, false),
            (None, Some(of("blue")), false),
            (Some(of("blue")), Some(of("blue")), false),
            (Some(of("blue")), Some(of("red")), true),
        ] {
            let filter = Filter { only, except, sample: Sample::default() };
            assert_eq!(filter.keeps(Uuid::nil(), &exchange()), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_sample_keeps_its_share_and_always_the_same_events() {
        let ids: Vec<_> = (0..20_000).map(|_| Uuid::now_v7()).collect();
        for (ratio, least, most) in [(0.0, 0, 0), (0.1, 1_700, 2_300), (0.5, 9_500, 10_500), (1.0, 20_000, 20_000)] {
            let sample = Sample::new(ratio).unwrap();
            let kept: Vec<_> = ids.iter().filter(|id| sample.keeps(**id)).collect();
            assert!((least..=most).contains(&kept.len()), "{} of 20,000 at {ratio}", kept.len());
            assert!(kept.iter().all(|id| Sample::new(ratio).unwrap().keeps(**id)));
        }
        // A larger share has everything that a smaller one has.
        let (small, large) = (Sample::new(0.1).unwrap(), Sample::new(0.3).unwrap());
        assert!(ids.iter().all(|id| !small.keeps(*id) || large.keeps(*id)));
        for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Sample::new(ratio), None, "{ratio}");
        }
    }
}

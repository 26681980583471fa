//! Models that a request names beside `model`.
//!
//! `models` and `fallbacks` list those to fall back to (OpenRouter API reference, "Model Fallbacks"; Anthropic's server-side
//! fallback), and a tool has a `model` of its own where it draws (OpenAI API reference, responses, `image_generation`) or
//! advises (Anthropic's advisor tool). What holds for a model holds for each.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::members::{Text, Wanted, decoded};
use crate::policy::Naming;

/// Models that cannot be judged, because a provider could see others than we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnclearModels {
    /// `models` is something else than a list of texts.
    #[error("`models` is not a list of texts")]
    Models,
    /// `fallbacks` is something else than a list of texts, or of objects that each have one `model`.
    #[error("`fallbacks` is not a list of models")]
    Fallbacks,
    /// `tools` is neither `null` nor a list, or a tool has a `model` that is no text, stands there twice, or is spelled
    /// in another letter case.
    #[error("`tools` is not a list, or has a `model` that is no text, stands there twice, or not in small letters")]
    Tools,
}

/// Gives every model of `models`, a JSON text.
///
/// # Errors
/// [`UnclearModels::Models`]; some may have been given by then.
pub(crate) fn in_list(models: &str, take: impl FnMut(&str)) -> Result<(), UnclearModels> {
    let mut reader = serde_json::Deserializer::from_str(models);
    reader.deserialize_seq(List(take)).map_err(|_| UnclearModels::Models)
}

/// Gives the model of every tool of `tools`, a JSON text, that has one. `null` is none.
///
/// # Errors
/// [`UnclearModels::Tools`]; some may have been given by then.
pub(crate) fn in_tools(tools: &str, take: impl FnMut(&str)) -> Result<(), UnclearModels> {
    if tools == "null" {
        return Ok(());
    }
    let mut reader = serde_json::Deserializer::from_str(tools);
    reader.deserialize_seq(Tools(take)).map_err(|_| UnclearModels::Tools)
}

/// Gives every model of `fallbacks`, a JSON text: each a text, or the `model` of an object. `null` is none.
///
/// # Errors
/// [`UnclearModels::Fallbacks`]; some may have been given by then.
pub(crate) fn in_fallbacks(fallbacks: &str, mut take: impl FnMut(&str)) -> Result<(), UnclearModels> {
    let unclear = UnclearModels::Fallbacks;
    if fallbacks == "null" {
        return Ok(());
    }
    let items: Vec<&RawValue> = serde_json::from_str(fallbacks).map_err(|_| unclear)?;
    for item in items {
        match item.get().as_bytes().first() {
            Some(b'"') => take(&decoded(item.get()).map_err(|_| unclear)?),
            Some(b'{') => {
                let mut count = 0u32;
                let counted = |model: &str| {
                    count = count.saturating_add(1);
                    take(model);
                };
                in_tools(&format!("[{}]", item.get()), counted).map_err(|_| unclear)?;
                if count != 1 {
                    return Err(unclear);
                }
            }
            _ => return Err(unclear),
        }
    }
    Ok(())
}

struct List<F>(F);

impl<'de, F: FnMut(&str)> Visitor<'de> for List<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut models: A) -> Result<(), A::Error> {
        while let Some(model) = models.next_element_seed(Text)? {
            (self.0)(&model);
        }
        Ok(())
    }
}

struct Tools<F>(F);

impl<'de, F: FnMut(&str)> Visitor<'de> for Tools<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of tools")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut tools: A) -> Result<(), A::Error> {
        loop {
            let mut found: [Option<&'de str>; 1] = [None];
            let mut twice = None;
            let tool = Wanted { naming: Naming::Exact, names: &["model"], found: &mut found, twice: &mut twice };
            if tools.next_element_seed(tool)?.is_none() {
                return Ok(());
            }
            let [model] = found;
            if let Some(model) = model.filter(|model| *model != "null") {
                (self.0)(&decoded(model).map_err(A::Error::custom)?);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(
        read: impl FnOnce(&mut dyn FnMut(&str)) -> Result<(), UnclearModels>,
    ) -> Result<Vec<String>, UnclearModels> {
        let mut models = Vec::new();
        read(&mut |model| models.push(model.to_owned()))?;
        Ok(models)
    }

    #[test]
    fn a_list_of_models_is_one_of_texts() {
        for (json, expected) in [
            ("[]", Ok(vec![])),
            (r#"[ "a" , "b\u002fc" ]"#, Ok(vec!["a", "b/c"])),
            (r#""a""#, Err(UnclearModels::Models)),
            ("null", Err(UnclearModels::Models)),
            (r#"{"0":"a"}"#, Err(UnclearModels::Models)),
            (r#"["a",null]"#, Err(UnclearModels::Models)),
            (r#"["a",["b"]]"#, Err(UnclearModels::Models)),
            (r#"["a",{"model":"b"}]"#, Err(UnclearModels::Models)),
            (r#"["\ud800"]"#, Err(UnclearModels::Models)),
        ] {
            let expected = expected.map(|models| models.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(given(|take| in_list(json, take)), expected, "{json}");
        }
    }

    #[test]
    fn fallbacks_are_models_or_have_one_each() {
        for (json, expected) in [
            ("null", Ok(vec![])),
            ("[]", Ok(vec![])),
            (r#"["a", {"x":1,"model":"b"} ,"\u0063"]"#, Ok(vec!["a", "b", "c"])),
            (r#""a""#, Err(UnclearModels::Fallbacks)),
            (r#"{"model":"a"}"#, Err(UnclearModels::Fallbacks)),
            (r#"[{"x":1}]"#, Err(UnclearModels::Fallbacks)),
            (r#"[{"model":null}]"#, Err(UnclearModels::Fallbacks)),
            (r#"[{"model":"a","model":"b"}]"#, Err(UnclearModels::Fallbacks)),
            (r#"[{"MODEL":"a"}]"#, Err(UnclearModels::Fallbacks)),
            (r#"[["a"]]"#, Err(UnclearModels::Fallbacks)),
            (r#"["\ud800"]"#, Err(UnclearModels::Fallbacks)),
            ("[1]", Err(UnclearModels::Fallbacks)),
        ] {
            let expected = expected.map(|models| models.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(given(|take| in_fallbacks(json, take)), expected, "{json}");
        }
    }

    #[test]
    fn a_tools_model_is_its_own_and_one_text() {
        for (json, expected) in [
            ("null", Ok(vec![])),
            ("[]", Ok(vec![])),
            (r#"[{"type":"function","parameters":{"model":"no","model":1}},"model",["model"],7]"#, Ok(vec![])),
            (r#"[{"type":"image_generation","model":null}]"#, Ok(vec![])),
            (r#"[{"mod\u0065l" : "a"},{"x":1,"x":2,"model":"\u0062"}]"#, Ok(vec!["a", "b"])),
            (r#"[{"model":"a","model":"a"}]"#, Err(UnclearModels::Tools)),
            (r#"[{"Model":"a"}]"#, Err(UnclearModels::Tools)),
            (r#"[{"model":["a"]}]"#, Err(UnclearModels::Tools)),
            (r#"[{"model":"\ud800"}]"#, Err(UnclearModels::Tools)),
            (r#"{"model":"a"}"#, Err(UnclearModels::Tools)),
            (r#""a""#, Err(UnclearModels::Tools)),
            ("true", Err(UnclearModels::Tools)),
        ] {
            let expected = expected.map(|models| models.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(given(|take| in_tools(json, take)), expected, "{json}");
        }
    }
}

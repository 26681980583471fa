//! Attributes of a span, put together one by one. What is not known is left out: OTLP has no null.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};

/// Attributes in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<KeyValue>);

impl Attributes {
    pub fn text(&mut self, name: &str, value: Option<impl Into<String>>) {
        self.add(name, value.map(|value| Value::StringValue(value.into())));
    }

    pub fn texts(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        let values = values.into_iter().map(|value| AnyValue { value: Some(Value::StringValue(value)) });
        let values: Vec<_> = values.collect();
        self.add(name, (!values.is_empty()).then_some(Value::ArrayValue(ArrayValue { values })));
    }

    /// A number past what OTLP can express is the largest that it can.
    pub fn count(&mut self, name: &str, value: Option<u64>) {
        self.whole(name, value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
    }

    pub fn whole(&mut self, name: &str, value: Option<i64>) {
        self.add(name, value.map(Value::IntValue));
    }

    pub fn fraction(&mut self, name: &str, value: Option<f64>) {
        self.add(name, value.map(Value::DoubleValue));
    }

    pub fn truth(&mut self, name: &str, value: Option<bool>) {
        self.add(name, value.map(Value::BoolValue));
    }

    pub fn into_list(self) -> Vec<KeyValue> {
        self.0
    }

    fn add(&mut self, name: &str, value: Option<Value>) {
        if value.is_some() {
            self.0.push(KeyValue { key: name.to_owned(), value: Some(AnyValue { value }), ..KeyValue::default() });
        }
    }
}

/// Attributes as JSON, to compare them in tests.
#[cfg(test)]
pub(super) fn as_json(attributes: &[KeyValue]) -> serde_json::Map<String, serde_json::Value> {
    fn value(found: &AnyValue) -> serde_json::Value {
        match found.value.as_ref().unwrap() {
            Value::StringValue(text) => text.as_str().into(),
            Value::BoolValue(truth) => (*truth).into(),
            Value::IntValue(number) => (*number).into(),
            Value::DoubleValue(number) => (*number).into(),
            Value::ArrayValue(list) => list.values.iter().map(value).collect(),
            other => panic!("{other:?}"),
        }
    }
    attributes.iter().map(|pair| (pair.key.clone(), value(pair.value.as_ref().unwrap()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_left_out_and_types_are_kept() {
        let mut attributes = Attributes::default();
        attributes.text("a", Some("x"));
        attributes.text("b", None::<String>);
        attributes.texts("c", []);
        attributes.texts("d", ["y".to_owned()]);
        attributes.count("e", Some(u64::MAX));
        attributes.count("f", None);
        attributes.whole("g", Some(-1));
        attributes.fraction("h", Some(0.5));
        attributes.truth("i", Some(false));
        let expected = json!({"a": "x", "d": ["y"], "e": i64::MAX, "g": -1, "h": 0.5, "i": false});
        assert_eq!(serde_json::Value::Object(as_json(&attributes.into_list())), expected);
    }
}

//! Members of a JSON object, as the bytes they are, where they can be read in one way only.

use crate::body::members;
use crate::policy::Naming;

/// The wanted members of one JSON object, each a part of `json` without white space around it. Names compare decoded.
///
/// `None` where `json` is not exactly one object, or has a wanted name twice or in another letter case, which some
/// readers take for the same.
pub(super) fn members<'j, const N: usize>(json: &'j str, wanted: [&str; N]) -> Option<[Option<&'j str>; N]> {
    members::members(json, Naming::Exact, wanted).ok().flatten()
}

/// Whether an object or array, beginning with its bracket, has nothing in it.
pub(super) fn is_empty(container: &str) -> bool {
    let inner = container.bytes().skip(1).find(|byte| !byte.is_ascii_whitespace());
    matches!(inner, Some(b'}' | b']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_where_they_can_be_read_in_one_way() {
        for (json, expected) in [
            ("{}", Some([None, None])),
            (r#" {"a" : [1, {"b":2}] ,"c":"}"} "#, Some([Some(r#"[1, {"b":2}]"#), None])),
            (r#"{"b":null,"\u0061":-1.50e+3 }"#, Some([Some("-1.50e+3"), Some("null")])),
            (r#"{"c":1,"c":2,"C":3,"a":"\""}"#, Some([Some(r#""\"""#), None])),
            (r#"{"a":1,"a":1}"#, None),
            (r#"{"a":1,"\u0061":1}"#, None),
            (r#"{"a":1,"A":1}"#, None),
            (r#"{"B":1}"#, None),
            (r#"{"a":1,}"#, None),
            (r#"{"a":1"#, None),
            (r#"{"a":1}}"#, None),
            (r#"{"a":01}"#, None),
            (r#"{"c":NaN}"#, None),
            ("[]", None),
            ("null", None),
            (r#""a""#, None),
            ("", None),
        ] {
            assert_eq!(members(json, ["a", "b"]), expected, "{json}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
        let json = format!(r#"{{"a":{deep},"c":{deep}}}"#);
        assert_eq!(members(&json, ["a"]), Some([Some(&*deep)]));
    }

    #[test]
    fn a_container_is_empty_if_it_closes_at_once() {
        for (container, expected) in
            [("{}", true), ("[ \n]", true), ("{ }", true), ("[[]]", false), ("[0]", false), (r#"{"a":[]}"#, false)]
        {
            assert_eq!(is_empty(container), expected, "{container}");
        }
    }
}

//! Comparison of two JSON texts by value.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// The recursion limit of `serde_json`. Values nested more deeply are equal only if their bytes are equal.
const MAX_DEPTH: usize = 128;

/// Whether two texts have the same value. The order of fields, whitespace and the escapes in strings do not
/// matter. Numbers are compared as written, because two different numbers may become the same float. In
/// doubt the texts are different: a compare-and-swap then overwrites nothing.
pub(super) fn is_same_value(one: &RawValue, other: &RawValue) -> bool {
    same(one, other, MAX_DEPTH)
}

fn same(one: &RawValue, other: &RawValue, depth: usize) -> bool {
    let (a, b) = (one.get(), other.get());
    if a == b {
        return true;
    }
    if depth == 0 || a.as_bytes().first() != b.as_bytes().first() {
        return false;
    }
    match a.as_bytes().first() {
        Some(b'{') => match (fields(a), fields(b)) {
            (Some(a), Some(b)) => {
                a.len() == b.len()
                    && a.iter().zip(&b).all(|((name, a), (other, b))| name == other && same(a, b, depth - 1))
            }
            _ => false,
        },
        Some(b'[') => match (items(a), items(b)) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same(a, b, depth - 1)),
            _ => false,
        },
        Some(b'"') => matches!((parse::<String>(a), parse::<String>(b)), (Some(a), Some(b)) if a == b),
        _ => false,
    }
}

fn fields(text: &str) -> Option<BTreeMap<String, Box<RawValue>>> {
    parse(text)
}

fn items(text: &str) -> Option<Vec<Box<RawValue>>> {
    parse(text)
}

fn parse<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_same(one: &str, other: &str) -> bool {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        is_same_value(&raw(one), &raw(other))
    }

    #[test]
    fn the_order_of_fields_whitespace_and_escapes_do_not_matter() {
        for (one, other) in [
            ("{\"a\":1,\"b\":[true,null]}", "{ \"b\" : [ true , null ], \"a\" : 1 }"),
            ("\"\\u00e9\\n\"", "\"é\\u000a\""),
            ("[]", "[ ]"),
            ("{\"\\u0061\":{}}", "{\"a\":{ }}"),
        ] {
            assert!(is_same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn all_other_differences_matter() {
        for (one, other) in [
            ("1", "1.0"),
            ("123456789012345678901234567890", "123456789012345678901234567891"),
            ("null", "false"),
            ("\"1\"", "1"),
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            ("{\"a\":1}", "{\"b\":1}"),
            ("{\"a\":1}", "{\"a\":1,\"b\":1}"),
            ("{\"a\":[{\"b\":\"x\"}]}", "{\"a\":[{\"b\":\"y\"}]}"),
        ] {
            assert!(!is_same(one, other), "{one} {other}");
            assert!(!is_same(other, one), "{other} {one}");
        }
    }

    #[test]
    fn values_beyond_the_depth_limit_are_equal_only_byte_for_byte() {
        let deep = |inside: &str| format!("{}{inside}{}", "[".repeat(200), "]".repeat(200));
        assert!(is_same(&deep("1"), &deep("1")));
        assert!(!is_same(&deep("1"), &deep("2")));
        assert!(!is_same(&deep("1"), &deep(" 1")));
    }
}

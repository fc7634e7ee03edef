//! Whether two JSON texts say the same.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// As deep as `serde_json` goes. What lies deeper counts as different unless it is so to the byte.
const MAX_DEPTH: usize = 128;

/// Whether two texts are the same value: fields in any order, space anywhere, strings however they
/// are escaped. Numbers count as they are written, for two that differ may become the same float.
/// In doubt they are different: then nothing is overwritten.
pub(crate) fn same_json(one: &RawValue, other: &RawValue) -> bool {
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
        same_json(&raw(one), &raw(other))
    }

    #[test]
    fn the_order_of_fields_space_and_escapes_do_not_count() {
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
    fn all_else_counts() {
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
    fn no_depth_is_too_much() {
        let deep = |inside: &str| format!("{}{inside}{}", "[".repeat(200), "]".repeat(200));
        assert!(is_same(&deep("1"), &deep("1")));
        assert!(!is_same(&deep("1"), &deep("2")));
        assert!(!is_same(&deep("1"), &deep(" 1")));
    }
}

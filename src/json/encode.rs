//! Encoding a value as JSON in one pass, without losing anything.
//!
//! `serde_json` writes floats that are not finite as `null`, and does not read values that are nested more
//! deeply than its recursion limit. Stored like that, a result would be lost and nobody would notice.

use serde::ser::{self, Error as _};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// The deepest nesting that `serde_json` reads.
const MAX_DEPTH: usize = 127;

/// Encodes a value. Fails for floats that are not finite, and for values that are nested too deeply.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Box<RawValue>> {
    let raw = serde_json::value::to_raw_value(&Checked(value))?;
    check_depth(raw.get())?;
    Ok(raw)
}

/// Fails for a text that is nested too deeply.
pub(super) fn check_depth(text: &str) -> serde_json::Result<()> {
    if depth(text) > MAX_DEPTH {
        return Err(serde_json::Error::custom(format_args!("nested more than {MAX_DEPTH} levels deep")));
    }
    Ok(())
}

/// The depth of arrays and objects in a JSON text.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A value, or a serializer, in which floats are checked.
struct Checked<T>(T);

impl<T: Serialize + ?Sized> Serialize for Checked<&T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Checked(serializer))
    }
}

macro_rules! forward {
    ($($method:ident($($name:ident: $type:ty),*)),* $(,)?) => {
        $(fn $method(self, $($name: $type),*) -> Result<S::Ok, S::Error> { self.0.$method($($name),*) })*
    };
}

macro_rules! forward_compound {
    ($($method:ident($($name:ident: $type:ty),*) -> $compound:ident),* $(,)?) => {
        $(fn $method(self, $($name: $type),*) -> Result<Checked<S::$compound>, S::Error> {
            self.0.$method($($name),*).map(Checked)
        })*
    };
}

impl<S: Serializer> Serializer for Checked<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Checked<S::SerializeSeq>;
    type SerializeTuple = Checked<S::SerializeTuple>;
    type SerializeTupleStruct = Checked<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Checked<S::SerializeTupleVariant>;
    type SerializeMap = Checked<S::SerializeMap>;
    type SerializeStruct = Checked<S::SerializeStruct>;
    type SerializeStructVariant = Checked<S::SerializeStructVariant>;

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.0.serialize_f32(value) } else { not_finite(value) }
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.0.serialize_f64(value) } else { not_finite(value) }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Checked(value))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Checked(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Checked(value))
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }

    forward!(
        serialize_bool(value: bool),
        serialize_char(value: char),
        serialize_str(value: &str),
        serialize_bytes(value: &[u8]),
        serialize_i8(value: i8),
        serialize_i16(value: i16),
        serialize_i32(value: i32),
        serialize_i64(value: i64),
        serialize_i128(value: i128),
        serialize_u8(value: u8),
        serialize_u16(value: u16),
        serialize_u32(value: u32),
        serialize_u64(value: u64),
        serialize_u128(value: u128),
        serialize_none(),
        serialize_unit(),
        serialize_unit_struct(name: &'static str),
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str),
    );

    forward_compound!(
        serialize_seq(len: Option<usize>) -> SerializeSeq,
        serialize_tuple(len: usize) -> SerializeTuple,
        serialize_tuple_struct(name: &'static str, len: usize) -> SerializeTupleStruct,
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, len: usize)
            -> SerializeTupleVariant,
        serialize_map(len: Option<usize>) -> SerializeMap,
        serialize_struct(name: &'static str, len: usize) -> SerializeStruct,
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, len: usize)
            -> SerializeStructVariant,
    );
}

fn not_finite<T, E: ser::Error>(value: impl std::fmt::Display) -> Result<T, E> {
    Err(E::custom(format_args!("JSON cannot represent {value}")))
}

macro_rules! compound {
    ($($trait:ident: $($method:ident($($name:ident: $type:ty)?)),*;)*) => {$(
        impl<S: ser::$trait> ser::$trait for Checked<S> {
            type Ok = S::Ok;
            type Error = S::Error;
            $(fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($name: $type,)?
                value: &T,
            ) -> Result<(), S::Error> {
                self.0.$method($($name,)? &Checked(value))
            })*
            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )*};
}

compound! {
    SerializeSeq: serialize_element();
    SerializeTuple: serialize_element();
    SerializeTupleStruct: serialize_field();
    SerializeTupleVariant: serialize_field();
    SerializeMap: serialize_key(), serialize_value();
    SerializeStruct: serialize_field(name: &'static str);
    SerializeStructVariant: serialize_field(name: &'static str);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        One(f32),
        Two(f64, u8),
        Named { at: Option<f64> },
    }

    fn text<T: Serialize + ?Sized>(value: &T) -> String {
        encode(value).unwrap().get().to_owned()
    }

    #[test]
    fn finite_values_are_encoded_as_serde_json_does() {
        let shapes = [Shape::Unit, Shape::One(1.5), Shape::Two(f64::MAX, 1), Shape::Named { at: None }];
        let value = (BTreeMap::from([("a", shapes)]), [(); 3], "te\"xt", 'c', i128::MIN, Some(1.0), b"by");
        assert_eq!(text(&value), serde_json::to_string(&value).unwrap());
        let raw = RawValue::from_string("{ \"b\" : 1.50 }".to_owned()).unwrap();
        assert_eq!(text(&[&raw, &raw]), "[{ \"b\" : 1.50 },{ \"b\" : 1.50 }]");
    }

    #[test]
    fn floats_that_are_not_finite_are_refused_anywhere() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            encode(&value).unwrap_err();
            encode(&vec![1.0, value]).unwrap_err();
            encode(&BTreeMap::from([("a", Some(value))])).unwrap_err();
            encode(&Shape::Two(value, 1)).unwrap_err();
            encode(&Shape::Named { at: Some(value) }).unwrap_err();
        }
        encode(&Shape::One(f32::NAN)).unwrap_err();
    }

    #[test]
    fn a_value_that_could_not_be_read_back_is_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for depth in [1, 2, 127, 128, 500] {
            let raw = RawValue::from_string(nested(depth)).unwrap();
            let is_readable = serde_json::from_str::<serde_json::Value>(&nested(depth)).is_ok();
            assert_eq!(encode(&raw).is_ok(), is_readable, "{depth}");
        }
        assert_eq!(depth(r#"{"[[\"{":[{},"]}\\"],"a":[]}"#), 3);
    }

    /// An iterator can be serialized only once.
    #[test]
    fn a_value_is_serialized_once() {
        struct Once<'a>(Cell<Option<&'a [u8]>>);
        impl Serialize for Once<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.take().unwrap())
            }
        }
        assert_eq!(text(&Once(Cell::new(Some(&[1, 2, 3])))), "[1,2,3]");
    }
}

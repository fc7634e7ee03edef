//! Rejects non-finite floats. `serde_json` serialises them as `null`, so the value would be lost without an
//! error.

use serde::Serialize;
use serde::ser::{self, Error as _};

type Outcome = Result<(), serde_json::Error>;

/// Visits the value as a serialiser does, and fails at the first non-finite float.
pub(crate) fn check<T: Serialize + ?Sized>(value: &T) -> Outcome {
    value.serialize(Walk)
}

/// A serialiser without output.
#[derive(Clone, Copy)]
struct Walk;

fn finite(value: f64) -> Outcome {
    if value.is_finite() {
        return Ok(());
    }
    Err(serde_json::Error::custom(format_args!("JSON cannot represent {value}")))
}

macro_rules! pass {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _: $type) -> Outcome { Ok(()) })*
    };
}

impl ser::Serializer for Walk {
    type Ok = ();
    type Error = serde_json::Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    pass!(
        serialize_bool: bool, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_unit_struct: &'static str
    );

    fn serialize_f32(self, value: f32) -> Outcome {
        finite(value.into())
    }

    fn serialize_f64(self, value: f64) -> Outcome {
        finite(value)
    }

    fn serialize_unit(self) -> Outcome {
        Ok(())
    }

    fn serialize_none(self) -> Outcome {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Outcome {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Outcome {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Outcome {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Outcome {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, serde_json::Error> {
        Ok(self)
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, _: &T) -> Outcome {
        Ok(())
    }
}

macro_rules! compound {
    ($($trait:ident: $($method:ident($($name:ty)?)),*;)*) => {$(
        impl ser::$trait for Walk {
            type Ok = ();
            type Error = serde_json::Error;
            $(fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Outcome {
                value.serialize(*self)
            })*
            fn end(self) -> Outcome {
                Ok(())
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
    SerializeStruct: serialize_field(&'static str);
    SerializeStructVariant: serialize_field(&'static str);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        One(f32),
        Two(f64, u8),
        Named { at: Option<f64> },
    }

    #[test]
    fn finite_values_pass() {
        let shapes = [Shape::Unit, Shape::One(1.0), Shape::Two(f64::MAX, 1), Shape::Named { at: None }];
        check(&(BTreeMap::from([("a", shapes)]), [(); 3], "text", 'c', i128::MIN)).unwrap();
    }

    #[test]
    fn non_finite_values_are_found_at_any_depth() {
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for value in bad {
            check(&value).unwrap_err();
            check(&vec![1.0, value]).unwrap_err();
            check(&BTreeMap::from([("a", Some(value))])).unwrap_err();
            check(&Shape::Two(value, 1)).unwrap_err();
            check(&Shape::Named { at: Some(value) }).unwrap_err();
        }
        check(&Shape::One(f32::NAN)).unwrap_err();
    }
}

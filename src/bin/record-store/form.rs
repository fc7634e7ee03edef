//! The forms of a result in input and output.

/// The form of a result in input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    /// A JSON string in the store, and its unquoted text in input and output.
    Text,
    /// Base64 in a JSON string in the store, and the bytes in input and output.
    Bytes,
}

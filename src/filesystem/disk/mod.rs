//! Files: their names, how they are opened and published, and the text in them.

pub(crate) mod expiry;
pub(crate) mod layout;
pub(crate) mod lock_file;
pub(crate) mod names;
pub(crate) mod publish;
pub(crate) mod record_file;

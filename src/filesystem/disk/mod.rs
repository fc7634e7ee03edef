//! Files: their names, how they are opened and published, and the text in them.

pub(crate) mod creation;
pub(crate) mod event_table;
pub(crate) mod expiry;
pub(crate) mod file_system;
pub(crate) mod flock;
pub(crate) mod format;
pub(crate) mod last_read;
pub(crate) mod layout;
pub(crate) mod lock_file;
pub(crate) mod names;
pub(crate) mod old_file;
pub(crate) mod permissions;
pub(crate) mod private_names;
pub(crate) mod publish;
pub(crate) mod record_file;
pub(crate) mod record_head;
pub(crate) mod record_version;
pub(crate) mod torn_record;
pub(crate) mod usability;

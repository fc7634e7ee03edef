//! Where the changes of a store come from.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::model::{Change, Model};
use crate::failure::Failure;

pub(super) trait Source {
    /// The name of the store, for people.
    fn title(&self) -> String;

    /// The current view of the store.
    fn model(&self) -> &Model;

    /// A descriptor that is readable when there are notifications.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// The time until the next step is due if no notification arrives.
    fn pause(&self) -> Duration;

    /// Does all work that is due and returns the changes.
    fn step(&mut self) -> Result<Vec<Change>, Failure>;
}

//! Listings: one page after the other, so that they hold no snapshot and no memory for long.

use std::sync::Arc;

use tokio_postgres::Row;

use super::block_on::block_on;
use super::core::{Core, Repeat};
use super::limits::{Context, Limits};
use super::parameters::Parameter;
use super::statements::Query;
use crate::{ListOptions, Result};

/// The rows of a query whose first parameter is the last id that was listed.
#[derive(Debug)]
pub(super) struct Pages<'a> {
    core: &'a Arc<Core>,
    query: Query,
    /// The column of the id.
    id: usize,
    /// The other parameters of a listing of records.
    options: Option<ListOptions>,
    /// The last id that was listed. `None`: there are no more.
    after: Option<Vec<u8>>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(core: &'a Arc<Core>, query: Query, id: usize) -> Self {
        Self { core, query, id, options: None, after: Some(Vec::new()) }
    }

    /// Lists only what the options select.
    pub(super) fn selected(mut self, options: ListOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Goes on after this id. `None`: there are no more.
    pub(super) fn after(mut self, last: Option<Vec<u8>>) -> Self {
        self.after = last;
        self
    }

    /// The last id that was listed. `None`: there are no more.
    pub(super) fn last(self) -> Option<Vec<u8>> {
        self.after
    }

    /// The rows, one by one. Gets the first page at once, because the listing fails if it cannot begin.
    pub(super) fn begin(
        mut self,
        operation: &'static str,
    ) -> Result<impl Iterator<Item = Result<Row>> + Send + use<'a>> {
        let mut page = block_on(self.next(operation))?.into_iter();
        Ok(std::iter::from_fn(move || {
            loop {
                if let Some(row) = page.next() {
                    return Some(Ok(row));
                }
                self.after.as_ref()?;
                match block_on(self.next(operation)) {
                    Ok(next) => page = next.into_iter(),
                    Err(error) => {
                        self.after = None;
                        return Some(Err(error));
                    }
                }
            }
        }))
    }

    /// The next page. An empty one is the end.
    pub(super) async fn next(&mut self, operation: &'static str) -> Result<Vec<Row>> {
        self.next_within(operation, &Limits::none()).await
    }

    /// [`next`](Self::next) of a call that has limits.
    pub(super) async fn next_within(&mut self, operation: &'static str, limits: &Limits) -> Result<Vec<Row>> {
        let Some(after) = &self.after else { return Ok(Vec::new()) };
        let mut parameters = vec![Parameter::Bytes(Some(after))];
        if let Some(options) = &self.options {
            parameters.push(Parameter::Bytes(Some(options.get_prefix().as_bytes())));
            parameters.push(Parameter::Flag(options.reads_results()));
        }
        let context = Context::whole(operation);
        let rows = self.core.call(context, limits, Repeat::Yes, self.query, &parameters).await?;
        self.after = rows.last().map(|row| row.get(self.id));
        Ok(rows)
    }
}

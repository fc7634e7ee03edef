//! `verify`: checks the files of a store, or its tables on a server.

mod files;
mod report;
#[cfg(feature = "postgres")]
mod server;

use crate::args::VerifyArgs;
use crate::failure::Failure;
use crate::records::open_to_read;
use crate::store::Kind;

pub(crate) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    match open_to_read(&args.store)?.kind() {
        Kind::Files(store) => files::verify(store, args.json),
        #[cfg(feature = "postgres")]
        Kind::Server(store) => server::verify(store, args.json),
    }
}

//! All that is printed.

pub mod describe;
pub mod errors;
mod progress;
mod table;
mod yaml;

use std::io::{self, Write};

use serde_json::Value;

pub use self::{
    progress::Progress,
    table::{TablePrinter, TableStyle, grid},
    yaml::to_yaml,
};

/// Whoever read our output went away, as `head` does: the end of the work, and no fault.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct ReaderGone;

/// Why something could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// See there.
    #[error(transparent)]
    ReaderGone(#[from] ReaderGone),
    /// A full disk, for one.
    #[error("cannot write the output: {0}")]
    Io(io::Error),
}

/// Whether an error says no more than that nobody reads our output.
pub fn is_reader_gone(e: &anyhow::Error) -> bool {
    e.chain().any(|c| matches!(c.downcast_ref(), Some(PrintError::ReaderGone(_))))
}

/// One line on stderr, whatever the error's causes hold.
pub fn error(e: &anyhow::Error) {
    note(&errors::line(e));
}

/// A note on stderr.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line on stdout.
pub fn line(text: &str) -> Result<(), PrintError> {
    bytes(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, at once.
pub fn bytes(bytes: &[u8]) -> Result<(), PrintError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => ReaderGone.into(),
        _ => PrintError::Io(e),
    })
}

/// Bytes on stderr, at once: what a remote command writes there.
pub fn error_bytes(bytes: &[u8]) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// A value as JSON, as kubectl indents it.
pub fn to_json(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // A value that is one already, into memory: neither can fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8_lossy(&out).into_owned()
}

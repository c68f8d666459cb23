//! A container's log, as far as asked for, and as it grows.

mod follow;
mod lines;

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use axum::{body::Body, http::header::CONTENT_TYPE, response::Response};
use bytes::Bytes;
use minisvc_proto::ApiError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use self::lines::Lines;
use crate::sync::pods::Entry;

const CHUNK: usize = 64 << 10;

/// What of the log, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Stay, and go on with what comes.
    pub follow: bool,
    /// Of the start before.
    pub previous: bool,
    /// The time before each line.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<usize>,
    /// Only lines since then, as the log writes times.
    pub since: Option<String>,
    /// No more bytes than these.
    pub limit_bytes: Option<u64>,
}

impl Options {
    /// From the query.
    pub fn parse(pairs: &super::Pairs) -> Result<Self, ApiError> {
        let get = |name: &str| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        let number = |name: &str| -> Result<Option<u64>, ApiError> {
            get(name)
                .map(|v| {
                    v.parse().map_err(|_| ApiError::bad_request(format!("{name}: \"{v}\" is no number")))
                })
                .transpose()
        };
        let seconds = number("sinceSeconds")?;
        let since = match (get("sinceTime"), seconds) {
            (Some(time), _) => {
                let bad = || ApiError::bad_request(format!("sinceTime: \"{time}\" is no RFC 3339 time"));
                Some(time.parse::<jiff::Timestamp>().map_err(|_| bad())?)
            }
            (None, Some(seconds)) => {
                let ago = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                Some(jiff::Timestamp::now().checked_sub(ago).unwrap_or(jiff::Timestamp::MIN))
            }
            (None, None) => None,
        };
        Ok(Options {
            follow: super::flag(pairs, "follow"),
            previous: super::flag(pairs, "previous"),
            timestamps: super::flag(pairs, "timestamps"),
            tail_lines: number("tailLines")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            since: since.map(|t| format!("{t:.9}")),
            limit_bytes: number("limitBytes")?,
        })
    }
}

/// The answer, which goes on as long as the client listens.
pub fn stream(
    entry: &Entry,
    pod: &str,
    container: &str,
    options: Options,
    shutdown: &CancellationToken,
) -> Result<Response, ApiError> {
    let state = entry.states.borrow().states.get(container).cloned();
    let waiting =
        || ApiError::bad_request(format!("container \"{container}\" in pod \"{pod}\" is waiting to start"));
    let newest = state.ok_or_else(waiting)?.attempt;
    let attempt = if options.previous {
        newest.checked_sub(1).ok_or_else(|| {
            let what = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
            ApiError::bad_request(what)
        })?
    } else {
        newest
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let place = follow::Place {
        dir: entry.log_dir.join(container),
        container: container.to_owned(),
        states: entry.states.clone(),
    };
    let work = follow::run(place, attempt, options, sender.clone());
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            result = work => if let Err(error) = result {
                // The client sees that its log breaks off, rather than a log that seems whole.
                let _ = sender.send(Err(error)).await;
            },
            () = sender.closed() => {}
            () = shutdown.cancelled() => {}
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let text = axum::http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    Ok(response)
}

/// One start's log while it is read: the file, and how far.
struct LogReader {
    path: PathBuf,
    file: Option<File>,
}

impl LogReader {
    /// Opens a log, and the part before it if it was begun anew since.
    fn open(dir: &Path, attempt: u32) -> io::Result<(Option<File>, LogReader)> {
        let path = dir.join(format!("{attempt}.log"));
        let older = dir.join(format!("{attempt}.log.1"));
        loop {
            let file = maybe(File::open(&path))?;
            let before = maybe(File::open(&older))?;
            // Renamed between the two: both are the same.
            if let (Some(a), Some(b)) = (&file, &before)
                && a.metadata()?.ino() == b.metadata()?.ino()
            {
                continue;
            }
            return Ok((before, LogReader { path, file }));
        }
    }

    /// What comes next; 0 at the end. Goes on in the new file when the log was begun anew.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(file) = &mut self.file else {
                self.file = maybe(File::open(&self.path))?;
                if self.file.is_none() {
                    return Ok(0);
                }
                continue;
            };
            let n = file.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(now) = maybe(File::open(&self.path))? else { return Ok(0) };
            if now.metadata()?.ino() == file.metadata()?.ino() {
                return Ok(0);
            }
            // The last words before the change of files.
            let n = file.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            self.file = Some(now);
        }
    }
}

fn maybe(file: io::Result<File>) -> io::Result<Option<File>> {
    match file {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The whole of what is there, through the options' eyes.
fn read_all(before: Option<File>, reader: &mut LogReader, lines: &mut Lines) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    if let Some(mut before) = before {
        loop {
            let n = before.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            lines.push(&buffer[..n]);
        }
    }
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        lines.push(&buffer[..n]);
    }
}

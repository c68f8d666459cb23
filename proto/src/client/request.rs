//! Queries, patch kinds and lines of a stream.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};

use super::ClientError;

/// What to select of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListParams {
    /// `app=web,tier!=db`
    pub label_selector: Option<String>,
    /// `spec.nodeName=node-1`
    pub field_selector: Option<String>,
}

impl ListParams {
    /// Everything whose fields match.
    pub fn fields(selector: impl Into<String>) -> Self {
        ListParams { field_selector: Some(selector.into()), ..Self::default() }
    }

    /// Everything whose labels match.
    pub fn labels(selector: impl Into<String>) -> Self {
        ListParams { label_selector: Some(selector.into()), ..Self::default() }
    }

    /// The query with its `?`, or nothing.
    pub(super) fn query(&self, more: &[(&str, &str)]) -> String {
        let selectors = [("labelSelector", &self.label_selector), ("fieldSelector", &self.field_selector)];
        query(selectors.iter().filter_map(|(k, v)| Some((*k, v.as_deref()?))).chain(more.iter().copied()))
    }
}

/// A query string with its `?`, escaped; empty for no parameters.
pub fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (k, v) in pairs {
        out.push(if out.is_empty() { '?' } else { '&' });
        out.push_str(&escape(k));
        out.push('=');
        out.push_str(&escape(v));
    }
    out
}

fn escape(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
}

impl PatchKind {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            PatchKind::Json => "application/json-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
        }
    }
}

/// Cuts a stream of bytes into its non-empty lines. A last line that is cut short is dropped: the sender died in it.
pub(super) fn lines(
    bytes: impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin {
    // `scanned` keeps a long line that comes in many pieces linear.
    let start = (bytes, BytesMut::new(), 0_usize);
    Box::pin(stream::unfold(start, |(mut bytes, mut buffer, mut scanned)| async move {
        loop {
            if let Some(at) = buffer[scanned..].iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(scanned + at + 1).freeze();
                scanned = 0;
                if line.len() > 1 {
                    return Some((Ok(line.slice(..line.len() - 1)), (bytes, buffer, scanned)));
                }
                continue;
            }
            scanned = buffer.len();
            match bytes.next().await? {
                Ok(more) => buffer.extend_from_slice(&more),
                Err(e) => return Some((Err(e), (bytes, buffer, scanned))),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped() {
        let p = ListParams::labels("app in (a,b)");
        assert_eq!(p.query(&[("watch", "true")]), "?labelSelector=app%20in%20%28a%2Cb%29&watch=true");
        assert_eq!(ListParams::default().query(&[]), "");
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let pieces = ["{\"a\"", ":1}\n\n{\"b\":2}\n{\"c"].map(|p| Ok(Bytes::from_static(p.as_bytes())));
        let mut found = Vec::new();
        futures::executor::block_on(async {
            let mut lines = lines(stream::iter(pieces));
            while let Some(line) = lines.next().await {
                found.push(line.unwrap());
            }
        });
        assert_eq!(found, ["{\"a\":1}", "{\"b\":2}"]);
    }
}

//! From the log's own lines to what the client asked for. Pure.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::Options;

/// Takes the log's bytes in pieces, and gives out the text.
#[derive(Debug)]
pub struct Lines {
    timestamps: bool,
    since: Option<String>,
    limit: Option<u64>,
    /// While set, only so many of the last lines are kept back.
    tail: Option<usize>,
    kept: VecDeque<Vec<u8>>,
    /// A line whose end has not come.
    rest: Vec<u8>,
    /// The last piece did not end its line.
    open: bool,
    out: BytesMut,
}

impl Lines {
    /// Nothing yet.
    pub fn new(options: &Options) -> Self {
        Lines {
            timestamps: options.timestamps,
            since: options.since.clone(),
            limit: options.limit_bytes,
            tail: options.tail_lines,
            kept: VecDeque::new(),
            rest: Vec::new(),
            open: false,
            out: BytesMut::new(),
        }
    }

    /// More of the log.
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.rest);
        let mut at = 0;
        while let Some(newline) = all[at..].iter().position(|b| *b == b'\n') {
            self.line(&all[at..at + newline]);
            at += newline + 1;
        }
        self.rest = all[at..].to_vec();
    }

    /// `TIME STREAM TAG TEXT`; anything else is none of ours, and left out.
    fn line(&mut self, line: &[u8]) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        // Times of one length sort as text.
        if self.since.as_deref().is_some_and(|since| time < since.as_bytes()) {
            return;
        }
        let mut out = Vec::with_capacity(line.len());
        if self.timestamps && !self.open {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        let continues = std::mem::replace(&mut self.open, tag == b"P");
        if !self.open {
            out.push(b'\n');
        }
        let Some(tail) = self.tail else { return self.give(&out) };
        match self.kept.back_mut() {
            Some(last) if continues => last.extend_from_slice(&out),
            _ => self.kept.push_back(out),
        }
        while self.kept.len() > tail {
            self.kept.pop_front();
        }
    }

    /// All that was there at the beginning has come: the last lines are known.
    pub fn caught_up(&mut self) {
        self.tail = None;
        for line in std::mem::take(&mut self.kept) {
            self.give(&line);
        }
    }

    /// A new start of the container: what was open stays as it is.
    pub fn next_start(&mut self) {
        self.rest.clear();
        self.open = false;
    }

    fn give(&mut self, bytes: &[u8]) {
        let room = self.limit.map_or(bytes.len(), |l| usize::try_from(l).unwrap_or(usize::MAX));
        let cut = &bytes[..bytes.len().min(room)];
        if let Some(limit) = &mut self.limit {
            *limit -= cut.len() as u64;
        }
        self.out.extend_from_slice(cut);
    }

    /// What can be sent.
    pub fn take(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// The client wants no more.
    pub fn is_full(&self) -> bool {
        self.limit == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n2026-01-01T00:00:02.000000000Z stderr P tw\n\
        2026-01-01T00:00:02.000000001Z stderr F o\n2026-01-01T00:00:03.000000000Z stdout F \n\
        2026-01-01T00:00:04.000000000Z stdout P end";

    fn text(options: &Options, pieces: &[&str]) -> String {
        let mut lines = Lines::new(options);
        for piece in pieces {
            lines.push(piece.as_bytes());
        }
        lines.caught_up();
        lines.take().map(|b| String::from_utf8(b.to_vec()).unwrap()).unwrap_or_default()
    }

    #[test]
    fn parts_are_joined_whatever_the_pieces() {
        let whole = format!("{LOG}\n");
        for at in [1, 30, 45, 80, 100] {
            let (a, b) = whole.split_at(at);
            assert_eq!(text(&Options::default(), &[a, b]), "one\ntwo\n\nend");
        }
        assert_eq!(text(&Options::default(), &[LOG]), "one\ntwo\n\n", "a line that is not whole waits");
    }

    #[test]
    fn options_choose() {
        let whole = format!("{LOG}\n");
        let with = |options: Options| text(&options, &[&whole]);
        assert_eq!(with(Options { tail_lines: Some(3), ..Options::default() }), "two\n\nend");
        assert_eq!(with(Options { tail_lines: Some(0), ..Options::default() }), "");
        assert_eq!(with(Options { limit_bytes: Some(6), ..Options::default() }), "one\ntw");
        let since = Some("2026-01-01T00:00:03.000000000Z".to_owned());
        assert_eq!(with(Options { since, ..Options::default() }), "\nend");
        assert_eq!(
            with(Options { timestamps: true, tail_lines: Some(3), ..Options::default() }),
            "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:03.000000000Z \n2026-01-01T00:00:04.000000000Z end"
        );
    }

    #[test]
    fn what_comes_later_is_no_tail() {
        let mut lines = Lines::new(&Options { tail_lines: Some(1), ..Options::default() });
        let line = |n: u8| format!("2026-01-01T00:00:0{n}.000000000Z stdout F {n}\n");
        lines.push((line(1) + &line(2)).as_bytes());
        lines.caught_up();
        lines.push((line(3) + &line(4)).as_bytes());
        assert_eq!(lines.take().unwrap(), "2\n3\n4\n");
        assert!(lines.take().is_none());
    }
}

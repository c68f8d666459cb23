//! A container's log: `TIME STREAM F TEXT`, as container runtimes write it, and begun anew when it is too long.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A longer line is written in parts (`P`), the last of them `F`.
const LINE: usize = 16 << 10;
const READ: usize = 64 << 10;

/// The output of one start of a container.
#[derive(Debug)]
pub struct Output {
    file: LogFile,
    pipes: [Option<Pipe>; 2],
}

#[derive(Debug)]
struct Pipe {
    reader: PipeReader,
    /// A line that has not ended yet.
    rest: Vec<u8>,
}

impl Pipe {
    /// The most bytes that are in it at one time.
    fn capacity(&self) -> usize {
        let size = fcntl(&self.reader, FcntlArg::F_GETPIPE_SZ).ok().and_then(|n| usize::try_from(n).ok());
        size.unwrap_or(READ)
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

const STREAMS: [&str; 2] = ["stdout", "stderr"];

impl Output {
    /// Opens the log and takes the ends of the pipes that the container writes to.
    pub fn new(path: &Path, limit: u64, stdout: PipeReader, stderr: PipeReader) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = LogFile::open(path)?;
        let size = file.metadata()?.len();
        let pipe = |reader: PipeReader| -> io::Result<Option<Pipe>> {
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            Ok(Some(Pipe { reader, rest: Vec::new() }))
        };
        let file = LogFile { path: path.to_path_buf(), file, size, limit };
        Ok(Output { file, pipes: [pipe(stdout)?, pipe(stderr)?] })
    }

    /// The pipes that are still open.
    pub fn open_pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().flatten().map(|p| p.reader.as_fd())
    }

    /// Writes what is there: one piece, or with `all` as much as a pipe holds. What a process wrote before it ended is within
    /// that; one that it left behind may write without end, and gets no more than its turn.
    pub fn drain(&mut self, all: bool) {
        let mut buffer = vec![0; READ];
        for (pipe, stream) in self.pipes.iter_mut().zip(STREAMS) {
            let mut left = if all { pipe.as_ref().map_or(0, Pipe::capacity) } else { 1 };
            while let Some(open) = pipe {
                match open.reader.read(&mut buffer) {
                    Ok(0) => {
                        // The end without a newline stays a part, so that a reader sees exactly what was written.
                        let text = format(stream, &mut open.rest, &[], true);
                        self.file.write(&text);
                        *pipe = None;
                    }
                    Ok(n) => {
                        let text = format(stream, &mut open.rest, &buffer[..n], false);
                        self.file.write(&text);
                        left = left.saturating_sub(n);
                        if left == 0 {
                            break;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
    }
}

impl LogFile {
    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o640).open(path)
    }

    /// A full disk costs lines of the log, never the container.
    fn write(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        if self.size > 0 && self.size + text.len() as u64 > self.limit {
            let old = PathBuf::from(format!("{}.1", self.path.display()));
            if fs::rename(&self.path, old).is_ok()
                && let Ok(file) = Self::open(&self.path)
            {
                self.file = file;
                self.size = 0;
            }
        }
        if self.file.write_all(text).is_ok() {
            self.size += text.len() as u64;
        }
    }
}

/// The log's lines for new bytes; `rest` keeps what has no end yet.
fn format(stream: &str, rest: &mut Vec<u8>, bytes: &[u8], end: bool) -> Vec<u8> {
    let time = format!("{:.9}", jiff::Timestamp::now());
    let mut out = Vec::with_capacity(bytes.len() + 128);
    let mut line = |tag: char, text: &[u8]| {
        out.extend_from_slice(format!("{time} {stream} {tag} ").as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    let mut parts = |text: &[u8], ended: bool| {
        let mut text = text;
        while text.len() > LINE {
            line('P', &text[..LINE]);
            text = &text[LINE..];
        }
        if ended {
            line('F', text);
            return Vec::new();
        }
        text.to_vec()
    };
    rest.extend_from_slice(bytes);
    let all = std::mem::take(rest);
    let mut at = all.as_slice();
    while let Some(newline) = at.iter().position(|b| *b == b'\n') {
        parts(&at[..newline], true);
        at = &at[newline + 1..];
    }
    let left = parts(at, false);
    if end && !left.is_empty() {
        line('P', &left);
    } else {
        *rest = left;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines without their time.
    fn lines(text: &[u8]) -> Vec<String> {
        let text = String::from_utf8(text.to_vec()).unwrap();
        text.lines()
            .map(|l| {
                let (time, line) = l.split_once(' ').unwrap();
                assert_eq!(time.len(), "2026-11-25T07:00:00.000000000Z".len(), "{l}");
                time.parse::<jiff::Timestamp>().unwrap();
                line.to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_whole_and_the_rest_waits() {
        let mut rest = Vec::new();
        assert_eq!(lines(&format("stdout", &mut rest, b"a\n\nb", false)), ["stdout F a", "stdout F "]);
        assert_eq!(lines(&format("stdout", &mut rest, b"c\nd", false)), ["stdout F bc"]);
        assert_eq!(lines(&format("stdout", &mut rest, b"", true)), ["stdout P d"]);
        assert!(format("stdout", &mut rest, b"", true).is_empty());
    }

    #[test]
    fn a_long_line_is_parts_that_make_it_whole_again() {
        let mut rest = Vec::new();
        let text = "x".repeat(LINE * 2 + 5);
        let mut out = lines(&format("stderr", &mut rest, text.as_bytes(), false));
        out.extend(lines(&format("stderr", &mut rest, b"y\n", false)));
        let tags: Vec<_> = out.iter().map(|l| &l[..8]).collect();
        assert_eq!(tags, ["stderr P", "stderr P", "stderr F"]);
        let joined: String = out.iter().map(|l| &l[9..]).collect();
        assert_eq!(joined, format!("{text}y"));
    }

    #[test]
    fn a_log_that_is_too_long_is_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("c/0.log");
        let (stdout, mut write) = io::pipe().unwrap();
        let (stderr, _) = io::pipe().unwrap();
        let mut output = Output::new(&path, 100, stdout, stderr).unwrap();
        for text in ["one\n", "two\n", "three\n"] {
            write.write_all(text.as_bytes()).unwrap();
            output.drain(false);
        }
        let read = |p: &str| lines(&fs::read(home.path().join(p)).unwrap());
        assert_eq!(read("c/0.log.1"), ["stdout F one", "stdout F two"]);
        assert_eq!(read("c/0.log"), ["stdout F three"]);
        assert_eq!(output.open_pipes().count(), 1);
        drop(write);
        output.drain(true);
        assert_eq!(output.open_pipes().count(), 0);
    }

    #[test]
    fn a_process_that_writes_without_end_does_not_keep_the_shim() {
        let home = tempfile::tempdir().unwrap();
        let (stdout, mut write) = io::pipe().unwrap();
        let (stderr, _) = io::pipe().unwrap();
        let mut output = Output::new(&home.path().join("c/0.log"), 1 << 20, stdout, stderr).unwrap();
        // Ends when nobody reads any more.
        let endless = std::thread::spawn(move || while write.write_all(&[b'\n'; 4096]).is_ok() {});
        while output.file.size < READ as u64 {
            output.drain(true);
        }
        assert_eq!(output.open_pipes().count(), 1);
        drop(output);
        endless.join().unwrap();
    }
}

//! What a container says about its end: the file that it may write, else the end of its log.
//! [pkg/kubelet/kuberuntime, getTerminationMessage]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// The most bytes of the file.
const FILE_BYTES: usize = 4096;
/// The most bytes of the log.
const LOG_BYTES: usize = 2048;
/// The most lines of the log.
const LOG_LINES: usize = 80;
/// The most bytes that the messages of a pod have together.
pub const POD_BYTES: usize = 12 << 10;
/// Enough of a log to hold [`LOG_LINES`] with what stands before each text.
const LOG_TAIL: u64 = 64 << 10;

/// Makes the file anew, for any user to write.
pub fn begin(file: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).write(true).truncate(true).open(file)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o666))
}

/// The last bytes of the file; `None` when nothing was written.
pub fn said(file: &Path) -> Option<String> {
    end_of(&String::from_utf8_lossy(&tail(file, FILE_BYTES as u64).ok()?), FILE_BYTES)
}

/// The last lines of a log.
pub fn logged(log: &Path) -> Option<String> {
    last_lines(&String::from_utf8_lossy(&tail(log, LOG_TAIL).ok()?))
}

fn tail(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// The texts of the last lines of a log, as they were written.
fn last_lines(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        let mut parts = line.splitn(4, ' ');
        // A line whose beginning was cut off is not one of ours.
        if let (Some(_), Some("stdout" | "stderr"), Some(tag), Some(words)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        {
            text.push_str(words);
            text.push_str(if tag == "F" { "\n" } else { "" });
        }
    }
    end_of(&text, LOG_BYTES)
}

/// The last bytes of a text, without characters that only a terminal understands; `None` when nothing is left.
pub fn end_of(text: &str, most: usize) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control() || ['\n', '\t'].contains(c)).collect();
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    (from < text.len()).then(|| text[from..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_as_they_were_written() {
        assert_eq!(last_lines(""), None);
        let log = "dout F cut\nT stdout F one\nT stderr P tw\nT stderr F o\nT stdout F \nT stdout P three";
        assert_eq!(last_lines(log).as_deref(), Some("one\ntwo\n\nthree"));
        let many: Vec<String> = (0..100).map(|i| format!("T stdout F {i}")).collect();
        let many = many.join("\n") + "\n";
        let text = last_lines(&many).unwrap();
        assert_eq!((text.lines().next(), text.lines().count()), (Some("20"), 80));
        let long = format!("T stdout F {}\n", "ä".repeat(2000));
        let text = last_lines(&long).unwrap();
        assert!(text.len() <= LOG_BYTES && text.ends_with("ä\n") && text.starts_with('ä'));
    }

    #[test]
    fn the_end_of_the_file_is_the_message() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("f");
        assert_eq!(said(&file), None);
        fs::write(&file, "of the start before").unwrap();
        begin(&file).unwrap();
        assert_eq!(said(&file), None);
        fs::write(&file, format!("x{}", "y".repeat(4096))).unwrap();
        assert_eq!(said(&file), Some("y".repeat(4096)));
        assert_eq!(end_of("a\x1b[31m\n\0b", 99).as_deref(), Some("a[31m\nb"));
        assert_eq!(end_of("ab", 0), None);
    }
}

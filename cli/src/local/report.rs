//! Lines from the cluster's processes to `up`, over the pipe that is their standard output.

use std::io::Write;

/// One line of the pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// For people.
    Say(String),
    /// The server answers and the agents are started.
    Started,
    /// It came to nothing, and why.
    Failed(String),
}

/// Tells `up`. When nobody listens any more (after `--detach`) the line is lost, and that is right.
pub fn send(line: &Line) {
    let text = match line {
        Line::Say(text) => format!("say {}\n", one_line(text)),
        Line::Started => "started\n".to_owned(),
        Line::Failed(text) => format!("failed {}\n", one_line(text)),
    };
    // One write, so that lines of different processes do not mix.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// A line for people.
pub fn say(text: &str) {
    send(&Line::Say(text.to_owned()));
}

/// Reads one line back; what is none of ours is for people.
pub fn parse(line: &str) -> Line {
    match line.split_once(' ') {
        Some(("failed", text)) => Line::Failed(text.to_owned()),
        Some(("say", text)) => Line::Say(text.to_owned()),
        _ if line == "started" => Line::Started,
        _ => Line::Say(line.to_owned()),
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_shown() {
        assert_eq!(parse("say server up"), Line::Say("server up".into()));
        assert_eq!(parse("failed no room"), Line::Failed("no room".into()));
        assert_eq!(parse("started"), Line::Started);
        assert_eq!(parse("warning: x"), Line::Say("warning: x".into()));
    }
}

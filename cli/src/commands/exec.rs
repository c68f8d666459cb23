//! `exec` and `node exec`: streams over a WebSocket that speaks v5.channel.k8s.io.

use anyhow::{Context as _, bail};
use futures::{SinkExt, StreamExt};
use minisvc_proto::{
    client::{Client, ExecStream, query},
    path::Target,
    resource::PODS,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Outcome, Session, pods,
    terminal::{Input, Terminal},
};
use crate::{
    args::{Exec, NodeExec, Streams},
    output,
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub(super) async fn in_pod(session: &Session, args: Exec) -> Outcome {
    let pod = pods::pick(session, &args.pod).await?;
    let container = pods::container(&pod, args.container.as_deref())?;
    let target = Target::object(&session.key(&PODS, pod.name())).with_subresource("exec");
    let terminal = Terminal::open(args.streams)?;
    let path = format!("{target}{}", parameters(&args.command, Some(&container), &terminal));
    talk(session.client.exec(&path).await?, terminal).await
}

pub(super) async fn on_node(session: &Session, args: NodeExec) -> Outcome {
    let node = args.node.strip_prefix("node/").unwrap_or(&args.node);
    minisvc_proto::names::check_dns_subdomain(node).map_err(|e| anyhow::anyhow!("node \"{node}\": {e}"))?;
    let terminal = Terminal::open(args.streams)?;
    let path = format!("/apis/minisvc.io/v1/nodes/{node}/exec{}", parameters(&args.command, None, &terminal));
    talk(session.client.exec(&path).await?, terminal).await
}

/// Runs a command without input, and gives what it prints; a failure is what it says about it.
pub async fn capture(client: &Client, path_and_query: &str) -> anyhow::Result<String> {
    let mut stream = client.exec(path_and_query).await?;
    let (mut out, mut fault) = (Vec::new(), Vec::new());
    while let Some(message) = stream.next().await {
        let Message::Binary(bytes) = message.context("the connection to the command broke off")? else {
            continue;
        };
        match bytes.as_ref() {
            [STDOUT, data @ ..] => out.extend_from_slice(data),
            [STDERR, data @ ..] => fault.extend_from_slice(data),
            [STATUS, data @ ..] => {
                return match ended(data)? {
                    End { code: 0, .. } => Ok(String::from_utf8_lossy(&out).into_owned()),
                    End { code, .. } => {
                        bail!("{} (exit code {code})", String::from_utf8_lossy(&fault).trim())
                    }
                };
            }
            _ => {}
        }
    }
    bail!("the connection to the command ended without word of its exit code")
}

/// With a terminal there is one output; without, two.
fn parameters(command: &[String], container: Option<&str>, terminal: &Terminal) -> String {
    let mut pairs: Vec<(&str, &str)> = command.iter().map(|word| ("command", word.as_str())).collect();
    pairs.extend(container.map(|c| ("container", c)));
    let Streams { stdin, tty } = terminal.streams;
    let flags = [("stdin", stdin), ("stdout", true), ("stderr", !tty), ("tty", tty)];
    pairs.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name, "true")));
    query(pairs)
}

/// Passes everything both ways until the other side says how the command ended.
async fn talk(stream: ExecStream, mut terminal: Terminal) -> Outcome {
    let (mut to, mut from) = stream.split();
    let sending = async {
        while let Some(input) = terminal.next().await {
            // The other side may end first; its word about that is what counts.
            if to.send(Message::Binary(frame(input).into())).await.is_err() {
                break;
            }
        }
        // Nothing more to say: the other side still may have.
        std::future::pending::<()>().await;
    };
    let receiving = async {
        while let Some(message) = from.next().await {
            match message.context("the connection to the command broke off")? {
                Message::Binary(bytes) => {
                    if let Some(end) = received(&bytes)? {
                        return Ok(end);
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        bail!("the connection to the command ended without word of its exit code")
    };
    let end = tokio::select! {
        end = receiving => end,
        () = sending => unreachable!("it never ends"),
    };
    terminal.restore();
    let End { code, message } = end?;
    if let Some(message) = message {
        output::note(&message);
    }
    Ok(code)
}

fn frame(input: Input) -> Vec<u8> {
    match input {
        Input::Bytes(bytes) => [&[STDIN], bytes.as_slice()].concat(),
        Input::End => vec![CLOSE, STDIN],
        Input::Resize { width, height } => {
            [&[RESIZE], json!({"Width": width, "Height": height}).to_string().as_bytes()].concat()
        }
    }
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    code: u8,
    message: Option<String>,
}

fn received(bytes: &[u8]) -> anyhow::Result<Option<End>> {
    match bytes {
        [STDOUT, data @ ..] => output::bytes(data)?,
        [STDERR, data @ ..] => output::error_bytes(data),
        [STATUS, data @ ..] => return Ok(Some(ended(data)?)),
        // A channel that closes, or one of a newer server.
        _ => {}
    }
    Ok(None)
}

/// The Status that a command ends with: its exit code stands among the causes.
fn ended(status: &[u8]) -> anyhow::Result<End> {
    let status: Value = serde_json::from_slice(status).context("the end of the command is not readable")?;
    if status["status"] == "Success" {
        return Ok(End { code: 0, message: None });
    }
    let message = status["message"].as_str().unwrap_or("the command failed");
    let causes = status.pointer("/details/causes").and_then(Value::as_array).into_iter().flatten();
    let code =
        causes.filter(|c| c["reason"] == "ExitCode").find_map(|c| c["message"].as_str()?.parse::<i32>().ok());
    match code {
        Some(code) => Ok(End {
            // What does not fit a byte is still no success.
            code: u8::try_from(code).unwrap_or(u8::MAX),
            message: Some(format!("command terminated with exit code {code}")),
        }),
        None => bail!("{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_command() {
        let end = |value: Value| ended(value.to_string().as_bytes()).map_err(|e| e.to_string());
        assert_eq!(end(json!({"status": "Success"})), Ok(End { code: 0, message: None }));
        let failed = |code: &str| {
            json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "exit status",
            "details": {"causes": [{"reason": "ExitCode", "message": code}]}})
        };
        let said = |code: &str| Some(format!("command terminated with exit code {code}"));
        assert_eq!(end(failed("3")), Ok(End { code: 3, message: said("3") }));
        assert_eq!(end(failed("-1")), Ok(End { code: 255, message: said("-1") }));
        let other = json!({"status": "Failure", "message": "no such file"});
        assert_eq!(end(other), Err("no such file".into()));
        assert!(ended(b"{").is_err());
    }

    #[test]
    fn input_is_framed_by_channel() {
        assert_eq!(frame(Input::Bytes(b"ab".to_vec())), b"\0ab");
        assert_eq!(frame(Input::End), [255, 0]);
        assert_eq!(frame(Input::Resize { width: 80, height: 24 }), b"\x04{\"Height\":24,\"Width\":80}");
    }

    #[test]
    fn a_terminal_has_one_output() {
        let command = ["sh".to_owned(), "-c".to_owned(), "a b".to_owned()];
        let with =
            |stdin, tty| parameters(&command, Some("c"), &Terminal::without_a_screen(Streams { stdin, tty }));
        assert_eq!(
            with(false, false),
            "?command=sh&command=-c&command=a%20b&container=c&stdout=true&stderr=true"
        );
        assert_eq!(
            with(true, true),
            "?command=sh&command=-c&command=a%20b&container=c&stdin=true&stdout=true&tty=true"
        );
    }
}

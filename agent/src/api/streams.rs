//! A program's standard files over a WebSocket that speaks v5.channel.k8s.io: binary messages whose first byte is the channel.

use std::{fs::File, io, os::fd::OwnedFd, time::Duration};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use minisvc_proto::ApiError;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::mpsc,
};

use super::exec::Program;
use crate::sys::terminal::Terminal;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const CHUNK: usize = 32 << 10;
/// Messages for standard input that wait for a program that does not read.
const WAITING: usize = 16;
/// How long the last words may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// The most that a pipe or terminal holds of what an ended program wrote; what it left behind may go on writing without end.
const LEFT: usize = 1 << 20;
/// How often a client is asked whether it is still there.
const PULSE: Duration = Duration::from_secs(10);

/// What the client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// A terminal.
    pub tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Wanted {
    /// From the query.
    pub fn parse(pairs: &super::Pairs) -> Result<Self, ApiError> {
        let argv: Vec<String> =
            pairs.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect();
        if argv.is_empty() {
            return Err(ApiError::bad_request("command: required, a program and its arguments"));
        }
        let flag = |name| super::flag(pairs, name);
        Ok(Wanted {
            argv,
            tty: flag("tty"),
            stdin: flag("stdin"),
            stdout: flag("stdout"),
            stderr: flag("stderr"),
        })
    }
}

/// Our ends of the program's standard files.
struct Ends {
    stdin: Option<mpsc::Sender<Input>>,
    terminal: Option<std::sync::Arc<Terminal>>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

enum Input {
    Bytes(bytes::Bytes),
    Resize(u16, u16),
}

fn null(write: bool) -> io::Result<OwnedFd> {
    File::options().read(!write).write(write).open("/dev/null").map(OwnedFd::from)
}

/// The program's ends and ours.
fn open(wanted: &Wanted) -> io::Result<([OwnedFd; 3], Ends)> {
    let (sender, receiver) = mpsc::channel(WAITING);
    if wanted.tty {
        let (terminal, slave) = Terminal::open()?;
        let terminal = std::sync::Arc::new(terminal);
        tokio::spawn(type_into(terminal.clone(), receiver));
        let stdio = [slave.try_clone()?, slave.try_clone()?, slave];
        let ends = Ends { stdin: Some(sender), terminal: Some(terminal), stdout: None, stderr: None };
        return Ok((stdio, ends));
    }
    let output = |on: bool| -> io::Result<(OwnedFd, Option<pipe::Receiver>)> {
        if !on {
            return Ok((null(true)?, None));
        }
        let (reader, writer) = io::pipe()?;
        Ok((writer.into(), Some(pipe::Receiver::from_owned_fd(reader.into())?)))
    };
    let stdin = if wanted.stdin {
        let (reader, writer) = io::pipe()?;
        tokio::spawn(feed(pipe::Sender::from_owned_fd(writer.into())?, receiver));
        OwnedFd::from(reader)
    } else {
        null(false)?
    };
    let ((out, stdout), (err, stderr)) = (output(wanted.stdout)?, output(wanted.stderr)?);
    let stdin_end = wanted.stdin.then_some(sender);
    Ok(([stdin, out, err], Ends { stdin: stdin_end, terminal: None, stdout, stderr }))
}

async fn feed(mut pipe: pipe::Sender, mut input: mpsc::Receiver<Input>) {
    while let Some(input) = input.recv().await {
        if let Input::Bytes(bytes) = input
            && pipe.write_all(&bytes).await.is_err()
        {
            // The program reads no more; that is its affair.
            break;
        }
    }
}

async fn type_into(terminal: std::sync::Arc<Terminal>, mut input: mpsc::Receiver<Input>) {
    while let Some(input) = input.recv().await {
        let done = match input {
            Input::Bytes(bytes) => terminal.write_all(&bytes).await,
            Input::Resize(columns, rows) => terminal.resize(columns, rows),
        };
        if done.is_err() {
            break;
        }
    }
}

type Sink = SplitSink<WebSocket, Message>;

async fn send(sink: &mut Sink, channel: u8, data: &[u8]) -> Result<(), axum::Error> {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    sink.send(Message::Binary(message.into())).await
}

/// Starts the program and passes everything both ways. A client that goes away takes the program with it.
pub async fn run(
    socket: WebSocket,
    wanted: Wanted,
    start: impl AsyncFnOnce([OwnedFd; 3]) -> Result<Program, String>,
) {
    let (mut sink, mut stream) = socket.split();
    let started = match open(&wanted) {
        Ok((stdio, ends)) => start(stdio).await.map(|program| (program, ends)),
        Err(e) => Err(format!("cannot make the command's standard files: {e}")),
    };
    let (mut program, mut ends) = match started {
        Ok(started) => started,
        Err(why) => {
            return part(sink, stream, &failure(&why)).await;
        }
    };
    let mut buffers = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut pulse = tokio::time::interval_at(tokio::time::Instant::now() + PULSE, PULSE);
    let code = loop {
        tokio::select! {
            code = program.ended() => break code,
            read = read_out(&mut ends.stdout, ends.terminal.as_deref(), &mut buffers.0) => {
                if let Ok(n @ 1..) = read {
                    if send(&mut sink, STDOUT, &buffers.0[..n]).await.is_err() {
                        return;
                    }
                } else {
                    (ends.stdout, ends.terminal) = (None, None);
                }
            }
            read = read_out(&mut ends.stderr, None, &mut buffers.1) => {
                if let Ok(n @ 1..) = read {
                    if send(&mut sink, STDERR, &buffers.1[..n]).await.is_err() {
                        return;
                    }
                } else {
                    ends.stderr = None;
                }
            }
            // While nothing is read from the client, its end is seen by this alone.
            _ = pulse.tick() => if sink.send(Message::Ping(bytes::Bytes::new())).await.is_err() {
                return;
            },
            // A client that says more than the program reads is heard again when it has read.
            message = next(&mut stream, ends.stdin.as_ref()) => match message {
                Some(Ok(message)) => take(message, &mut ends.stdin),
                _ => return,
            },
        }
    };
    // What the program wrote before it ended is all there.
    if drain(&mut sink, &mut ends, &mut buffers.0).await.is_err() {
        return;
    }
    let status = code.map_or_else(|| failure("the pod ended under the command"), ended);
    part(sink, stream, &status).await;
}

/// The last word, and the client's answer to the goodbye: a connection cut before it may take the last word with it.
async fn part(mut sink: Sink, mut stream: SplitStream<WebSocket>, status: &Value) {
    let goodbye = async {
        send(&mut sink, STATUS, status.to_string().as_bytes()).await?;
        // With a code: kubectl takes a close without one for a stream that broke off.
        let normal = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        sink.send(Message::Close(Some(normal))).await?;
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<(), axum::Error>(())
    };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}

async fn read_out(
    pipe: &mut Option<pipe::Receiver>,
    terminal: Option<&Terminal>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    match (pipe, terminal) {
        (Some(pipe), _) => pipe.read(buffer).await,
        (None, Some(terminal)) => terminal.read(buffer).await,
        (None, None) => std::future::pending().await,
    }
}

async fn next(
    stream: &mut SplitStream<WebSocket>,
    stdin: Option<&mpsc::Sender<Input>>,
) -> Option<Result<Message, axum::Error>> {
    if let Some(stdin) = stdin {
        // A closed one takes nothing, and holds up nothing.
        let _ = stdin.reserve().await;
    }
    stream.next().await
}

/// One message of the client. There is room for it.
fn take(message: Message, stdin: &mut Option<mpsc::Sender<Input>>) {
    let Message::Binary(bytes) = message else { return };
    match (bytes.first(), stdin.as_ref()) {
        (Some(&STDIN), Some(open)) => {
            let _ = open.try_send(Input::Bytes(bytes.slice(1..)));
        }
        (Some(&RESIZE), Some(open)) => {
            let size: Value = serde_json::from_slice(&bytes[1..]).unwrap_or_default();
            let side = |name: &str| size[name].as_u64().and_then(|n| u16::try_from(n).ok());
            if let (Some(columns), Some(rows)) = (side("Width"), side("Height")) {
                let _ = open.try_send(Input::Resize(columns, rows));
            }
        }
        (Some(&CLOSE), _) if bytes.get(1) == Some(&STDIN) => *stdin = None,
        _ => {}
    }
}

async fn drain(sink: &mut Sink, ends: &mut Ends, buffer: &mut [u8]) -> Result<(), axum::Error> {
    let mut read = 0;
    if let Some(terminal) = &ends.terminal {
        while read < LEFT
            && let Some(n) = terminal.read_now(buffer)
        {
            read += n;
            send(sink, STDOUT, &buffer[..n]).await?;
        }
    }
    for (pipe, channel) in [(&ends.stdout, STDOUT), (&ends.stderr, STDERR)] {
        let Some(pipe) = pipe else { continue };
        let mut read = 0;
        while read < LEFT {
            // Not `try_read`: that believes an earlier word that there is nothing.
            match nix::unistd::read(pipe, buffer) {
                Ok(n @ 1..) => {
                    read += n;
                    send(sink, channel, &buffer[..n]).await?;
                }
                Err(nix::errno::Errno::EINTR) => {}
                _ => break,
            }
        }
    }
    Ok(())
}

fn ended(code: i32) -> Value {
    if code == 0 {
        return json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

fn failure(why: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "InternalError",
        "code": 500, "message": why})
}

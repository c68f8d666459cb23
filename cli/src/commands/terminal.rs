//! This side's terminal: what is typed, how large it is, and raw mode, which ends with the command, however it ends.

use std::{
    io::{self, IsTerminal, Read},
    thread,
};

use anyhow::Context as _;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::{args::Streams, output};

/// What goes to the command.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Typed, or read from a file or pipe.
    Bytes(Vec<u8>),
    /// Nothing more comes.
    End,
    /// Columns and rows.
    Resize { width: u16, height: u16 },
}

/// Standard input of a remote command.
#[derive(Debug)]
pub struct Terminal {
    /// What the command gets: a terminal only where there is one.
    pub streams: Streams,
    typed: Option<mpsc::Receiver<Vec<u8>>>,
    resized: Option<Signal>,
    first_size: bool,
    before: Option<Termios>,
}

impl Terminal {
    /// Takes standard input, and sets it raw, where that was asked for.
    pub fn open(mut streams: Streams) -> anyhow::Result<Terminal> {
        if streams.tty && !(streams.stdin && io::stdin().is_terminal()) {
            if streams.stdin {
                output::note("Unable to use a TTY - input is not a terminal or the right kind of file");
                streams.tty = false;
            } else if !io::stdout().is_terminal() {
                streams.tty = false;
            }
        }
        let mut terminal = Terminal::without_a_screen(streams);
        if streams.tty {
            terminal.resized = Some(signal(SignalKind::window_change())?);
            terminal.first_size = true;
        }
        if streams.tty && streams.stdin {
            let before = termios::tcgetattr(io::stdin()).context("the terminal's settings")?;
            let mut raw = before.clone();
            raw.make_raw();
            termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("the terminal's raw mode")?;
            terminal.before = Some(before);
        }
        if streams.stdin {
            let (sender, typed) = mpsc::channel(16);
            // A thread of its own, not one of the runtime's: a read that never ends must not keep this process from ending.
            thread::Builder::new().name("stdin".into()).spawn(move || {
                let mut buffer = vec![0; 32 * 1024];
                let mut stdin = io::stdin().lock();
                loop {
                    match stdin.read(&mut buffer) {
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Ok(0) | Err(_) => return,
                        Ok(n) if sender.blocking_send(buffer[..n].to_vec()).is_err() => return,
                        Ok(_) => {}
                    }
                }
            })?;
            terminal.typed = Some(typed);
        }
        Ok(terminal)
    }

    /// Reads nothing, and knows no size.
    pub fn without_a_screen(streams: Streams) -> Terminal {
        Terminal { streams, typed: None, resized: None, first_size: false, before: None }
    }

    /// What comes next; `None` when nothing ever will.
    pub async fn next(&mut self) -> Option<Input> {
        if std::mem::take(&mut self.first_size)
            && let Some(size) = size()
        {
            return Some(size);
        }
        loop {
            let resized = async {
                match &mut self.resized {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            let typed = async {
                match &mut self.typed {
                    Some(typed) => typed.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = resized => if let Some(size) = size() { return Some(size) },
                bytes = typed => {
                    if bytes.is_none() {
                        self.typed = None;
                    }
                    return Some(bytes.map_or(Input::End, Input::Bytes));
                }
            }
        }
    }

    /// Gives the terminal back as it was.
    pub fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Of the terminal that is written to, else of the one that is read.
fn size() -> Option<Input> {
    let size = termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin())).ok()?;
    Some(Input::Resize { width: size.ws_col, height: size.ws_row })
}

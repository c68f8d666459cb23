//! The demo workload as a process: what it prints, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use minisvc_tests::binary::minisvc;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

struct Echo {
    child: Child,
    port: u16,
    line: String,
}

impl Echo {
    fn start() -> Echo {
        let mut command = Command::new(minisvc().unwrap());
        command.args(["echo", "--port", "0"]).env("MINISVC_POD", "hello-1").env("MINISVC_NODE", "node-1");
        let mut child = command.env("MINISVC_POD_IP", "10.244.0.2").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split("port ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
        Echo { child, port, line }
    }

    fn ask(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_lets_it_finish_what_it_has_begun() {
    let mut echo = Echo::start();
    assert_eq!(echo.line, format!("hello-1 listens on port {}: HTTP, TCP and UDP\n", echo.port));
    let mut busy = echo.ask("/?format=text&delay=200");
    kill(Pid::from_raw(echo.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert!(answer.contains("hello-1 on node-1 (10.244.0.2) saw 127.0.0.1:"), "{answer}");
    assert_eq!(echo.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_port_in_use_is_one_line() {
    let echo = Echo::start();
    let port = echo.port.to_string();
    let second = Command::new(minisvc().unwrap()).args(["echo", "--port", &port]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(said, format!("error: --port: {port} is in use by another TCP listener: choose another\n"));
}

//! TCP (RFC 7766): many questions on a connection, answered in the order in which answers are known.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Judged, Shared, Transport};

/// How long a client may say nothing, or take to say or hear something.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of a connection that wait for resolvers; the next is read when one of them is answered.
const MOST_OPEN: usize = 32;
/// Answers that wait to be written are written when they are longer than this.
const MUCH: usize = 64 << 10;
const READ: usize = 4096;
/// Pause after an error of a socket that goes on afterwards (no memory, no file descriptors).
const AFTER_ERROR: Duration = Duration::from_millis(50);

pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((stream, from)) => {
                // One too many is closed at once.
                let Some(place) = shared.connections.take(from.ip()) else { continue };
                let shared = shared.clone();
                clients.spawn(async move {
                    let _place = place;
                    // A client that goes away is no news.
                    let _ = client(&shared, stream, from.ip()).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "DNS over TCP");
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

/// One question after the other until the client has none.
async fn client(shared: &Shared, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut out) = (Vec::new(), Vec::new());
    let mut open = FuturesUnordered::new();
    let mut ended = false;
    let mut until = Instant::now() + IDLE;
    loop {
        let mut taken = 0;
        while open.len() < MOST_OPEN
            && let Some(message) = first(&read[taken..])
        {
            taken += 2 + message.len();
            match shared.judge(message, from, Transport::Tcp) {
                Judged::Ignored => return Ok(()),
                Judged::Answered(answer) => push(&mut out, &answer),
                Judged::Open(question) => open.push(shared.complete(question)),
            }
            if out.len() > MUCH {
                flush(&mut stream, &mut out).await?;
            }
        }
        read.drain(..taken);
        flush(&mut stream, &mut out).await?;
        if taken > 0 {
            until = Instant::now() + IDLE;
        }
        if ended && open.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(answer) = open.next() => {
                push(&mut out, &answer);
                until = Instant::now() + IDLE;
            }
            got = async {
                read.reserve(READ);
                stream.read_buf(&mut read).await
            }, if !ended && open.len() < MOST_OPEN => ended = got? == 0,
            () = sleep_until(until), if open.is_empty() => return Ok(()),
        }
    }
}

/// The first whole message: its length, then its bytes.
fn first(bytes: &[u8]) -> Option<&[u8]> {
    let length: &[u8; 2] = bytes.first_chunk()?;
    bytes.get(2..2 + usize::from(u16::from_be_bytes(*length)))
}

fn push(out: &mut Vec<u8>, answer: &[u8]) {
    // No answer is longer: it was written with that limit, or came so.
    if let Ok(length) = u16::try_from(answer.len()) {
        out.extend(length.to_be_bytes());
        out.extend(answer);
    }
}

async fn flush(stream: &mut TcpStream, out: &mut Vec<u8>) -> io::Result<()> {
    if !out.is_empty() {
        timeout(IDLE, stream.write_all(out)).await??;
        out.clear();
    }
    Ok(())
}

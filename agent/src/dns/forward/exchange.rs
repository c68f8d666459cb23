//! One question to resolvers, until one of them answers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::Record,
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep_until},
};

use super::super::{
    answer::{Code, Transport},
    question::HEADER,
};

/// What one question may take in all: less than the five seconds after which resolver libraries give up or ask again.
const BUDGET: Duration = Duration::from_secs(4);
/// After so long without an answer the next resolver is asked too; the earlier ones may still answer.
const STEP: Duration = Duration::from_millis(800);
/// A question is asked at least this often, also where there is a single resolver: packets get lost.
const LEAST_TRIES: usize = 3;
const MOST_TRIES: usize = 6;
const LARGEST: usize = 65_535;

/// What came of a question.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Whose answer, and which.
    pub(super) answer: Option<(SocketAddr, Vec<u8>)>,
    /// Who was asked and said nothing, or nothing of use.
    pub(super) silent: Vec<SocketAddr>,
}

/// Asks one resolver after the other: the next at once if one fails, or after [`STEP`] if one says nothing.
pub(super) async fn ask(resolvers: &[SocketAddr], question: &[u8], transport: Transport) -> Outcome {
    let end = Instant::now() + BUDGET;
    let tries = resolvers.len().clamp(LEAST_TRIES, MOST_TRIES);
    let mut next = resolvers.iter().copied().cycle().take(tries);
    let mut running = FuturesUnordered::new();
    let mut outcome = Outcome::default();
    let mut failed = None;
    let mut step = Instant::now();
    let mut more = true;
    loop {
        if more && (running.is_empty() || step <= Instant::now()) {
            match next.next() {
                Some(resolver) => {
                    running.push(attempt(resolver, question, transport));
                    if !outcome.silent.contains(&resolver) {
                        outcome.silent.push(resolver);
                    }
                    step = Instant::now() + STEP;
                }
                None => more = false,
            }
            continue;
        }
        tokio::select! {
            Some((resolver, answer)) = running.next() => match answer {
                Ok(answer) if !is_failure(&answer) => {
                    outcome.silent.retain(|r| *r != resolver);
                    outcome.answer = Some((resolver, answer));
                    return outcome;
                }
                // Another resolver may know better; if none does, the client gets what this one said.
                Ok(answer) => {
                    failed = Some((resolver, answer));
                    step = Instant::now();
                }
                Err(error) => {
                    tracing::debug!(%resolver, %error, "a resolver did not answer");
                    step = Instant::now();
                }
            },
            () = sleep_until(step), if more => {}
            () = sleep_until(end) => break,
            else => break,
        }
        if running.is_empty() && !more {
            break;
        }
    }
    outcome.answer = failed;
    outcome
}

async fn attempt(
    resolver: SocketAddr,
    question: &[u8],
    transport: Transport,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    let answer = match transport {
        Transport::Udp => udp(resolver, question).await,
        Transport::Tcp => tcp(resolver, question).await,
    };
    (resolver, answer)
}

/// SERVFAIL, NOTIMP and REFUSED say something about the server, not about the name.
fn is_failure(answer: &[u8]) -> bool {
    matches!(answer[3] & 0x0f, 2 | 4 | 5)
}

/// Whether there is more than the answer says.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// What a resolver's answer says: the code, and the records of its answer section, whole and not compressed.
pub(in super::super) fn records(answer: &[u8]) -> Option<(Code, Vec<Vec<u8>>)> {
    let message = Message::from_vec(answer).ok()?;
    let code = match message.metadata.response_code {
        ResponseCode::NoError => Code::NoError,
        ResponseCode::NXDomain => Code::NxDomain,
        _ => return None,
    };
    let whole = |record| -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_name_encoding(NameEncoding::Uncompressed);
        Record::emit(record, &mut encoder).ok()?;
        Some(bytes)
    };
    Some((code, message.answers.iter().map(whole).collect::<Option<_>>()?))
}

/// The question under an id that nobody but the resolver knows: together with a port of its own, that is what a forger of
/// answers has to guess.
fn with_fresh_id(question: &[u8]) -> Vec<u8> {
    let mut question = question.to_vec();
    question[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    question
}

async fn udp(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(resolver).await?;
    let question = with_fresh_id(question);
    socket.send(&question).await?;
    let mut answer = Vec::with_capacity(LARGEST);
    loop {
        answer.clear();
        socket.recv_buf(&mut answer).await?;
        if answers(&answer, &question) {
            answer.shrink_to_fit();
            return Ok(answer);
        }
    }
}

async fn tcp(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream.set_nodelay(true)?;
    let question = with_fresh_id(question);
    write_message(&mut stream, &question).await?;
    let answer = read_message(&mut stream).await?;
    if answers(&answer, &question) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
    }
}

/// Whether this is a response with the question's id and, if it repeats a question, with that one.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    if answer.len() < HEADER || answer[..2] != question[..2] || answer[2] & 0x80 == 0 {
        return false;
    }
    let end = question_end(question);
    match answer[4..6] {
        // Servers that refuse may leave the question out.
        [0, 0] => is_failure(answer) || answer[3] & 0x0f == 1,
        [0, 1] => answer.get(HEADER..end).is_some_and(|q| q.eq_ignore_ascii_case(&question[HEADER..end])),
        _ => false,
    }
}

/// Where the first question ends: its name's labels, the byte 0, type and class.
fn question_end(message: &[u8]) -> usize {
    let mut at = HEADER;
    while let Some(length) = message.get(at).copied().filter(|l| *l != 0) {
        at += 1 + usize::from(length);
    }
    (at + 5).min(message.len())
}

/// A message of a DNS stream: its length, then its bytes.
pub(in super::super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Length and bytes in one write, as servers like it.
pub(in super::super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a DNS message has at most 65535 bytes"))?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_the_question_is_taken() {
        let question = b"\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        assert_eq!(question_end(question), question.len());
        let response = |change: fn(&mut Vec<u8>)| {
            let mut answer = question.to_vec();
            answer[2] |= 0x80;
            change(&mut answer);
            answers(&answer, question)
        };
        assert!(response(|_| {}));
        assert!(response(|a| a[13] = b'A'));
        assert!(response(|a| {
            (a[3], a[5]) = (5, 0);
            a.truncate(HEADER);
        }));
        assert!(!response(|a| {
            a[5] = 0;
            a.truncate(HEADER);
        }));
        assert!(!response(|a| a[0] = 9), "id");
        assert!(!response(|a| a[2] = 1), "not a response");
        assert!(!response(|a| a[13] = b'x'), "name");
        assert!(!response(|a| a[16] = 28), "type");
        assert!(!response(|a| a[5] = 2), "two questions");
        assert!(!response(|a| a.truncate(18)), "cut short");
        assert!(!response(|a| a.truncate(3)), "no header");
    }
}

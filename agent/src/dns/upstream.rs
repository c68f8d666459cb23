//! Names that are not the cluster's: the question goes on as it came, to the machine's resolvers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::Record,
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use super::answer::{Code, Transport, UDP_LIMIT, kind};

/// What one question may take in all: less than the five seconds after which resolver libraries ask again.
const BUDGET: Duration = Duration::from_secs(2);
/// What one try may take: a lost packet leaves room for another.
const TRY: Duration = Duration::from_secs(1);
/// A question is asked at least this often, also where there is a single resolver.
const TRIES: usize = 2;
const LARGEST: usize = 65_535;
/// Id, flags and counts.
const HEADER: usize = 12;
const PORT: u16 = 53;

/// The servers of a resolv.conf, without ourselves: a question must not come back to where it left.
pub fn parse_resolv_conf(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
        })
        .filter(|ip| !own.contains(ip))
        .map(|ip| SocketAddr::new(ip, PORT))
        .collect()
}

/// The answer to a question in wire format, or `None` if no resolver gave one in time.
pub(super) async fn ask(upstreams: &[SocketAddr], question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let id = [*question.first()?, *question.get(1)?];
    let end = Instant::now() + BUDGET;
    let mut last = None;
    for upstream in upstreams.iter().cycle().take(TRIES.max(upstreams.len())) {
        let asked = async {
            match transport {
                Transport::Udp => udp(*upstream, question).await,
                Transport::Tcp => timeout(TRY, tcp(*upstream, question)).await?,
            }
        };
        let Ok(answer) = timeout_at(end, asked).await else { break };
        match answer {
            Ok(mut answer) => {
                answer[..2].copy_from_slice(&id);
                if !is_failure(&answer) {
                    return Some(answer);
                }
                // Another resolver may know better; if none does, the client gets what this one said.
                last = Some(answer);
            }
            Err(error) => tracing::debug!(%upstream, %error, "a resolver did not answer"),
        }
    }
    last
}

/// SERVFAIL, NOTIMP and REFUSED say something about the server, not about the name.
fn is_failure(answer: &[u8]) -> bool {
    matches!(answer[3] & 0x0f, 2 | 4 | 5)
}

/// Whether there is more than the answer says.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// A question for a name on the wire that no client has asked in these words.
pub(super) fn plain_question(name: &[u8], kind: u16) -> Vec<u8> {
    // Recursion desired, one question, one additional record: EDNS.
    let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    question.extend(name);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    question.push(0);
    question.extend(kind::OPT.to_be_bytes());
    question.extend(UDP_LIMIT.to_be_bytes());
    question.extend([0; 6]);
    question
}

/// What a resolver's answer says: the code, and the records of its answer section, whole and not compressed.
pub(super) fn records(answer: &[u8]) -> Option<(Code, Vec<Vec<u8>>)> {
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

async fn udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(upstream).await?;
    let question = with_fresh_id(question);
    socket.send(&question).await?;
    let mut answer = vec![0; LARGEST];
    timeout(TRY, async {
        loop {
            let length = socket.recv(&mut answer).await?;
            if answers(&answer[..length], &question) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    })
    .await?
}

async fn tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
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
    // Servers that refuse may leave the question out.
    let repeated = answer[4..6] != [0, 0];
    !repeated || answer.get(HEADER..end).is_some_and(|q| q.eq_ignore_ascii_case(&question[HEADER..end]))
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
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Length and bytes in one write, as servers like it.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a DNS message has at most 65535 bytes"))?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_come_from_nameserver_lines() {
        let text = "# nameserver 1.1.1.1\nsearch a\nnameserver 9.9.9.9\n nameserver 169.254.1.1\nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver x\n";
        let own = [IpAddr::from([169, 254, 1, 1])];
        let want = ["9.9.9.9:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text, &own), want);
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let question = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01";
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
            a[5] = 0;
            a.truncate(HEADER);
        }));
        assert!(!response(|a| a[0] = 9), "id");
        assert!(!response(|a| a[2] = 1), "not a response");
        assert!(!response(|a| a[13] = b'x'), "name");
        assert!(!response(|a| a.truncate(20)), "cut short");
        assert!(!response(|a| a.truncate(3)), "no header");
    }
}

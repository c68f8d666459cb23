//! Probes as packets: a datagram that leaves with a source that is nobody's, to an address of the other node's pod range, and back.
//!
//! What answers there stands where a pod stands, behind a link of its own, so that the probe meets what a client's packet meets. Its address
//! is the last of the range, which no pod has. The rules give what is sent to it the foreign source.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use tokio::{net::UdpSocket, time::timeout};

use super::probe::Failure;
use crate::net::{LinkName, Net};

/// Where probes are answered.
pub const PORT: u16 = 8474;
/// The source of probes: the dummy address of IPv4, which no machine has and no router forwards to. [RFC 7600]
pub const FOREIGN: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// In the place of a pod's uid.
pub const UID: &str = "source-probe.minisvc.io";

const QUESTION: [u8; 16] = *b"minisvc-source-q";
const ANSWER: [u8; 16] = *b"minisvc-source-a";
const LENGTH: usize = 32;
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a node's probes are answered.
pub fn address(pod_cidr: Ipv4Net) -> Ipv4Addr {
    pod_cidr.broadcast()
}

/// Asks once. Nobody who has not seen the question can give its answer.
pub async fn ask(pod_cidr: Ipv4Net) -> Result<(), Failure> {
    let asked = async {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect((address(pod_cidr), PORT)).await?;
        let nonce = uuid::Uuid::new_v4().into_bytes();
        socket.send(&[QUESTION, nonce].concat()).await?;
        let mut answer = [0; LENGTH + 1];
        loop {
            let n = socket.recv(&mut answer).await?;
            if answer[..n] == [ANSWER, nonce].concat() {
                return io::Result::Ok(());
            }
        }
    };
    match timeout(PATIENCE, asked).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Failure::Unsent),
        Err(_) => Err(Failure::Silent),
    }
}

/// Answers other nodes' probes; ends when dropped.
#[derive(Debug)]
pub struct Responder(UdpSocket);

impl Responder {
    /// Listens in a network of its own, connected as a pod is. A link that an earlier agent left is replaced.
    pub async fn start(net: &Net, local_pod_cidr: Ipv4Net) -> io::Result<Self> {
        let (netns, socket) = std::thread::Builder::new()
            .name("source-probe".into())
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let netns = File::open("/proc/thread-self/ns/net")?;
                // A socket stays in the network in which it was made, and keeps it.
                let socket = std::net::UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))?;
                socket.set_nonblocking(true)?;
                io::Result::Ok((netns, socket))
            })?
            .join()
            .map_err(|_| io::Error::other("the thread panicked"))??;
        let socket = UdpSocket::from_std(socket)?;
        let link = LinkName::of_pod(UID);
        net.attach(link, address(local_pod_cidr), netns.into()).await.map_err(io::Error::other)?;
        Ok(Responder(socket))
    }

    /// Answers as long as it runs: only what has the foreign source, and with no more than was asked.
    pub async fn run(self) {
        let mut question = [0; LENGTH + 1];
        loop {
            // Errors are the ICMP answers to earlier answers.
            let Ok((n, from)) = self.0.recv_from(&mut question).await else { continue };
            if let Some(answer) = answer(&question[..n], from) {
                let _ = self.0.send_to(&answer, from).await;
            }
        }
    }
}

fn answer(question: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let nonce = question.strip_prefix(&QUESTION).filter(|nonce| nonce.len() == LENGTH - QUESTION.len())?;
    (from.ip() == IpAddr::V4(FOREIGN)).then(|| [&ANSWER[..], nonce].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_questions_with_the_foreign_source_are_answered() {
        let from = |ip: Ipv4Addr| SocketAddr::new(ip.into(), 4000);
        let question = [QUESTION, [7; 16]].concat();
        assert_eq!(answer(&question, from(FOREIGN)), Some([ANSWER, [7; 16]].concat()));
        for (question, ip) in [
            (&question[..], Ipv4Addr::new(192, 0, 2, 11)),
            (&question[..31], FOREIGN),
            (&[&question[..], &[1]].concat(), FOREIGN),
            (&[ANSWER, [7; 16]].concat(), FOREIGN),
            (&[], FOREIGN),
        ] {
            assert_eq!(answer(question, from(ip)), None);
        }
    }
}

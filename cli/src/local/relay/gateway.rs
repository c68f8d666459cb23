//! The LAN's way out: what the room's machines send elsewhere comes to sockets of this process inside the room, which stand for
//! any address (TPROXY), and is carried on by sockets on this machine. One address of the LAN stands for this machine's own
//! loopback addresses.

mod segment;
mod tcp;
mod udp;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    super::{lan, report::say},
    RoomSockets,
};

/// Who asks, and whom.
type Pair = (SocketAddrV4, SocketAddrV4);

/// Files that the rest of the relay needs.
const OTHER_FILES: u64 = 512;
/// Connections at once, and as many UDP flows, unless the process may open too few files.
const MOST: u64 = 8192;

/// Carries until the relay ends.
pub async fn serve(room: RoomSockets) {
    let most = places();
    let tell = |proto: &str, e: io::Error| {
        say(&format!("warning: pods cannot reach this machine, nor what it reaches, over {proto}: {e}"));
        tracing::error!("{proto} from the LAN: {e}");
    };
    let tcp = async { tcp::serve(&room, most).await.unwrap_or_else(|e| tell("TCP", e)) };
    let udp = async { udp::serve(&room, most).await.unwrap_or_else(|e| tell("UDP", e)) };
    tokio::join!(tcp, udp);
}

/// How many connections, and how many flows, there may be at once. Each takes a file on either side.
fn places() -> usize {
    let soft = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() => hard,
        Ok((soft, _)) => soft,
        Err(_) => 1024,
    };
    usize::try_from((soft.saturating_sub(OTHER_FILES) / 4).clamp(64, MOST)).unwrap_or(64)
}

/// What on this machine an address of the LAN's stands for, in the order in which to try; nothing for those that nobody has.
fn targets(to: SocketAddrV4) -> Vec<SocketAddr> {
    let ip = *to.ip();
    if ip == lan::MACHINE {
        // A service may listen on one of both only.
        return vec![(Ipv4Addr::LOCALHOST, to.port()).into(), (Ipv6Addr::LOCALHOST, to.port()).into()];
    }
    // Above 224.0.0.0 nothing is meant for one machine.
    let nobody = ip.octets()[0] == 0
        || ip.is_loopback()
        || ip.octets()[0] >= 224
        || lan::net().contains(&ip)
        || lan::CLUSTER.iter().any(|net| net.contains(&ip));
    if nobody { Vec::new() } else { vec![to.into()] }
}

/// What a client is told when nobody could be reached for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// There is nobody on that port.
    NoService,
    /// ICMP "destination unreachable" with this code.
    Unreachable(u8),
    /// Nothing: it asks again by itself, and gives up when it wants to.
    Silence,
}

impl Refusal {
    fn of(e: &io::Error) -> Self {
        const NETWORK: u8 = 0;
        const HOST: u8 = 1;
        const PROHIBITED: u8 = 13;
        match e.kind() {
            io::ErrorKind::NetworkUnreachable => Refusal::Unreachable(NETWORK),
            io::ErrorKind::HostUnreachable => Refusal::Unreachable(HOST),
            io::ErrorKind::PermissionDenied => Refusal::Unreachable(PROHIBITED),
            io::ErrorKind::TimedOut => Refusal::Silence,
            // Also what is this process's own trouble, too many files say: better a clear end than none.
            _ => Refusal::NoService,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_lan_stands_for_loopback_and_others_for_themselves() {
        let of = |to: &str| -> Vec<String> {
            targets(to.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of("192.168.77.254:5432"), ["127.0.0.1:5432", "[::1]:5432"]);
        for own in ["192.0.2.1:80", "10.0.0.1:22", "192.168.76.1:1", "100.64.0.1:9"] {
            assert_eq!(of(own), [own]);
        }
        for nobody in [
            "192.168.77.1:80",
            "192.168.77.12:80",
            "127.0.0.1:80",
            "0.0.0.0:80",
            "224.0.0.251:5353",
            "255.255.255.255:67",
        ] {
            assert_eq!(of(nobody), [""; 0], "{nobody}");
        }
        for cluster in ["10.244.1.3:80", "10.96.0.10:53"] {
            assert_eq!(of(cluster), [""; 0], "{cluster}");
        }
    }

    #[test]
    fn a_client_is_told_what_the_machine_was_told() {
        use nix::errno::Errno;
        let of = |e: Errno| Refusal::of(&e.into());
        assert_eq!(of(Errno::ECONNREFUSED), Refusal::NoService);
        assert_eq!(of(Errno::ENETUNREACH), Refusal::Unreachable(0));
        assert_eq!(of(Errno::EHOSTUNREACH), Refusal::Unreachable(1));
        assert_eq!(of(Errno::EPERM), Refusal::Unreachable(13));
        assert_eq!(of(Errno::ETIMEDOUT), Refusal::Silence);
        assert_eq!(of(Errno::EMFILE), Refusal::NoService);
    }
}

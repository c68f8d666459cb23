//! A door: one port on 127.0.0.1 and [::1].

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{Dial, tcp, udp};
use crate::plan::Proto;

/// Between two attempts to open a door that was taken.
const TAKEN_AGAIN: Duration = Duration::from_secs(5);

/// Protocol and port.
pub type DoorKey = (Proto, u16);

/// Closes, with all that goes through it, when dropped.
#[derive(Debug)]
pub struct Door {
    _tasks: JoinSet<()>,
}

impl Door {
    /// Opens a port. Fails when 127.0.0.1 or [::1] has it taken; a machine without IPv6 goes without [::1].
    pub async fn open(proto: Proto, port: u16, dial: impl Dial) -> io::Result<Door> {
        let mut tasks = JoinSet::new();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let at = SocketAddr::new(ip, port);
            let dial = dial.clone();
            let opened = match proto {
                Proto::Tcp => TcpListener::bind(at).await.map(|listener| {
                    tasks.spawn(tcp::serve(listener, dial));
                }),
                Proto::Udp => UdpSocket::bind(at).await.map(|socket| {
                    tasks.spawn(udp::serve(socket, dial));
                }),
                // A relay speaks for both sides, which SCTP's several addresses and streams do not bear.
                Proto::Sctp => Ok(()),
            };
            match opened {
                Err(e) if ip.is_ipv6() && e.kind() != io::ErrorKind::AddrInUse => {}
                other => other?,
            }
        }
        Ok(Door { _tasks: tasks })
    }
}

/// A door that cannot be opened; told once for each owner, and tried again by and by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken<O> {
    /// Protocol of the door.
    pub proto: Proto,
    /// Its port.
    pub port: u16,
    /// Who wants it.
    pub owner: O,
    /// Why it cannot be had.
    pub cause: String,
}

/// A reason without numbers.
fn cause(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::AddrInUse => "it is in use by another program".into(),
        _ => e.to_string(),
    }
}

/// Keeps exactly the wanted ports open until nobody can want any more; what `opener` makes of one closes it when dropped.
pub async fn keep<O: Clone + PartialEq, T, F: Future<Output = io::Result<T>>>(
    mut wanted: watch::Receiver<BTreeMap<DoorKey, O>>,
    opener: impl Fn(Proto, u16) -> F,
    taken: mpsc::Sender<Taken<O>>,
) {
    let mut open: HashMap<DoorKey, T> = HashMap::new();
    let mut told: HashMap<DoorKey, O> = HashMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        open.retain(|key, _| now.contains_key(key));
        told.retain(|key, owner| now.get(key) == Some(owner));
        for (key, owner) in &now {
            if open.contains_key(key) {
                continue;
            }
            let (proto, port) = *key;
            match opener(proto, port).await {
                Ok(door) => {
                    open.insert(*key, door);
                    told.remove(key);
                }
                Err(e) if told.get(key) != Some(owner) => {
                    let word = Taken { proto, port, owner: owner.clone(), cause: cause(&e) };
                    // A listener that is behind misses it now and hears it with the next attempt.
                    if taken.try_send(word).is_ok() || taken.is_closed() {
                        told.insert(*key, owner.clone());
                    }
                }
                Err(_) => {}
            }
        }
        let shut = now.len() > open.len();
        let again = Instant::now() + TAKEN_AGAIN;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(again), if shut => {}
        }
    }
}

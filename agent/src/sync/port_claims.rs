//! The service ports of load balancers at this node's own addresses. The machine has programs of its own there: what one of them has
//! is not taken from it, and what a service has is kept from programs that come later, so that they fail with a clear error instead
//! of hearing nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use minisvc_proto::{
    NodeName, Object, ObjectKey,
    client::{Client, ClientError, PatchKind},
    path::Target,
    resource::{NODES, SERVICES},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::events::{Recorder, Severity};
use crate::plan::{Proto, ServiceKey, ServicePlan};

/// Between two attempts at a port that is taken, and between two to tell the server.
pub const AGAIN: Duration = Duration::from_secs(5);
/// The field of a Node's status that lists the ports that others have.
const FIELD: &str = "loadBalancerPortsTaken";

type Port = (Proto, u16);

/// Why a service cannot have a port here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    uid: String,
    cause: String,
}

/// By service and port.
pub type Taken = BTreeMap<(ServiceKey, Port), Refused>;

/// What this node holds for load balancers.
#[derive(Debug, Default)]
pub struct Claims {
    held: BTreeMap<Port, Claim>,
    /// Those that want something.
    services: BTreeSet<ServiceKey>,
    taken: watch::Sender<Taken>,
}

#[derive(Debug)]
struct Claim {
    owner: ServiceKey,
    /// A socket for each address: bound, and never listening.
    sockets: BTreeMap<IpAddr, OwnedFd>,
}

impl Claims {
    /// What cannot be had, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Taken> {
        self.taken.subscribe()
    }

    /// The services that wait for a port: worth another look every [`AGAIN`].
    pub fn waiting(&self) -> BTreeSet<ServiceKey> {
        self.taken.borrow().keys().map(|(key, _)| key.clone()).collect()
    }

    /// Claims what a service's plan (`None`: gone) wants of the node's `own` addresses, gives back what it wants no more, and takes
    /// out of the plan what cannot be had. What was refused to a load balancer of the nodes (`balances`) is tried again also while it
    /// does not list this node: it does not because of the refusal, and forgetting that would have it listed and refused for ever.
    pub fn settle(
        &mut self,
        key: &ServiceKey,
        uid: &str,
        plan: Option<&mut ServicePlan>,
        own: &BTreeSet<IpAddr>,
        balances: bool,
    ) {
        let mut wanted: BTreeMap<Port, BTreeSet<IpAddr>> = BTreeMap::new();
        for port in plan.iter().flat_map(|plan| &plan.ports) {
            let addresses = port.load_balancer_ips.intersection(own).copied();
            wanted.entry((port.proto, port.port)).or_default().extend(addresses);
        }
        for port in plan.iter().flat_map(|plan| &plan.ports).filter(|_| balances) {
            let place = (port.proto, port.port);
            if self.taken.borrow().contains_key(&(key.clone(), place)) {
                let family = own.iter().filter(|ip| ip.is_ipv4() == port.cluster_ip.is_ipv4());
                wanted.entry(place).or_default().extend(family);
            }
        }
        wanted.retain(|_, addresses| !addresses.is_empty());
        let wants = !wanted.is_empty();
        // Few services are load balancers: the others cost nothing here.
        if !wants && !self.services.remove(key) {
            return;
        }
        if wants {
            self.services.insert(key.clone());
        }
        self.held.retain(|port, claim| claim.owner != *key || wanted.contains_key(port));
        let refused: BTreeMap<Port, String> = (wanted.iter())
            .filter_map(|(port, addresses)| Some((*port, self.claim(key, *port, addresses).err()?)))
            .collect();
        for port in plan.into_iter().flat_map(|plan| &mut plan.ports) {
            if refused.contains_key(&(port.proto, port.port)) {
                port.load_balancer_ips.retain(|ip| !own.contains(ip));
            }
        }
        let refused: Taken = (refused.into_iter())
            .map(|(port, cause)| ((key.clone(), port), Refused { uid: uid.to_owned(), cause }))
            .collect();
        self.taken.send_if_modified(|taken| {
            let before: Vec<_> = taken.keys().filter(|(owner, _)| owner == key).cloned().collect();
            let is_news =
                before.len() != refused.len() || refused.iter().any(|(k, v)| taken.get(k) != Some(v));
            if is_news {
                for gone in &before {
                    taken.remove(gone);
                }
                taken.extend(refused);
            }
            is_news
        });
    }

    /// All addresses or none.
    fn claim(&mut self, owner: &ServiceKey, port: Port, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        let before = match self.held.get_mut(&port) {
            Some(claim) if claim.owner != *owner => {
                let ServiceKey { namespace, name } = &claim.owner;
                return Err(format!("service {namespace}/{name} has it"));
            }
            Some(claim) => std::mem::take(&mut claim.sockets),
            None => BTreeMap::new(),
        };
        let mut sockets: BTreeMap<_, _> =
            before.into_iter().filter(|(ip, _)| addresses.contains(ip)).collect();
        for ip in addresses {
            if !sockets.contains_key(ip)
                && let Some(socket) = hold(*ip, port).map_err(|errno| {
                    self.held.remove(&port);
                    cause(errno)
                })?
            {
                sockets.insert(*ip, socket);
            }
        }
        self.held.insert(port, Claim { owner: owner.clone(), sockets });
        Ok(())
    }
}

/// Takes a port from all programs of the machine; `None` if this kernel has no sockets of the protocol.
fn hold(ip: IpAddr, (proto, port): Port) -> Result<Option<OwnedFd>, Errno> {
    let kind = match proto {
        Proto::Tcp => SockType::Stream,
        Proto::Udp => SockType::Datagram,
        // Nobody has a port of what most kernels have not.
        Proto::Sctp => return Ok(None),
    };
    let family = if ip.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if ip.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if proto == Proto::Udp {
        // Nobody reads what comes while no rule leads it elsewhere.
        setsockopt(&fd, sockopt::RcvBuf, &0)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, port)))?;
    Ok(Some(fd))
}

fn cause(errno: Errno) -> String {
    match errno {
        Errno::EADDRINUSE => "it is in use by another program".into(),
        Errno::EACCES => "the agent may not use ports below 1024".into(),
        other => other.desc().into(),
    }
}

/// Tells of ports that cannot be had until cancelled: users by an Event on the service, the server by the node's status.
pub async fn run(
    client: Client,
    node: NodeName,
    mut taken: watch::Receiver<Taken>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let mut told = Taken::new();
    loop {
        let now = taken.borrow_and_update().clone();
        for ((key, (proto, port)), refused) in now.iter().filter(|(k, v)| told.get(*k) != Some(*v)) {
            let mut service = Object::new(&SERVICES, Some(&key.namespace), &key.name);
            service.metadata_mut().insert("uid".into(), Value::String(refused.uid.clone()));
            let message = format!(
                "{proto} port {port} of {node} cannot be had ({}): this node is left out of the load balancer",
                refused.cause
            );
            tracing::warn!(service = key.name, "{message}");
            recorder.event(&service, Severity::Warning, "PortTaken", message);
        }
        let list = list(&now);
        told = now;
        let said = say(&client, &node, &list).await;
        if let Err(error) = &said {
            tracing::info!(%error, "the server does not know which ports of load balancers are taken on this node");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = taken.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if said.is_err() => {}
        }
    }
}

fn list(taken: &Taken) -> Value {
    let entry = |(ServiceKey { namespace, name }, (proto, port)): &(ServiceKey, Port)| json!({"protocol": proto.to_string(), "port": port, "service": format!("{namespace}/{name}")});
    taken.keys().map(entry).collect()
}

/// Writes the list into the node's own object, unless it stands there.
async fn say(client: &Client, node: &NodeName, list: &Value) -> Result<(), ClientError> {
    let own = ObjectKey::cluster(&NODES, node.as_str());
    let stands = client.get(&Target::object(&own)).await?.pointer(&format!("/status/{FIELD}")).cloned();
    let nothing = Value::Array(Vec::new());
    if stands.as_ref().unwrap_or(&nothing) == list {
        return Ok(());
    }
    let status = Target::object(&own).with_subresource("status");
    client.patch(&status, PatchKind::Merge, &json!({"status": {FIELD: list}})).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;
    use crate::plan::ServicePort;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const VIRTUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: name.into() }
    }

    fn plan(proto: Proto, port: u16) -> ServicePlan {
        let port = ServicePort {
            load_balancer_ips: [HERE, VIRTUAL].into(),
            ..ServicePort::new(Ipv4Addr::new(10, 96, 0, 1).into(), proto, port)
        };
        ServicePlan { ports: vec![port] }
    }

    /// Whether the service may have the port here.
    fn settle(claims: &mut Claims, name: &str, proto: Proto, port: u16) -> bool {
        let mut plan = plan(proto, port);
        claims.settle(&key(name), "u", Some(&mut plan), &[HERE].into(), true);
        // An address that is no node's is nobody's business here.
        assert!(plan.ports[0].load_balancer_ips.contains(&VIRTUAL));
        plan.ports[0].load_balancer_ips.contains(&HERE)
    }

    #[test]
    fn what_a_program_has_is_left_to_it_and_had_once_it_is_gone() {
        let mut claims = Claims::default();
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (t, u) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        assert!(!settle(&mut claims, "a", Proto::Tcp, t));
        assert!(!settle(&mut claims, "b", Proto::Udp, u));
        assert_eq!(claims.waiting(), [key("a"), key("b")].into());
        let told = list(&claims.taken.borrow());
        assert_eq!(told[0], json!({"protocol": "TCP", "port": t, "service": "default/a"}));
        drop((tcp, udp));
        assert!(settle(&mut claims, "a", Proto::Tcp, t));
        assert!(settle(&mut claims, "b", Proto::Udp, u));
        assert!(claims.waiting().is_empty());
    }

    #[test]
    fn a_refusal_stands_while_the_load_balancer_leaves_this_node_out_for_it() {
        let mut claims = Claims::default();
        let tcp = TcpListener::bind((HERE, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert!(!settle(&mut claims, "a", Proto::Tcp, port));
        let told = claims.subscribe();
        let mut without = plan(Proto::Tcp, port);
        without.ports[0].load_balancer_ips.clear();
        let own = [HERE].into();
        for _ in 0..2 {
            claims.settle(&key("a"), "u", Some(&mut without), &own, true);
            assert_eq!((claims.waiting(), told.has_changed().unwrap()), ([key("a")].into(), false));
        }
        drop(tcp);
        claims.settle(&key("a"), "u", Some(&mut without), &own, true);
        assert!(claims.waiting().is_empty() && told.has_changed().unwrap());
        // Of a service that is no load balancer any more nothing is remembered.
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert!(!settle(&mut claims, "a", Proto::Tcp, tcp.local_addr().unwrap().port()));
        claims.settle(&key("a"), "u", Some(&mut without), &own, false);
        assert!(claims.waiting().is_empty());
    }

    #[test]
    fn what_a_service_has_is_kept_until_it_wants_it_no_more() {
        let mut claims = Claims::default();
        let port = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
        assert!(settle(&mut claims, "a", Proto::Tcp, port));
        // Again, as after a change of its endpoints.
        assert!(settle(&mut claims, "a", Proto::Tcp, port));
        assert_eq!(TcpListener::bind((HERE, port)).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        assert!(!settle(&mut claims, "b", Proto::Tcp, port));
        claims.settle(&key("a"), "u", None, &[HERE].into(), false);
        TcpListener::bind((HERE, port)).unwrap();
        assert!(settle(&mut claims, "b", Proto::Tcp, port));
    }
}

//! Under which names and addresses this server is reached, as its certificate says it, and how the certificate follows the machine.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use minisvc_proto::names::check_dns_subdomain;
use nix::{ifaddrs::getifaddrs, unistd::gethostname};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{ServerConfig, ServerError};
use crate::{
    pki::{Pki, Reached, Serving, serving::Remake},
    registry::Ranges,
};

/// Names under which the server is reached from within the cluster.
const CLUSTER_NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// How often the machine's addresses and the certificate's age are looked at.
const PERIOD: Duration = Duration::from_mins(1);
/// Most addresses of interfaces in the certificate, which everybody who connects is sent.
const MAX_ADDRESSES: usize = 128;

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct Fixed {
    names: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Fixed {
    /// From the flags; an error names the `--tls-san` that is neither a name nor an address.
    pub fn new(config: &ServerConfig, ranges: &Ranges) -> Result<Self, ServerError> {
        let mut names: Vec<String> = CLUSTER_NAMES.map(str::to_owned).to_vec();
        let mut ips = vec![config.advertise, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        ips.extend(Some(config.listen.ip()).filter(|ip| !ip.is_unspecified()));
        ips.push(ranges.services.api_server());
        for san in &config.tls_sans {
            match san.parse() {
                Ok(ip) => ips.push(ip),
                Err(_) if is_host(san) => names.push(san.clone()),
                Err(_) => {
                    let why = format!("\"{san}\" is neither a host name nor an address");
                    return Err(ServerError::Config { flag: "--tls-san", why });
                }
            }
        }
        Ok(Fixed { names, ips })
    }

    /// Together with what the machine is called and has now.
    pub fn and_now(&self) -> Reached {
        let host = gethostname().ok().and_then(|name| name.into_string().ok());
        with(self, host, addresses())
    }
}

fn is_host(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    check_dns_subdomain(name.strip_prefix("*.").unwrap_or(&name)).is_ok()
}

fn with(fixed: &Fixed, host: Option<String>, addresses: impl Iterator<Item = IpAddr>) -> Reached {
    let names = fixed.names.iter().cloned().chain(host.filter(|name| is_host(name)));
    let mut machine: Vec<IpAddr> = addresses.filter(|ip| is_reachable(*ip)).collect();
    machine.sort();
    machine.dedup();
    machine.truncate(MAX_ADDRESSES);
    Reached::new(names, fixed.ips.iter().copied().chain(machine))
}

/// Whether others can name this address in a URL. A link-local one needs the name of a link beside it.
fn is_reachable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

/// The addresses of all interfaces; none where the system does not tell them.
fn addresses() -> impl Iterator<Item = IpAddr> {
    let all = getifaddrs()
        .inspect_err(|error| tracing::warn!(%error, "the addresses of this machine cannot be listed"));
    all.into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| a.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
    })
}

/// Keeps the certificate young and its addresses right, until shutdown.
pub async fn follow(fixed: Fixed, pki: Arc<Pki>, serving: Arc<Serving>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        match serving.refresh(&pki, fixed.and_now(), SystemTime::now()) {
            Ok(None) => {}
            Ok(Some(Remake::Addresses)) => {
                tracing::info!(ips = ?serving.served().reached.ips, "the addresses of this machine changed: the server's certificate names them now");
            }
            Ok(Some(Remake::Age)) => tracing::info!("the server's certificate was renewed"),
            Err(error) => tracing::error!(%error, "the server's certificate cannot be renewed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_names_the_machine_and_what_cannot_be_reached_is_left_out() {
        let fixed = Fixed { names: vec!["localhost".into()], ips: vec![Ipv4Addr::LOCALHOST.into()] };
        let machine = ["10.0.0.5", "127.0.0.9", "fe80::1", "169.254.3.4", "fd00::5", "10.0.0.5", "0.0.0.0"];
        let addresses = || machine.iter().map(|ip| ip.parse().unwrap());
        let reached = with(&fixed, Some("Server-1.example".into()), addresses());
        assert_eq!(reached.names, ["Server-1.example", "localhost"]);
        let ips: Vec<String> = reached.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.5", "127.0.0.1", "fd00::5"]);
        assert_eq!(with(&fixed, Some("not a name".into()), addresses()).names, ["localhost"]);
        let many = (0..500).map(|i: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0001 + i)));
        assert_eq!(with(&fixed, None, many).ips.len(), 1 + MAX_ADDRESSES);
    }

    #[test]
    fn this_machine_tells_its_addresses() {
        assert!(addresses().any(|ip| ip.is_loopback()));
    }

    #[test]
    fn names_of_hosts_are_told_from_others() {
        for (name, good) in [
            ("api.test", true),
            ("*.example.com", true),
            ("A.b", true),
            ("https://a", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_host(name), good, "{name}");
        }
    }
}

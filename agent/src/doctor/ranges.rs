//! Whether the cluster's ranges and its rules would get in the way of what the machine has, or the other way around.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use minisvc_proto::join::ClusterInfo;

use super::Machine;
use crate::{
    firewall::Ruleset,
    net::{LinkName, ROUTE_PROTOCOL},
};

/// The cluster's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// All pods are from here.
    pub pods: Ipv4Net,
    /// All ClusterIPs are from here.
    pub services: Ipv4Net,
    /// The same of the second family.
    pub second: Option<(Ipv6Net, Ipv6Net)>,
}

impl From<&ClusterInfo> for Ranges {
    fn from(cluster: &ClusterInfo) -> Self {
        let second = cluster.pod_cidr6.zip(cluster.service_cidr6);
        Ranges { pods: cluster.pod_cidr, services: cluster.service_cidr, second }
    }
}

impl Ranges {
    /// Each range, and what it is for.
    fn all(self) -> impl Iterator<Item = (&'static str, IpNet)> {
        let first = [("pod", IpNet::V4(self.pods)), ("service", IpNet::V4(self.services))];
        let second = self.second.map(|(pods, services)| [("pod", pods.into()), ("service", services.into())]);
        first.into_iter().chain(second.into_iter().flatten()).map(|(what, net)| (what, net.trunc()))
    }
}

/// Why no node can be here; one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Taken {
    /// An address of the machine and its network.
    #[error(
        "the {range} range {net} overlaps address {address} of link {link}: give the server another --{range}-cidr, or this machine another network"
    )]
    Address {
        /// `pod` or `service`.
        range: &'static str,
        /// The range.
        net: IpNet,
        /// Address and prefix.
        address: IpNet,
        /// Whose.
        link: String,
    },
    /// A route of somebody else.
    #[error(
        "the {range} range {net} overlaps the route to {to} by {link}: give the server another --{range}-cidr, or remove the route"
    )]
    Route {
        /// `pod` or `service`.
        range: &'static str,
        /// The range.
        net: IpNet,
        /// Where it leads.
        to: IpNet,
        /// By which link.
        link: String,
    },
    /// Two programs cannot both own the services of a machine.
    #[error(
        "a kube-proxy owns the services of this machine ({0}): end it and run `kube-proxy --cleanup`, or choose another machine"
    )]
    KubeProxy(String),
}

/// A prefix so short that it is a default route, or one of the two halves that VPNs put in its place.
const DEFAULT: u8 = 1;
const LO: &str = "lo";

/// What keeps the cluster off this machine. Routes and addresses of ours are none.
pub fn taken(ranges: Ranges, machine: &Machine, rules: &Ruleset) -> Vec<Taken> {
    let mut found = Vec::new();
    for (range, net) in ranges.all() {
        let overlaps = |other: IpNet| net.contains(&other.network()) || other.contains(&net.network());
        // The DNS address, of this agent or of one with other settings, and whatever is on links of ours.
        let ours = |net: IpNet, link: &str| {
            (link == LO && net.prefix_len() == net.max_prefix_len())
                || link.starts_with("minisvc-")
                || link.parse::<LinkName>().is_ok()
        };
        let addresses: Vec<_> =
            machine.addresses.iter().filter(|a| overlaps(a.net.trunc()) && !ours(a.net, &a.link)).collect();
        for a in &addresses {
            found.push(Taken::Address { range, net, address: a.net, link: a.link.clone() });
        }
        for route in &machine.routes {
            // The kernel makes one for each address, which is named already.
            let of_address = addresses.iter().any(|a| a.link == route.link && a.net.trunc() == route.to);
            let is_ours = route.protocol == ROUTE_PROTOCOL || ours(route.to, &route.link);
            if route.to.prefix_len() > DEFAULT && !is_ours && !of_address && overlaps(route.to) {
                found.push(Taken::Route { range, net, to: route.to, link: route.link.clone() });
            }
        }
    }
    let proxy = rules.tables.iter().find_map(|table| {
        let (family, name) = (table.family.name(), &table.name);
        if name == "kube-proxy" {
            return Some(format!("table {family} {name}"));
        }
        table.chain("KUBE-SERVICES").map(|_| format!("chain KUBE-SERVICES of table {family} {name}"))
    });
    let ipvs = || machine.links.iter().find(|l| *l == "kube-ipvs0").map(|l| format!("link {l}"));
    found.extend(proxy.or_else(ipvs).map(Taken::KubeProxy));
    found
}

/// Other programs that give pods their network: they may live beside us, if their ranges differ.
pub fn owners(machine: &Machine) -> Vec<(&'static str, String)> {
    let known = [
        ("Cilium", "cilium_"),
        ("flannel", "flannel."),
        ("a CNI bridge", "cni0"),
        ("Calico", "vxlan.calico"),
        ("Calico", "cali"),
        ("Weave", "weave"),
    ];
    let named = |(name, prefix): &(&'static str, &str)| {
        let link = machine.links.iter().find(|l| l.starts_with(prefix))?;
        Some((*name, link.clone()))
    };
    known.iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::{Address, Route},
        firewall::{Family, Table},
    };

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ranges() -> Ranges {
        Ranges {
            pods: "10.244.0.0/16".parse().unwrap(),
            services: "10.96.0.0/16".parse().unwrap(),
            second: Some((
                "fd69:6d69:6e6a::/48".parse().unwrap(),
                "fd69:6d69:6e69:ffff::/112".parse().unwrap(),
            )),
        }
    }

    fn with(addresses: &[(&str, &str)], routes: &[(&str, &str, u8)]) -> Machine {
        Machine {
            addresses: addresses
                .iter()
                .map(|(link, n)| Address { link: (*link).into(), net: net(n) })
                .collect(),
            routes: routes
                .iter()
                .map(|(link, to, protocol)| Route { link: (*link).into(), to: net(to), protocol: *protocol })
                .collect(),
            links: Vec::new(),
        }
    }

    fn found(machine: &Machine) -> Vec<String> {
        taken(ranges(), machine, &Ruleset::default()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_ours_or_a_default_route_is_no_overlap() {
        let machine = with(
            &[
                ("eth0", "192.0.2.11/24"),
                ("lo", "127.0.0.1/8"),
                ("lo", "10.96.0.10/32"),
                ("lo", "fd69:6d69:6e69:ffff::a/128"),
                ("eth0", "fd69:6d69:6e68::b/64"),
                ("minisvc-vx", "fd69:6d69:6e6a:1::/128"),
                ("docker0", "172.17.0.1/16"),
            ],
            &[
                ("eth0", "0.0.0.0/0", 3),
                ("tun0", "0.0.0.0/1", 3),
                ("tun0", "128.0.0.0/1", 3),
                ("eth0", "192.0.2.0/24", 2),
                ("eth0", "10.244.2.0/24", ROUTE_PROTOCOL),
                ("lo", "10.96.0.0/16", ROUTE_PROTOCOL),
                ("docker0", "172.17.0.0/16", 2),
                ("eth0", "::/0", 9),
                ("lo", "fd69:6d69:6e69:ffff::a/128", 2),
                ("eth0", "fd69:6d69:6e69:ffff::/112", ROUTE_PROTOCOL),
                ("eth0", "fd69:6d69:6e68::/64", 2),
                ("wg0", "10.243.0.0/16", 3),
            ],
        );
        assert_eq!(found(&machine), [""; 0]);
    }

    #[test]
    fn an_overlap_names_range_route_link_and_flag() {
        let machine = with(&[("eth0", "10.244.7.9/24")], &[("eth0", "10.244.7.0/24", 2)]);
        assert_eq!(
            found(&machine),
            [
                "the pod range 10.244.0.0/16 overlaps address 10.244.7.9/24 of link eth0: give the server another --pod-cidr, or this machine another network"
            ]
        );
        let machine = with(&[("eth0", "fd69:6d69:6e6a:7::9/64")], &[("wg0", "fd00::/8", 3)]);
        assert_eq!(
            found(&machine),
            [
                "the pod range fd69:6d69:6e6a::/48 overlaps address fd69:6d69:6e6a:7::9/64 of link eth0: give the server another --pod-cidr, or this machine another network",
                "the pod range fd69:6d69:6e6a::/48 overlaps the route to fd00::/8 by wg0: give the server another --pod-cidr, or remove the route",
                "the service range fd69:6d69:6e69:ffff::/112 overlaps the route to fd00::/8 by wg0: give the server another --service-cidr, or remove the route",
            ]
        );
        let machine = with(&[], &[("wg0", "10.0.0.0/8", 3), ("br-1", "10.96.3.4/32", 4)]);
        assert_eq!(
            found(&machine),
            [
                "the pod range 10.244.0.0/16 overlaps the route to 10.0.0.0/8 by wg0: give the server another --pod-cidr, or remove the route",
                "the service range 10.96.0.0/16 overlaps the route to 10.0.0.0/8 by wg0: give the server another --service-cidr, or remove the route",
                "the service range 10.96.0.0/16 overlaps the route to 10.96.3.4/32 by br-1: give the server another --service-cidr, or remove the route",
            ]
        );
    }

    #[test]
    fn a_kube_proxy_is_known_by_its_table_its_chains_or_its_link() {
        let table = |name: &str, chains: &[&str]| Ruleset {
            tables: vec![Table {
                family: Family::Ip,
                name: name.into(),
                chains: chains
                    .iter()
                    .map(|c| crate::firewall::Chain { name: (*c).into(), ..Default::default() })
                    .collect(),
                sets: [].into(),
            }],
            legacy: vec![],
        };
        let machine = Machine::default();
        let say = |rules: &Ruleset, machine: &Machine| {
            taken(ranges(), machine, rules).first().map(ToString::to_string).unwrap_or_default()
        };
        assert!(say(&table("kube-proxy", &[]), &machine).contains("(table ip kube-proxy)"));
        assert!(say(&table("nat", &["PREROUTING", "KUBE-SERVICES"]), &machine).contains("of table ip nat)"));
        let ipvs = Machine { links: vec!["kube-ipvs0".into()], ..Machine::default() };
        assert!(say(&Ruleset::default(), &ipvs).contains("(link kube-ipvs0)"));
        assert_eq!(say(&table("nat", &["PREROUTING", "DOCKER"]), &machine), "");
        let cilium = Machine { links: vec!["cilium_host".into()], ..Machine::default() };
        assert_eq!(owners(&cilium), [("Cilium", "cilium_host".to_owned())]);
    }
}

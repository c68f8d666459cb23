//! What an agent is told at its start.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use minisvc_proto::{NodeName, join::JoinToken};

/// Everything that an agent needs to know; the command line fills it. What all nodes must agree on comes from the server.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// URL of the server; `None`: the one that this machine joined.
    pub server: Option<String>,
    /// To join with; not needed by a machine that has joined.
    pub token: Option<JoinToken>,
    /// The node's name; `None`: the one that this machine joined as, else the host's.
    pub node_name: Option<NodeName>,
    /// The address by which other nodes and the server reach this one; `None`: the one from which the server is reached.
    pub node_ip: Option<Ipv4Addr>,
    /// The second address of a node of a dual-stack cluster; `None`: one that the link of the first has.
    pub node_ip6: Option<Ipv6Addr>,
    /// What must survive a restart of the machine.
    pub data_dir: PathBuf,
    /// Sockets and state of running pods: gone with a restart of the machine.
    pub run_dir: PathBuf,
    /// Logs of pods.
    pub log_dir: PathBuf,
    /// The resolv.conf whose servers get the names outside the cluster.
    pub resolv_conf: PathBuf,
    /// What [`HOST_NAME`] stands for.
    pub host_address: HostAddress,
    /// Whether clients outside are seen by their own address on other nodes than the one that they call.
    pub external_source: ExternalSource,
    /// How long a pod that ends waits, before its containers are told, until every node has taken it out of rotation.
    pub withdraw_timeout: Duration,
    /// Whether the agent lets the cluster's traffic through firewalls of others itself.
    pub manage_host_firewall: bool,
}

/// Which address pods on other nodes see of clients outside that call this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalSource {
    /// The client's, on nodes from which a datagram with a foreign source comes back.
    #[default]
    Auto,
    /// The client's, on every node that can be reached.
    Keep,
    /// This node's.
    Masquerade,
}

impl FromStr for ExternalSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(ExternalSource::Auto),
            "keep" => Ok(ExternalSource::Keep),
            "masquerade" => Ok(ExternalSource::Masquerade),
            _ => Err("want auto, keep or masquerade".into()),
        }
    }
}

/// Where the agent's own API listens, on the node's address.
pub const API_PORT: u16 = 10250;

/// The name under which pods reach services of the machine that they run on.
pub const HOST_NAME: &str = "host.minisvc.internal";

/// What [`HOST_NAME`] stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostAddress {
    /// The node's own address.
    #[default]
    Node,
    /// This one.
    At(IpAddr),
    /// Nothing: there is no such name.
    Nothing,
}

impl FromStr for HostAddress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "node" => Ok(HostAddress::Node),
            "none" => Ok(HostAddress::Nothing),
            other => other.parse().map(HostAddress::At).map_err(|_| {
                format!("\"{other}\" is no address; an address, \"node\" or \"none\" would be right")
            }),
        }
    }
}

impl HostAddress {
    /// The name with its addresses, if it has any.
    pub fn names(self, node: Ipv4Addr) -> BTreeMap<String, Vec<IpAddr>> {
        let address = match self {
            HostAddress::Node => Some(node.into()),
            HostAddress::At(address) => Some(address),
            HostAddress::Nothing => None,
        };
        address.into_iter().map(|ip| (HOST_NAME.to_owned(), vec![ip])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_name_stands_for_the_node_an_address_or_nothing() {
        let node = Ipv4Addr::new(192, 0, 2, 1);
        let names = |text: &str| text.parse::<HostAddress>().map(|a| a.names(node));
        let of = |ip: &str| BTreeMap::from([(HOST_NAME.to_owned(), vec![ip.parse().unwrap()])]);
        assert_eq!(HostAddress::default().names(node), of("192.0.2.1"));
        assert_eq!(names("node"), Ok(of("192.0.2.1")));
        assert_eq!(names("198.51.100.9"), Ok(of("198.51.100.9")));
        assert_eq!(names("none"), Ok(BTreeMap::new()));
        assert!(names("localhost").unwrap_err().contains("would be right"));
    }
}

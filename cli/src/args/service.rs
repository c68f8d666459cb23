//! Flags of services.

use std::{net::IpAddr, time::Duration};

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::{
    Produce, ServiceWait,
    values::{ClusterIp, PortPair, affinity_timeout, cluster_ip, network, pair, port, port_pair},
};

#[derive(Debug, Subcommand)]
pub enum CreateService {
    /// A service within the cluster; with --clusterip=None a headless one: its name leads to the pods themselves
    Clusterip(ServiceFlags),
    /// A service on every node's address too
    Nodeport(NodePortFlags),
    /// A service at its own port on the nodes' addresses
    #[command(visible_alias = "lb")]
    Loadbalancer(LoadBalancerFlags),
    /// Another name for a host outside of the cluster
    Externalname(ExternalNameFlags),
}

#[derive(Debug, Args)]
pub struct NodePortFlags {
    #[command(flatten)]
    pub service: ServiceFlags,
    /// Port of the nodes [default: a free one of 30000-32767]
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub node_port: Option<u16>,
}

#[derive(Debug, Args)]
pub struct LoadBalancerFlags {
    #[command(flatten)]
    pub service: ServiceFlags,
    /// Port of the nodes [default: a free one of 30000-32767]
    #[arg(long, value_name = "PORT", value_parser = port, conflicts_with = "no_node_ports")]
    pub node_port: Option<u16>,
    /// No ports of 30000-32767 beside the service's own
    #[arg(long)]
    pub no_node_ports: bool,
    /// Who may use it, can be given several times [default: everybody]
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub load_balancer_source_range: Vec<IpNet>,
    /// Leave it to the load balancer of this name instead of the nodes
    #[arg(long, value_name = "NAME")]
    pub load_balancer_class: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExternalNameFlags {
    /// Name of the service
    pub name: String,
    /// The host, a DNS name
    #[arg(long, value_name = "HOST")]
    pub external_name: String,
    /// PORT or PORT:TARGET, for SRV records; can be given several times
    #[arg(long, value_delimiter = ',', value_name = "PORT[:TARGET]", value_parser = port_pair)]
    pub tcp: Vec<PortPair>,
    #[command(flatten)]
    pub produce: Produce,
}

#[derive(Debug, Args)]
pub struct ServiceFlags {
    /// Name of the service; it selects the pods labelled app=NAME
    pub name: String,
    /// PORT or PORT:TARGET, can be given several times
    #[arg(long, required_unless_present_any = ["udp", "sctp", "clusterip"], value_delimiter = ',', value_name = "PORT[:TARGET]", value_parser = port_pair)]
    pub tcp: Vec<PortPair>,
    /// The same for UDP
    #[arg(long, value_delimiter = ',', value_name = "PORT[:TARGET]", value_parser = port_pair)]
    pub udp: Vec<PortPair>,
    /// The same for SCTP
    #[arg(long, value_delimiter = ',', value_name = "PORT[:TARGET]", value_parser = port_pair)]
    pub sctp: Vec<PortPair>,
    /// Address of the service, or None [default: a free one]
    #[arg(long, visible_alias = "cluster-ip", value_name = "IP", value_parser = cluster_ip)]
    pub clusterip: Option<ClusterIp>,
    /// Select other pods than those labelled app=NAME
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', value_parser = pair)]
    pub selector: Vec<(String, String)>,
    /// Select no pods: its back-ends are in Endpoints or EndpointSlices that you make
    #[arg(long, conflicts_with = "selector")]
    pub no_selector: bool,
    #[command(flatten)]
    pub traffic: Traffic,
    #[command(flatten)]
    pub wait: ServiceWait,
    #[command(flatten)]
    pub produce: Produce,
}

/// How a service treats its traffic.
#[derive(Debug, Default, Args)]
#[allow(clippy::struct_field_names, reason = "flags have the names of the API's fields")]
pub struct Traffic {
    /// None, or ClientIP: a client stays with the pod it got
    #[arg(long, value_name = "HOW", value_parser = ["None", "ClientIP"], help_heading = "Traffic")]
    pub session_affinity: Option<String>,
    /// How long a client stays after its last connection: 30s, 2h [default: 3h]
    #[arg(long, value_name = "TIME", value_parser = affinity_timeout, help_heading = "Traffic")]
    pub session_affinity_timeout: Option<Duration>,
    /// Address of yours at which the service answers, too; can be given several times
    #[arg(long, value_name = "IP", value_delimiter = ',', help_heading = "Traffic")]
    pub external_ip: Vec<IpAddr>,
    /// From outside: Cluster, or Local: only pods of the node that was asked
    #[arg(long, value_name = "POLICY", value_parser = ["Cluster", "Local"], help_heading = "Traffic")]
    pub external_traffic_policy: Option<String>,
    /// From pods: Cluster, or Local: only pods of the same node
    #[arg(long, value_name = "POLICY", value_parser = ["Cluster", "Local"], help_heading = "Traffic")]
    pub internal_traffic_policy: Option<String>,
    /// Nearer pods first: PreferSameZone or PreferSameNode
    #[arg(long, value_name = "HOW", value_parser = ["PreferSameZone", "PreferSameNode", "PreferClose"], help_heading = "Traffic")]
    pub traffic_distribution: Option<String>,
    /// SingleStack, PreferDualStack or RequireDualStack: IPv4, or IPv6 as well
    #[arg(long, value_name = "POLICY", value_parser = ["SingleStack", "PreferDualStack", "RequireDualStack"], help_heading = "Traffic")]
    pub ip_family_policy: Option<String>,
    /// IPv4, IPv6 or both, the first is the primary one
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', value_parser = ["IPv4", "IPv6"], help_heading = "Traffic")]
    pub ip_families: Vec<String>,
    /// Pods that are not Ready count, too
    #[arg(long, help_heading = "Traffic")]
    pub publish_not_ready_addresses: bool,
}

//! What services should do, as simply as it can be said.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use minisvc_agent::plan::{Scope, ServiceKey};
use serde_json::{Value, json};

use super::super::cluster::{POD_PORT, node_ip};

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    NotReady,
    /// It ends, and still serves.
    Terminating,
}

/// Who may use a load balancer's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranges {
    Everybody,
    Pods,
    Outside,
}

/// A service on port 80 (8000 and its number at load balancers), TCP and UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub number: u16,
    pub node_port: bool,
    pub load_balancer: bool,
    pub external_ip: bool,
    pub affinity: Option<u32>,
    pub internal: Scope,
    pub external: Scope,
    pub ranges: Ranges,
    /// By the name of a pod.
    pub endpoints: BTreeMap<&'static str, State>,
}

/// Pods, with their nodes and addresses.
pub type Pods = BTreeMap<&'static str, (u8, Ipv4Addr)>;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Pod(&'static str),
    Node(u8),
    Outside,
}

/// What it is made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    ClusterIp,
    NodePort(u8),
    LoadBalancer(u8),
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// One of these answers.
    Served(BTreeSet<Ipv4Addr>),
    Refused,
    Dropped,
}

impl Service {
    pub fn new(number: u16) -> Self {
        Service {
            number,
            node_port: false,
            load_balancer: false,
            external_ip: false,
            affinity: None,
            internal: Scope::Cluster,
            external: Scope::Cluster,
            ranges: Ranges::Everybody,
            endpoints: BTreeMap::new(),
        }
    }

    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: format!("walk-{}", self.number) }
    }

    pub fn cluster_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 1, self.number as u8)
    }

    pub fn external_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.number as u8)
    }

    /// Unique among all services of a walk.
    pub fn number_of_node_port(&self) -> u16 {
        30_000 + self.number
    }

    /// The service's own port: load balancers share the nodes' addresses.
    pub fn port(&self) -> u16 {
        8000 + self.number
    }

    /// As the API serves it, in a cluster of so many nodes.
    pub fn object(&self, nodes: u8) -> Value {
        let scope = |scope| if scope == Scope::Local { "Local" } else { "Cluster" };
        let kind = match (self.load_balancer, self.node_port) {
            (true, _) => "LoadBalancer",
            (false, true) => "NodePort",
            (false, false) => "ClusterIP",
        };
        let node_port = self.node_port.then(|| self.number_of_node_port());
        let ports: Vec<Value> = ["TCP", "UDP"]
            .map(|protocol| {
                json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": self.port(), "targetPort": POD_PORT,
                    "nodePort": node_port})
            })
            .into();
        let ranges: &[&str] = match self.ranges {
            Ranges::Everybody => &[],
            Ranges::Pods => &["10.244.0.0/16"],
            Ranges::Outside => &["192.0.2.64/26"],
        };
        let ip = self.cluster_ip().to_string();
        let ingress: Vec<Value> = (1..=nodes).map(|n| json!({"ip": node_ip(n).to_string()})).collect();
        json!({
            "metadata": {"name": self.key().name, "namespace": "default"},
            "spec": {"type": kind, "clusterIP": ip, "clusterIPs": [ip], "ports": ports,
                "externalIPs": if self.external_ip { vec![self.external_address().to_string()] } else { vec![] },
                "sessionAffinity": if self.affinity.is_some() { "ClientIP" } else { "None" },
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": self.affinity}},
                "internalTrafficPolicy": scope(self.internal), "externalTrafficPolicy": scope(self.external),
                "loadBalancerSourceRanges": ranges},
            "status": {"loadBalancer": {"ingress": if self.load_balancer { ingress } else { vec![] }}}
        })
    }

    /// Its endpoints, in one slice for each of the first `cut` and one for the rest.
    pub fn slices(&self, pods: &Pods, cut: usize) -> Vec<Value> {
        let endpoints: Vec<Value> = (self.endpoints.iter())
            .map(|(pod, state)| {
                let (node, ip) = pods[pod];
                json!({"addresses": [ip.to_string()], "nodeName": format!("node-{node}"), "conditions": {
                    "ready": *state == State::Ready, "serving": *state != State::NotReady,
                    "terminating": *state == State::Terminating}})
            })
            .collect();
        let (some, rest) = endpoints.split_at(cut.min(endpoints.len()));
        let ports = json!([{"name": "tcp", "protocol": "TCP", "port": POD_PORT}, {"name": "udp", "protocol": "UDP", "port": POD_PORT}]);
        some.chunks(1)
            .chain([rest])
            .map(|endpoints| json!({"addressType": "IPv4", "endpoints": endpoints, "ports": ports}))
            .collect()
    }

    /// Whom a scope leads to on a node: the ready ones, or else those that end.
    fn active(&self, scope: Scope, node: u8, pods: &Pods) -> BTreeSet<Ipv4Addr> {
        let of = |wanted: State| -> BTreeSet<Ipv4Addr> {
            (self.endpoints.iter())
                .filter(|(pod, state)| **state == wanted && (scope == Scope::Cluster || pods[*pod].0 == node))
                .map(|(pod, _)| pods[pod].1)
                .collect()
        };
        let ready = of(State::Ready);
        if ready.is_empty() { of(State::Terminating) } else { ready }
    }

    /// What a lookup on a node leads to in a scope.
    pub fn scoped(&self, scope: Scope, node: u8, pods: &Pods) -> Outcome {
        let active = self.active(scope, node, pods);
        if !active.is_empty() {
            Outcome::Served(active)
        } else if scope == Scope::Local && !self.active(Scope::Cluster, node, pods).is_empty() {
            Outcome::Dropped
        } else {
            Outcome::Refused
        }
    }

    /// Whether there is anything of this kind to connect to.
    pub fn has(&self, to: To) -> bool {
        match to {
            To::ClusterIp => true,
            To::NodePort(_) => self.node_port,
            To::LoadBalancer(_) => self.load_balancer,
        }
    }

    /// Address and port of a target.
    pub fn address(&self, to: To) -> (Ipv4Addr, u16) {
        match to {
            To::ClusterIp => (self.cluster_ip(), self.port()),
            To::NodePort(node) => (node_ip(node), self.number_of_node_port()),
            To::LoadBalancer(node) => (node_ip(node), self.port()),
        }
    }

    /// What becomes of a connection.
    pub fn outcome(&self, from: From, to: To, pods: &Pods) -> Outcome {
        let home = match from {
            From::Pod(pod) => Some(pods[pod].0),
            From::Node(node) => Some(node),
            From::Outside => None,
        };
        let entry = match to {
            To::ClusterIp => {
                return home.map_or(Outcome::Dropped, |node| self.scoped(self.internal, node, pods));
            }
            To::NodePort(node) | To::LoadBalancer(node) => node,
        };
        if matches!(to, To::LoadBalancer(_)) {
            let may = match (self.ranges, from) {
                (Ranges::Everybody, _) => true,
                // A node's own processes pass on the node itself.
                (_, From::Node(node)) => node == entry,
                (Ranges::Pods, from) => matches!(from, From::Pod(_)),
                (Ranges::Outside, from) => from == From::Outside,
            };
            if !may {
                return Outcome::Dropped;
            }
        }
        let scope = if home.is_some() { Scope::Cluster } else { self.external };
        self.scoped(scope, entry, pods)
    }
}

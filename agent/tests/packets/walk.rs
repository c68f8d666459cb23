//! A long random walk: whatever happens to services, endpoints, policies and agents, the kernel of every node holds what a fresh start
//! would program, and traffic goes where a simple model says.

#[path = "walk/kernel.rs"]
mod kernel;
#[path = "walk/model.rs"]
mod model;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use k8s_openapi::api::{core::v1::Service as ServiceObject, discovery::v1::EndpointSlice};
use minisvc_agent::plan::{Scope, ServiceKey, ServicePlan, Viewpoint, plan_service};
use minisvc_tests::{
    netns::isolated,
    traffic::{Connection, Flow, SILENCE},
};

use super::cluster::{Cluster, node_ip};
use kernel::{Meaning, meaning, spelled_out};
use model::{From, Outcome, Pods, Ranges, Service, State, To};

const NODES: u8 = 3;
const PODS: [(u8, &str); 6] = [(1, "a"), (1, "b"), (2, "c"), (2, "d"), (3, "e"), (3, "f")];
const SERVICES: u64 = 6;
const STEPS: usize = 300;
/// Connections after each step.
const PROBES: usize = 3;
/// Change it and another walk is taken.
const SEED: u64 = 20_261_125;

/// A repeatable sequence of draws (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// The services of the walk, and what is done to them.
struct Walk {
    dice: Dice,
    pods: Pods,
    services: BTreeMap<u16, Service>,
}

impl Walk {
    /// Changes one thing; names it, and the services that it touches.
    fn change(&mut self) -> (String, BTreeSet<u16>) {
        let number = 1 + self.dice.below(SERVICES) as u16;
        let Some(service) = self.services.get_mut(&number) else {
            let service = Service::new(number);
            self.services.insert(number, service);
            return (format!("create {number}"), [number].into());
        };
        let dice = &mut self.dice;
        let flip =
            |scope: &mut Scope| *scope = if *scope == Scope::Local { Scope::Cluster } else { Scope::Local };
        match dice.below(16) {
            0 => drop(self.services.remove(&number)),
            1 => service.node_port = !service.node_port,
            2 => service.load_balancer = !service.load_balancer,
            3 => service.external_ip = !service.external_ip,
            4 => flip(&mut service.internal),
            5 | 6 => flip(&mut service.external),
            7 => service.affinity = dice.of(&[None, Some(30), Some(10_800)]),
            8 => service.ranges = dice.of(&[Ranges::Everybody, Ranges::Pods, Ranges::Outside]),
            9 => service.endpoints.clear(),
            10 => drop(service.endpoints.remove(dice.of(&PODS).1)),
            _ => {
                let state = dice.of(&[State::Ready, State::Ready, State::NotReady, State::Terminating]);
                service.endpoints.insert(dice.of(&PODS).1, state);
            }
        }
        (format!("change {number} to {:?}", self.services.get(&number)), [number].into())
    }

    /// What a node makes of these services.
    fn plans(&mut self, node: u8, of: &BTreeSet<u16>) -> Vec<(ServiceKey, Option<ServicePlan>)> {
        let here = Viewpoint {
            node: format!("node-{node}"),
            zone: None,
            addresses: [node_ip(node).into()].into(),
            others: (1..=NODES).filter(|n| *n != node).map(|n| node_ip(n).into()).collect(),
        };
        let mut plan = |number: &u16| {
            let Some(service) = self.services.get(number) else { return (Service::new(*number).key(), None) };
            let cut = self.dice.below(3) as usize;
            let object: ServiceObject = serde_json::from_value(service.object(NODES)).unwrap();
            let slices: Vec<EndpointSlice> = (service.slices(&self.pods, cut).into_iter())
                .map(|slice| serde_json::from_value(slice).unwrap())
                .collect();
            let slices: Vec<&EndpointSlice> = slices.iter().collect();
            (service.key(), Some(plan_service(&object, &slices, &here)))
        };
        of.iter().map(&mut plan).collect()
    }

    /// What the model says that a node's kernel should hold.
    fn wanted(&self, node: u8) -> Meaning {
        let mut wanted = Meaning::new();
        for service in self.services.values() {
            let cluster = service.scoped(Scope::Cluster, node, &self.pods);
            let internal = service.scoped(service.internal, node, &self.pods);
            let outside = service.scoped(service.external, node, &self.pods);
            let mut put = |map: &str, address: Option<std::net::Ipv4Addr>, port: u16, outcome: &Outcome| {
                // Who is refused or dropped stays with nobody.
                let affinity = service.affinity.filter(|_| matches!(outcome, Outcome::Served(_)));
                for proto in ["tcp", "udp"] {
                    let address = address.map_or(String::new(), |ip| format!("{ip} . "));
                    wanted.insert(format!("{map} {address}{proto} . {port}"), (outcome.clone(), affinity));
                }
            };
            put("svc", Some(service.cluster_ip()), service.port(), &internal);
            let mut external = Vec::new();
            external.extend(service.external_ip.then(|| service.external_address()));
            external.extend(service.load_balancer.then(|| node_ip(node)));
            for address in external {
                put("svc", Some(address), service.port(), &cluster);
                if service.external == Scope::Local {
                    put("svc_outside", Some(address), service.port(), &outside);
                }
            }
            if service.node_port {
                put("np", None, service.number_of_node_port(), &cluster);
                if service.external == Scope::Local {
                    put("np_outside", None, service.number_of_node_port(), &outside);
                }
            }
        }
        wanted
    }

    /// A random connection to a service that is there, and what should become of it.
    fn probe(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let numbers: Vec<u16> = self.services.keys().copied().collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let service = &self.services[&self.dice.of(&numbers)];
        let (node, other) =
            (1 + self.dice.below(NODES.into()) as u8, 1 + self.dice.below(NODES.into()) as u8);
        let pod = self.dice.of(&PODS).1;
        let from = self.dice.of(&[From::Pod(pod), From::Node(node), From::Outside]);
        let to = self.dice.of(&[To::ClusterIp, To::NodePort(other), To::LoadBalancer(other)]);
        // Another machine's way to a ClusterIP ends at its router.
        if !service.has(to) || (from == From::Outside && to == To::ClusterIp) {
            return Ok(());
        }
        let at = match from {
            From::Pod(pod) => cluster.ns(pod),
            From::Node(node) => cluster.node(node),
            From::Outside => cluster.outside(),
        };
        // The kernel tells a node's own UDP socket of a refusal in other words.
        let udp = self.dice.below(2) == 0 && !matches!(from, From::Node(_));
        let address = service.address(to);
        let got = at.enter(|| {
            let answer = if udp {
                Flow::open(address).and_then(|flow| flow.ask_within(SILENCE))
            } else {
                Connection::within(address, SILENCE)
                    .and_then(|mut connection| connection.ask().map_err(std::io::Error::other))
            };
            match answer {
                Ok(answer) => {
                    let pod = self.pods.iter().find(|(name, _)| **name == answer.server);
                    Ok(Outcome::Served([pod.context("an answer of a stranger")?.1.1].into()))
                }
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(Outcome::Refused),
                Err(e)
                    if [std::io::ErrorKind::TimedOut, std::io::ErrorKind::WouldBlock].contains(&e.kind()) =>
                {
                    Ok(Outcome::Dropped)
                }
                Err(e) => Err(e.into()),
            }
        })?;
        let wanted = service.outcome(from, to, &self.pods);
        let agrees = match (&got, &wanted) {
            (Outcome::Served(got), Outcome::Served(wanted)) => got.is_subset(wanted),
            (got, wanted) => got == wanted,
        };
        anyhow::ensure!(
            agrees,
            "{} from {from:?} to {to:?} {address:?}: {got:?}, wanted {wanted:?}, of {service:?}",
            if udp { "UDP" } else { "TCP" }
        );
        Ok(())
    }
}

#[test]
fn a_random_walk_leads_where_a_fresh_start_would() -> anyhow::Result<()> {
    isolated("walk::a_random_walk_leads_where_a_fresh_start_would", || {
        let mut cluster = Cluster::new(NODES)?;
        for (node, name) in PODS {
            cluster.pod(node, name)?;
        }
        for node in 1..=NODES {
            // A client that is refused often hears of it less often: here each refusal counts.
            let limit = "/proc/sys/net/ipv4/icmp_ratelimit";
            cluster.node(node).enter(|| Ok(std::fs::write(limit, "0")?))?;
        }
        let pods = PODS.into_iter().map(|(node, name)| (name, (node, cluster.ip(name)))).collect();
        let mut walk = Walk { dice: Dice(SEED), pods, services: BTreeMap::new() };
        let all: BTreeSet<u16> = (1..=SERVICES as u16).collect();
        for step in 0..STEPS {
            let mut done = Vec::new();
            let mut touched = BTreeSet::new();
            // Now and then much happens at once.
            for _ in 0..walk.dice.of(&[1, 1, 1, 4]) {
                let (what, of) = walk.change();
                done.push(what);
                touched.extend(of);
            }
            let restarted = (walk.dice.below(12) == 0).then(|| 1 + walk.dice.below(NODES.into()) as u8);
            for node in 1..=NODES {
                if restarted == Some(node) {
                    cluster.restart_agent(node)?;
                    done.push(format!("restart node {node}"));
                }
                let of = if restarted == Some(node) { &all } else { &touched };
                cluster.program(node, &walk.plans(node, of))?;
            }
            let checked = (1..=NODES).try_for_each(|node| {
                let (got, wanted) = (spelled_out(meaning(&cluster, node)?), spelled_out(walk.wanted(node)));
                anyhow::ensure!(got == wanted, "node {node} holds {got:#?}, wanted {wanted:#?}");
                Ok(())
            });
            let checked = checked.and_then(|()| (0..PROBES).try_for_each(|_| walk.probe(&cluster)));
            checked.with_context(|| format!("seed {SEED}, step {step}: {done:#?}"))?;
        }
        Ok(())
    })
}

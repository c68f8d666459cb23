//! Which endpoints get traffic. [pkg/proxy/topology.go, KEP-1669, KEP-4444]

use std::collections::BTreeSet;

use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Backends, Family, Pod, Proto, Viewpoint};

/// A port of a service in one family.
pub(super) struct Port<'s> {
    pub(super) family: Family,
    pub(super) name: &'s str,
    pub(super) proto: Proto,
    pub(super) target: Option<&'s IntOrString>,
    pub(super) number: u16,
}

/// An endpoint's state, with its addresses at the port.
struct Candidate<'s> {
    pods: Vec<Pod>,
    is_ready: bool,
    /// Serves while it terminates.
    is_draining: bool,
    is_here: bool,
    endpoint: &'s Endpoint,
}

/// Whom the hints of the endpoints prefer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preferred {
    Node,
    Zone,
}

/// The endpoints of all nodes, and those of this one.
pub(super) fn backends(slices: &[&EndpointSlice], port: &Port<'_>, here: &Viewpoint) -> (Backends, Backends) {
    let candidates: Vec<Candidate<'_>> =
        slices.iter().flat_map(|slice| candidates(slice, port, here)).collect();
    let preferred = preferred(&candidates, here);
    let is_near = |c: &Candidate<'_>| preferred.is_none_or(|preferred| names(c, preferred, here));
    let cluster = choose(&candidates, is_near);
    let local: Vec<Candidate<'_>> = candidates.into_iter().filter(|c| c.is_here).collect();
    (cluster, choose(&local, |_| true))
}

fn candidates<'s>(
    slice: &'s EndpointSlice,
    port: &Port<'_>,
    here: &Viewpoint,
) -> impl Iterator<Item = Candidate<'s>> {
    let family = match slice.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    };
    let wanted = port.family;
    let matching = slice.ports.iter().flatten().find(|p| {
        p.name.as_deref().unwrap_or("") == port.name
            && Proto::parse(p.protocol.as_deref()) == Some(port.proto)
    });
    // A slice port without a number means "all ports": then the service says which.
    let number = matching.filter(|_| family == Some(wanted)).map(|p| {
        p.port.unwrap_or(match port.target {
            Some(IntOrString::Int(n)) if *n != 0 => *n,
            _ => i32::from(port.number),
        })
    });
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let here = here.node.clone();
    number.into_iter().flat_map(|number| slice.endpoints.iter().map(move |e| (number, e))).map(
        move |(number, endpoint)| {
            let conditions = endpoint.conditions.as_ref();
            let is_serving = conditions.and_then(|c| c.serving).unwrap_or(true);
            let is_terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            let pods = endpoint.addresses.iter().filter_map(|a| Some((a.parse().ok()?, number)));
            Candidate {
                pods: pods.filter(|(ip, _)| Family::of(*ip) == wanted).collect(),
                is_ready: conditions.and_then(|c| c.ready).unwrap_or(true),
                is_draining: is_serving && is_terminating,
                is_here: endpoint.node_name.as_ref() == Some(&here),
                endpoint,
            }
        },
    )
}

/// Hints count when every ready endpoint has them and one names this node, or else its zone.
fn preferred(candidates: &[Candidate<'_>], here: &Viewpoint) -> Option<Preferred> {
    let hinted = |is: fn(&Candidate<'_>) -> bool| candidates.iter().filter(|c| c.is_ready).all(is);
    let named = |p| candidates.iter().filter(|c| c.is_ready).any(|c| names(c, p, here));
    let by_node: fn(&Candidate<'_>) -> bool = |c| {
        c.endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_ref()).is_some_and(|nodes| !nodes.is_empty())
    };
    let by_zone: fn(&Candidate<'_>) -> bool = |c| {
        c.endpoint.hints.as_ref().and_then(|h| h.for_zones.as_ref()).is_some_and(|zones| !zones.is_empty())
    };
    let usable = [(Preferred::Node, by_node), (Preferred::Zone, by_zone)];
    usable.into_iter().find(|(p, has)| hinted(*has) && named(*p)).map(|(p, _)| p)
}

fn names(candidate: &Candidate<'_>, preferred: Preferred, here: &Viewpoint) -> bool {
    let Some(hints) = &candidate.endpoint.hints else { return false };
    match preferred {
        Preferred::Node => hints.for_nodes.iter().flatten().any(|node| node.name == here.node),
        Preferred::Zone => {
            here.zone.as_ref().is_some_and(|zone| hints.for_zones.iter().flatten().any(|z| z.name == *zone))
        }
    }
}

/// The ready ones, or if there are none, those that serve while they terminate.
fn choose(candidates: &[Candidate<'_>], is_near: impl Fn(&Candidate<'_>) -> bool) -> Backends {
    let pods = |is: &dyn Fn(&Candidate<'_>) -> bool| -> BTreeSet<Pod> {
        candidates.iter().filter(|c| is(c)).flat_map(|c| c.pods.iter().copied()).collect()
    };
    let serving = pods(&|c| c.is_ready || c.is_draining);
    let mut active = pods(&|c| c.is_ready && is_near(c));
    if active.is_empty() {
        active = pods(&|c| c.is_draining);
    }
    let draining = serving.difference(&active).copied().collect();
    Backends { active, draining }
}

//! The names of one service (kubernetes/dns, docs/specification.md, sections 2.3 to 2.5).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

use super::{
    super::name::{dashed, encode, fits, push},
    Addresses, Data, Target,
};
use crate::plan::ServiceKey;

/// Everything that is called by a service's name.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceNames {
    /// The service's own name on the wire.
    own: Box<[u8]>,
    /// What stands before it, in order: nothing, `_PORT._PROTOCOL` or the name of an endpoint.
    names: Box<[(Box<[u8]>, Records)]>,
    /// Addresses that lead back to one of the names, in order.
    back: Box<[(IpAddr, u32)]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Records {
    /// Other names are below it, or its address is not known yet.
    Nothing,
    Addresses(Addresses),
    Targets(Box<[Target]>),
    Alias(Box<[u8]>),
}

/// Before numbers take the place of the names of hosts.
enum Draft {
    Nothing,
    Addresses(Vec<IpAddr>),
    Targets(BTreeSet<(Vec<u8>, u16)>),
    Alias(Vec<u8>),
}

type Drafts = BTreeMap<Vec<u8>, Draft>;

impl ServiceNames {
    /// The names of a service; `None` if it has none, as a headless one without a ready endpoint.
    pub(super) fn of(
        origin: &[u8],
        key: &ServiceKey,
        service: &Service,
        slices: &[&EndpointSlice],
    ) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let mut own = Vec::new();
        for label in [&key.name, &key.namespace, "svc"] {
            push(&mut own, label)?;
        }
        own.extend(origin);
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let mut drafts = if spec.type_.as_deref() == Some("ExternalName") {
            let target = encode(spec.external_name.as_deref().unwrap_or_default());
            let alias = target.filter(|t| t.len() > 1).map_or(Draft::Nothing, Draft::Alias);
            Drafts::from([(Vec::new(), alias)])
        } else if headless {
            of_endpoints(slices)
        } else {
            of_addresses(spec)
        };
        drafts.retain(|before, _| fits(before, &own));
        if drafts.is_empty() {
            return None;
        }
        Some(finish(own.into(), drafts, headless))
    }

    /// What stands under the name with these labels before the service's own.
    pub(super) fn lookup(&self, before: &[u8]) -> Option<Data<'_>> {
        let at = self.names.binary_search_by(|(n, _)| n[..].cmp(before)).ok()?;
        Some(match &self.names[at].1 {
            Records::Nothing => Data::Nothing,
            Records::Addresses(addresses) => Data::Addresses(addresses),
            Records::Targets(targets) => Data::Targets(self, targets),
            Records::Alias(target) => Data::Alias(target),
        })
    }

    /// Name and addresses of the host that a target names.
    pub(in super::super) fn host(&self, target: Target) -> Option<([&[u8]; 2], &Addresses)> {
        match self.names.get(target.host as usize)? {
            (before, Records::Addresses(addresses)) => Some(([before, &self.own], addresses)),
            _ => None,
        }
    }

    /// Addresses, in order, with the whole names that they lead back to.
    pub(super) fn back(&self) -> impl Iterator<Item = (IpAddr, [&[u8]; 2])> {
        self.back
            .iter()
            .filter_map(|(ip, name)| Some((*ip, [&*self.names.get(*name as usize)?.0, &*self.own])))
    }
}

/// Addresses of the service, and a name for each port that has one.
fn of_addresses(spec: &ServiceSpec) -> Drafts {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let addresses: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    if addresses.is_empty() {
        // Not allocated yet: the name exists.
        return Drafts::from([(Vec::new(), Draft::Nothing)]);
    }
    let mut drafts = Drafts::from([(Vec::new(), Draft::Addresses(addresses))]);
    for port in spec.ports.iter().flatten() {
        if let (Some(name), Ok(number)) = (&port.name, u16::try_from(port.port)) {
            add_port(&mut drafts, name, port.protocol.as_deref(), Vec::new(), number);
        }
    }
    drafts
}

/// Every ready endpoint under the service's name and under one of its own, and their ports.
fn of_endpoints(slices: &[&EndpointSlice]) -> Drafts {
    let mut drafts = Drafts::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let ports: Vec<_> = ports.filter_map(|p| Some((p, u16::try_from(p.port?).ok()?))).collect();
        // Absent means ready, says the API; publishNotReadyAddresses is in the condition already.
        let ready = |e: &&_| {
            (*e as &k8s_openapi::api::discovery::v1::Endpoint).conditions.as_ref().and_then(|c| c.ready)
        };
        for endpoint in slice.endpoints.iter().filter(|e| ready(e) != Some(false)) {
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let mut host = Vec::new();
                let name = endpoint.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| dashed(ip));
                if push(&mut host, &name).is_none() {
                    continue;
                }
                for before in [Vec::new(), host.clone()] {
                    if let Draft::Addresses(ips) =
                        drafts.entry(before).or_insert_with(|| Draft::Addresses(Vec::new()))
                    {
                        ips.push(ip);
                    }
                }
                for (port, number) in &ports {
                    let name = port.name.as_deref().unwrap_or_default();
                    add_port(&mut drafts, name, port.protocol.as_deref(), host.clone(), *number);
                }
            }
        }
    }
    drafts
}

/// `_PORT._PROTOCOL`, and `_PROTOCOL` without records. A port without a name has neither.
fn add_port(drafts: &mut Drafts, name: &str, protocol: Option<&str>, host: Vec<u8>, number: u16) {
    let (mut port, mut proto) = (Vec::new(), Vec::new());
    let named = !name.is_empty() && push(&mut port, &format!("_{name}")).is_some();
    if !named || push(&mut proto, &format!("_{}", protocol.unwrap_or("TCP"))).is_none() {
        return;
    }
    port.extend(&proto);
    drafts.entry(proto).or_insert(Draft::Nothing);
    if let Draft::Targets(targets) = drafts.entry(port).or_insert_with(|| Draft::Targets(BTreeSet::new())) {
        targets.insert((host, number));
    }
}

fn finish(own: Box<[u8]>, drafts: Drafts, headless: bool) -> ServiceNames {
    let numbers: BTreeMap<Vec<u8>, u32> = drafts.keys().cloned().zip(0..).collect();
    let mut back = Vec::new();
    for ((before, draft), number) in drafts.iter().zip(0..) {
        // Of a headless service an address leads to its endpoint, not to all of them.
        if let (Draft::Addresses(ips), true) = (draft, !(headless && before.is_empty())) {
            back.extend(ips.iter().map(|ip| (*ip, number)));
        }
    }
    back.sort_unstable();
    back.dedup();
    let records = |draft| match draft {
        Draft::Nothing => Records::Nothing,
        Draft::Addresses(ips) => Records::Addresses(ips.into_iter().collect()),
        Draft::Alias(target) => Records::Alias(target.into()),
        Draft::Targets(targets) => Records::Targets(
            targets
                .into_iter()
                .filter_map(|(host, port)| Some(Target { port, host: *numbers.get(&host)? }))
                .collect(),
        ),
    };
    let names = drafts.into_iter().map(|(before, draft)| (before.into(), records(draft))).collect();
    ServiceNames { own, names, back: back.into() }
}

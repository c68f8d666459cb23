//! Which load balancer has which port of the nodes. Who has its ports keeps them; among those that wait the older comes first. A
//! service has all its ports or none. Pure, and kept up to date change by change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use minisvc_proto::{Object, ObjectKey};
use serde_json::Value;

use super::{CONDITION, is_managed};
use crate::conditions;

/// Protocol and number.
pub type Port = (String, u16);

/// What a service has of what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Standing {
    /// Every port.
    Serves,
    /// The ports that it wanted before it wanted more.
    Grows,
    /// Nothing.
    Waits,
}

impl Standing {
    fn of(service: &Object, wanted: &BTreeSet<Port>) -> Self {
        if !conditions::is_true(service, CONDITION) {
            return Standing::Waits;
        }
        let said = service.pointer("/status/loadBalancer/ingress/0/ports").and_then(Value::as_array);
        let had: BTreeSet<Port> = said.into_iter().flatten().filter_map(port).collect();
        if wanted.is_subset(&had) { Standing::Serves } else { Standing::Grows }
    }
}

/// The lesser comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Rank {
    standing: Standing,
    /// RFC 3339 in whole seconds of UTC: sorts as text.
    since: String,
    key: ObjectKey,
}

/// The services that want ports of the nodes.
#[derive(Debug, Default)]
pub struct Claimants {
    services: HashMap<ObjectKey, (Rank, BTreeSet<Port>)>,
    by_port: BTreeMap<Port, BTreeSet<Rank>>,
}

/// What a service wants of each node.
pub fn ports(service: &Object) -> BTreeSet<Port> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    ports.filter_map(port).collect()
}

fn port(entry: &Value) -> Option<Port> {
    let protocol = entry["protocol"].as_str().unwrap_or("TCP").to_owned();
    Some((protocol, u16::try_from(entry["port"].as_u64()?).ok()?))
}

impl Claimants {
    /// The service is like this now (`None`: it is gone). Answers those whose standing may be another by it.
    pub fn set(&mut self, key: &ObjectKey, service: Option<&Object>) -> BTreeSet<ObjectKey> {
        let new = service.filter(|s| is_managed(s)).map(|s| {
            let wanted = ports(s);
            let rank = Rank {
                standing: Standing::of(s, &wanted),
                since: s.str_at("/metadata/creationTimestamp").unwrap_or("").to_owned(),
                key: key.clone(),
            };
            (rank, wanted)
        });
        let old = self.services.get(key).cloned();
        if old == new {
            return BTreeSet::new();
        }
        // Whoever stands behind the service, before or after, may gain or lose by it.
        let mut concerned = BTreeSet::from([key.clone()]);
        if let Some((rank, ports)) = &old {
            concerned.extend(self.behind(rank, ports));
            self.services.remove(key);
            for port in ports {
                if let Some(ranks) = self.by_port.get_mut(port) {
                    ranks.remove(rank);
                    if ranks.is_empty() {
                        self.by_port.remove(port);
                    }
                }
            }
        }
        if let Some((rank, ports)) = new {
            concerned.extend(self.behind(&rank, &ports));
            for port in &ports {
                self.by_port.entry(port.clone()).or_default().insert(rank.clone());
            }
            self.services.insert(key.clone(), (rank, ports));
        }
        concerned
    }

    fn behind(&self, rank: &Rank, ports: &BTreeSet<Port>) -> impl Iterator<Item = ObjectKey> {
        let all = ports.iter().filter_map(|p| self.by_port.get(p));
        all.flat_map(move |ranks| ranks.range(rank.clone()..)).map(|r| r.key.clone())
    }

    /// All services that want ports.
    pub fn all(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// Who keeps a service from its ports, and from which; `None` if nobody does.
    pub fn rival(&self, key: &ObjectKey) -> Option<(Port, ObjectKey)> {
        let (me, _) = self.services.get(key)?;
        let mut has: HashMap<&Rank, bool> = HashMap::new();
        // Those before it are judged first, with a stack of our own: a chain of rivals may be long.
        let mut stack: Vec<&Rank> = vec![me];
        while let Some(judged) = stack.last().copied() {
            match self.obstacle(judged, &has) {
                Obstacle::Unknown(rival) => stack.push(rival),
                Obstacle::Has(port, rival) => {
                    if judged == me {
                        return Some((port.clone(), rival.key.clone()));
                    }
                    has.insert(judged, false);
                    stack.pop();
                }
                Obstacle::None => {
                    has.insert(judged, true);
                    stack.pop();
                }
            }
        }
        None
    }

    fn obstacle<'a>(&'a self, rank: &Rank, has: &HashMap<&Rank, bool>) -> Obstacle<'a> {
        let ports = self.services.get(&rank.key).map(|(_, ports)| ports);
        for port in ports.into_iter().flatten() {
            let before = self.by_port.get(port).into_iter().flat_map(|ranks| ranks.range(..rank));
            for rival in before {
                match has.get(rival) {
                    Some(true) => return Obstacle::Has(port, rival),
                    Some(false) => {}
                    None => return Obstacle::Unknown(rival),
                }
            }
        }
        Obstacle::None
    }
}

enum Obstacle<'a> {
    /// Whether it has its ports is to be found out first.
    Unknown(&'a Rank),
    Has(&'a Port, &'a Rank),
    None,
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn service(name: &str, since: u8, ports: &[u16], has: bool) -> Object {
        let mut s = Object::new(&SERVICES, Some("default"), name);
        s.metadata_mut().insert("creationTimestamp".into(), format!("2026-01-01T00:00:{since:02}Z").into());
        let ports: Vec<Value> = ports.iter().map(|p| json!({"port": p, "protocol": "TCP"})).collect();
        s.0.insert("spec".into(), json!({"type": "LoadBalancer", "ports": ports}));
        if has {
            serve(&mut s);
        }
        s
    }

    fn serve(s: &mut Object) {
        let ports = s.pointer("/spec/ports").cloned();
        let conditions = json!([{"type": CONDITION, "status": "True"}]);
        let status = json!({"conditions": conditions, "loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ports": ports}]}});
        s.0.insert("status".into(), status);
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::namespaced(&SERVICES, "default", name)
    }

    fn rivals(all: &Claimants, names: &[&str]) -> Vec<String> {
        let name =
            |n: &&str| all.rival(&key(n)).map_or_else(String::new, |(p, k)| format!("{} {}", k.name, p.1));
        names.iter().map(name).collect()
    }

    #[test]
    fn who_has_a_port_keeps_it_and_among_those_that_wait_the_older_comes_first() {
        let mut all = Claimants::default();
        let set = |all: &mut Claimants, s: &Object| all.set(&key(s.name()), Some(s));
        set(&mut all, &service("b", 2, &[80, 443], false));
        set(&mut all, &service("a", 1, &[80], false));
        set(&mut all, &service("c", 3, &[443], false));
        // All or none: b has nothing, so 443 is free for c.
        assert_eq!(rivals(&all, &["a", "b", "c"]), ["", "a 80", ""]);
        for (name, since, ports) in [("a", 1, &[80][..]), ("c", 3, &[443])] {
            set(&mut all, &service(name, since, ports, true));
        }
        assert_eq!(rivals(&all, &["a", "b", "c"]), ["", "a 80", ""]);
        assert_eq!(all.set(&key("a"), None), BTreeSet::from([key("a"), key("b")]));
        assert_eq!(rivals(&all, &["b", "c"]), ["c 443", ""], "who serves is not interrupted");
        // Older, but it comes late to the port.
        set(&mut all, &service("z", 0, &[443], false));
        assert_eq!(rivals(&all, &["b", "c", "z"]), ["c 443", "", "c 443"]);
        // It serves at 80, and wants what another has: it is the one that asked for it.
        let mut grown = service("a", 1, &[80], true);
        grown.spec_mut().insert("ports".into(), json!([{"port": 80}, {"port": 443}]));
        set(&mut all, &grown);
        assert_eq!(rivals(&all, &["a", "b", "c"]), ["c 443", "c 443", ""]);
        set(&mut all, &service("a", 1, &[81], false));
        let mut other = service("c", 3, &[443], true);
        other.spec_mut().insert("loadBalancerClass".into(), "cloud.example/x".into());
        assert_eq!(set(&mut all, &other), BTreeSet::from([key("b"), key("c"), key("z")]));
        assert_eq!(rivals(&all, &["b", "c", "z"]), ["z 443", "", ""]);
        assert_eq!(set(&mut all, &other), BTreeSet::new(), "nothing new");
    }

    #[test]
    fn a_long_chain_of_rivals_is_judged() {
        let mut all = Claimants::default();
        for n in 0..5000_u16 {
            let name = format!("s{n:05}");
            all.set(&key(&name), Some(&service(&name, 1, &[n + 1, n + 2], false)));
        }
        assert_eq!(rivals(&all, &["s04998", "s04999"]), ["", "s04998 5000"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn after_each_was_told_nobody_shares_a_port_and_whoever_could_serve_does(
            steps in proptest::collection::vec((0_u8..6, 0_u8..4, proptest::collection::btree_set(80_u16..84, 0..3)), 1..40),
        ) {
            let mut all = Claimants::default();
            let mut world: BTreeMap<ObjectKey, Object> = BTreeMap::new();
            for (n, since, wanted) in steps {
                let name = format!("s{n}");
                let mut changed = service(&name, since, &wanted.iter().copied().collect::<Vec<_>>(), false);
                if let Some(status) = world.get(&key(&name)).and_then(|o| o.0.get("status")).cloned() {
                    changed.0.insert("status".into(), status);
                }
                let new = (!wanted.is_empty()).then_some(changed);
                match &new {
                    Some(new) => drop(world.insert(key(&name), new.clone())),
                    None => drop(world.remove(&key(&name))),
                }
                let mut queue = all.set(&key(&name), new.as_ref());
                // As the controller does: look, write the status, be told of the change.
                let mut turns = 0;
                while let Some(next) = queue.pop_first() {
                    turns += 1;
                    prop_assert!(turns < 200, "it does not end");
                    let Some(object) = world.get_mut(&next) else { continue };
                    if all.rival(&next).is_none() {
                        serve(object);
                    } else {
                        object.0.remove("status");
                    }
                    queue.extend(all.set(&next, Some(&object.clone())));
                }
                let serving = |o: &&Object| conditions::is_true(o, CONDITION);
                let mut held = BTreeSet::new();
                for object in world.values().filter(serving) {
                    for port in ports(object) {
                        prop_assert!(held.insert(port), "two have one port");
                    }
                }
                for object in world.values().filter(|o| !serving(o)) {
                    prop_assert!(ports(object).iter().any(|p| held.contains(p)), "{} waits for nothing", object.name());
                }
            }
        }
    }
}

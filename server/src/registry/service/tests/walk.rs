//! Random changes against a simple model: who holds what follows from the stored services, nothing is held twice, a refusal
//! changes nothing, and what is free can be had.

use std::collections::BTreeMap;

use minisvc_proto::{
    ApiError, ObjectKey, Reason,
    path::Target,
    resource::{NAMESPACES, SERVICES},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::*;
use crate::{
    alloc::NodePortRange,
    registry::{
        DeleteOptions, Part, Registry, WriteOptions,
        testing::{registry_of, services},
    },
};

const NAMES: usize = 24;
const PORTS: std::ops::RangeInclusive<u16> = 30000..=30011;

/// Ranges so small that they are exhausted now and then.
fn small() -> Ranges {
    Ranges {
        services: services("10.96.0.0/28"),
        services6: Some(services("fd69::/124")),
        node_ports: NodePortRange::new(PORTS).unwrap(),
        ..ranges()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A new service, or another manifest for the one that there is.
    Apply {
        name: usize,
        spec: Value,
        dry_run: bool,
    },
    /// Some fields of the stored one.
    Patch {
        name: usize,
        changes: Value,
        dry_run: bool,
    },
    Delete {
        name: usize,
    },
    /// A service that names something free: address or port number by its place among those that are free.
    Take {
        name: usize,
        which: usize,
        port: bool,
    },
}

fn maybe<T: std::fmt::Debug + Clone + 'static>(values: Vec<T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.1, prop::sample::select(values))
}

/// Fields as somebody may set them, right or wrong.
fn fields() -> impl Strategy<Value = Value> {
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    let ips = ["None", "10.96.0.2", "10.96.0.9", "10.96.0.10", "10.97.0.1", "fd69::5", "FD69::0006"];
    let ports = prop::sample::subsequence(vec![0_usize, 1, 2], 1..=3);
    let node_ports = prop::collection::vec(maybe(vec![29999_u16, 30000, 30003, 30004]), 3);
    let ports =
        (ports, node_ports).prop_map(|(ports, named)| ports.into_iter().zip(named).collect::<Vec<_>>());
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    let families = [json!(["IPv4"]), json!(["IPv6"]), json!(["IPv4", "IPv6"]), json!(["IPv6", "IPv4"])];
    (
        prop::option::weighted(0.8, prop::sample::select(types.to_vec())),
        maybe(ips.to_vec()),
        prop::option::weighted(0.9, ports),
        maybe(policies.to_vec()),
        maybe(families.to_vec()),
        maybe(vec!["Local", "Cluster"]),
        maybe(vec![true, false]),
        maybe(vec![30001_u16, 30004, 31000]),
    )
        .prop_map(|(kind, ip, ports, policy, families, external, give, health)| {
            let mut spec = serde_json::Map::new();
            let mut set = |field: &str, value: Option<Value>| value.map(|v| spec.insert(field.into(), v));
            set("externalName", (kind == Some("ExternalName")).then(|| "a.example".into()));
            set("type", kind.map(Into::into));
            set("clusterIP", ip.map(Into::into));
            set("ipFamilyPolicy", policy.map(Into::into));
            set("ipFamilies", families);
            set("externalTrafficPolicy", external.map(Into::into));
            set("allocateLoadBalancerNodePorts", give.map(Into::into));
            set("healthCheckNodePort", health.map(Into::into));
            let port = |(which, node_port): (usize, Option<u16>)| {
                let mut port = [
                    json!({"name": "web", "port": 80}),
                    json!({"name": "dns", "port": 53, "protocol": "UDP"}),
                    json!({"name": "dns-tcp", "port": 53}),
                ][which]
                    .clone();
                if let Some(n) = node_port {
                    port["nodePort"] = n.into();
                }
                port
            };
            set("ports", ports.map(|list| list.into_iter().map(port).collect()));
            Value::Object(spec)
        })
}

fn step() -> impl Strategy<Value = Step> {
    let dry = prop::bool::weighted(0.1);
    prop_oneof![
        6 => (0..NAMES, fields(), dry).prop_map(|(name, spec, dry_run)| Step::Apply { name, spec, dry_run }),
        4 => (0..NAMES, fields(), dry).prop_map(|(name, changes, dry_run)| Step::Patch { name, changes, dry_run }),
        1 => (0..NAMES).prop_map(|name| Step::Delete { name }),
        1 => (0..NAMES, any::<usize>(), any::<bool>()).prop_map(|(name, which, port)| Step::Take { name, which, port }),
    ]
}

struct World {
    registry: Registry,
    /// What came of the steps, and how often.
    met: BTreeMap<&'static str, usize>,
}

fn key(name: usize) -> ObjectKey {
    ObjectKey::namespaced(&SERVICES, "default", &format!("s{name}"))
}

/// Who holds which address and number, read from the stored services without the code that is tested.
fn model(registry: &Registry) -> BTreeMap<String, String> {
    let mut held = BTreeMap::new();
    for service in registry.list(&SERVICES, None).1 {
        let list = |at: &str| service.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
        let ips = list("/spec/clusterIPs").into_iter().filter(|ip| ip != "None");
        let ips = ips.map(|ip| format!("/reserved/clusterips/{}", ip.as_str().unwrap()));
        let ports = list("/spec/ports").into_iter().map(|p| p["nodePort"].clone());
        let health = service.pointer("/spec/healthCheckNodePort").cloned();
        let numbers: BTreeSet<u64> = ports.chain(health).filter_map(|n| n.as_u64()).collect();
        for what in ips.chain(numbers.into_iter().map(|n| format!("/reserved/nodeports/{n}"))) {
            let other = held.insert(what.clone(), service.key().unwrap().to_string());
            assert_eq!(other, None, "{what} is held twice");
        }
    }
    held
}

impl World {
    async fn new() -> Self {
        let registry = registry_of(small());
        let namespace = Object::new(&NAMESPACES, None, "default");
        let target = Target::collection(&NAMESPACES, None);
        registry.create(&target, namespace, WriteOptions::default()).await.unwrap();
        World { registry, met: BTreeMap::new() }
    }

    async fn write(&self, name: usize, spec: Value, dry_run: bool) -> Result<(), ApiError> {
        let object: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": key(name).name, "namespace": "default"}, "spec": spec}))
        .unwrap();
        let options = WriteOptions { dry_run };
        if self.registry.get(&key(name)).is_ok() {
            return self.registry.update(Part::Main, object, options).await.map(drop);
        }
        let target = Target::collection(&SERVICES, Some("default"));
        self.registry.create(&target, object, options).await.map(drop)
    }

    async fn take(&mut self, step: &Step) {
        let (before, held) = (self.registry.revision(), model(&self.registry));
        let (dry, result) = match step.clone() {
            Step::Apply { name, spec, dry_run } => (dry_run, self.write(name, spec, dry_run).await),
            Step::Patch { name, changes, dry_run } => {
                let Ok(stored) = self.registry.get(&key(name)) else { return };
                (dry_run, self.write(name, with(&stored, changes), dry_run).await)
            }
            Step::Delete { name } => {
                let gone = self.registry.delete(&key(name), DeleteOptions::default()).await;
                assert!(gone.is_ok() || self.registry.get(&key(name)).is_err());
                return;
            }
            Step::Take { name, which, port } => {
                let Some(spec) = free(&held, which, port) else { return };
                if self.registry.delete(&key(name), DeleteOptions::default()).await.is_err() {
                    assert!(self.registry.get(&key(name)).is_err());
                }
                // The service has to have an address of its own, too.
                let ips = |h: &BTreeMap<String, String>| h.keys().filter(|k| k.contains("/10.96.")).count();
                if ips(&model(&self.registry)) < 12 || !port {
                    self.write(name, spec.clone(), false).await.unwrap_or_else(|e| panic!("{spec}: {e}"));
                    *self.met.entry("taken").or_default() += 1;
                }
                return;
            }
        };
        let Err(error) = result else {
            *self.met.entry(if dry { "dry run" } else { "written" }).or_default() += 1;
            assert!(!dry || self.registry.revision() == before, "a dry run wrote: {step:?}");
            return;
        };
        assert_eq!((self.registry.revision(), model(&self.registry)), (before, held.clone()), "{step:?}");
        let full = |prefix: &str, most: usize| held.keys().filter(|k| k.starts_with(prefix)).count() >= most;
        match error.reason {
            Reason::Invalid => {
                *self.met.entry("invalid").or_default() += 1;
                for cause in error.details.unwrap().causes {
                    let taken = cause.message.ends_with("already allocated");
                    let free =
                        taken && held.keys().all(|k| !cause.message.contains(k.rsplit('/').next().unwrap()));
                    assert!(!free || cause.field == "spec.healthCheckNodePort", "{step:?}: {cause}");
                }
            }
            Reason::InternalError if error.message.contains("a serviceIP: range is full") => {
                *self.met.entry("addresses").or_default() += 1;
                // First and tenth are kept: of 14 and 15 there are 12 and 13.
                let v4 = full("/reserved/clusterips/10.", 12);
                assert!(v4 || full("/reserved/clusterips/fd69", 13), "{step:?}: {held:?}");
            }
            Reason::InternalError => {
                *self.met.entry("ports").or_default() += 1;
                assert!(error.message.ends_with("range is full"), "{error}");
                // A service of three ports and a health check wants four of them.
                assert!(full("/reserved/nodeports/", PORTS.len() - 3), "{step:?}: {held:?}");
            }
            _ => panic!("{step:?}: {error}"),
        }
    }

    fn check(&self) {
        let stored = ["/reserved/clusterips/", "/reserved/nodeports/"];
        let stored: BTreeMap<String, String> =
            stored.into_iter().flat_map(|prefix| self.registry.cache.reservations(prefix)).collect();
        assert_eq!(stored, model(&self.registry), "reservations are what the services say");
        for service in self.registry.list(&SERVICES, None).1 {
            assert_eq!(validate(Some(&service), &service, &small()), [], "{service:?}");
            assert_eq!(validate(None, &service, &small()), [], "it could be made anew: {service:?}");
        }
    }
}

/// A service that names a free number or address.
fn free(held: &BTreeMap<String, String>, which: usize, port: bool) -> Option<Value> {
    if port {
        let free: Vec<u16> =
            PORTS.filter(|n| !held.contains_key(&format!("/reserved/nodeports/{n}"))).collect();
        let number = free.get(which % free.len().max(1))?;
        return Some(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]}));
    }
    let all = (2..15).filter(|i| *i != 10).map(|i| format!("10.96.0.{i}"));
    let all = all.chain((2..16).filter(|i| *i != 10).map(|i| format!("fd69::{i:x}")));
    let free: Vec<String> =
        all.filter(|ip| !held.contains_key(&format!("/reserved/clusterips/{ip}"))).collect();
    let ip = free.get(which % free.len().max(1))?;
    Some(json!({"clusterIP": ip, "ports": [{"port": 80}]}))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_is_held_twice_lost_or_refused_without_reason(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.take(step).await;
                world.check();
            }
        });
    }
}

/// Anything that JSON can say, small.
fn anything() -> impl Strategy<Value = Value> {
    let numbers = [0, 1, 80, 30000, 65536, -1, i64::MAX];
    let words =
        ["", "None", "IPv4", "IPv6", "Local", "ClientIP", "LoadBalancer", "RequireDualStack", "fd69::5", "x"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(numbers.to_vec()).prop_map(Value::from),
        Just(json!(0.5)),
        prop::sample::select(words.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let keys = prop::sample::select(vec![
            "port",
            "nodePort",
            "name",
            "protocol",
            "targetPort",
            "clientIP",
            "ip",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..3)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

const ALL_FIELDS: [&str; 21] = [
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "ports",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "allocateLoadBalancerNodePorts",
    "trafficDistribution",
    "publishNotReadyAddresses",
    "fromTheFuture",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_is_sent_is_answered(
        made in prop::collection::btree_map(prop::sample::select(ALL_FIELDS.to_vec()), anything(), 0..5),
        changes in prop::collection::btree_map(prop::sample::select(ALL_FIELDS.to_vec()), anything(), 0..5),
        status in anything(),
        whole in prop::option::weighted(0.1, anything()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let good = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
            world.write(0, good.clone(), false).await.unwrap();
            let stored = world.registry.get(&key(0)).unwrap();
            let patched = with(&stored, serde_json::to_value(&changes).unwrap());
            let spec = whole.unwrap_or_else(|| with(&service(good), serde_json::to_value(&made).unwrap()));
            for result in [world.write(0, patched, false).await, world.write(1, spec, false).await] {
                assert!(result.as_ref().err().is_none_or(|e| e.code == 422), "{result:?}");
            }
            let mut said = (*world.registry.get(&key(0)).unwrap()).clone();
            said.0.insert("status".into(), json!({"loadBalancer": {"ingress": [status]}}));
            let result = world.registry.update(Part::Status, said, WriteOptions::default()).await;
            assert!(result.as_ref().err().is_none_or(|e| e.code == 422), "{result:?}");
            world.check();
        });
    }
}

/// The same walks each time.
fn walks(many: usize, steps: usize) -> Vec<Vec<Step>> {
    let mut runner = TestRunner::deterministic();
    let walk = prop::collection::vec(step(), steps);
    (0..many).map(|_| walk.new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn the_walk_meets_what_it_is_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for steps in walks(4, 250) {
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.take(step).await;
            }
            world.check();
            for (what, times) in world.met {
                *met.entry(what).or_default() += times;
            }
        });
    }
    for (what, least) in
        [("written", 200), ("dry run", 10), ("taken", 20), ("invalid", 100), ("addresses", 1), ("ports", 5)]
    {
        assert!(met.get(what).is_some_and(|times| *times >= least), "{what}: {met:?}");
    }
}

/// Many writers at once, on the same services.
#[test]
fn writers_at_once_hold_nothing_twice() {
    let walks = walks(6, 60);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let world = World::new().await;
        let registry = world.registry.clone();
        let writers = walks.into_iter().map(|steps| {
            let world = World { registry: registry.clone(), met: BTreeMap::new() };
            tokio::spawn(async move {
                let mut done = 0;
                for step in steps {
                    let written = match step {
                        Step::Apply { name, spec, dry_run } => world.write(name, spec, dry_run).await,
                        Step::Patch { name, changes, dry_run } => match world.registry.get(&key(name)) {
                            Ok(stored) => world.write(name, with(&stored, changes), dry_run).await,
                            Err(e) => Err(e),
                        },
                        Step::Delete { name } => {
                            world.registry.delete(&key(name), DeleteOptions::default()).await.map(drop)
                        }
                        Step::Take { .. } => Ok(()),
                    };
                    done += usize::from(written.is_ok());
                }
                done
            })
        });
        let mut done = 0;
        for writer in writers.collect::<Vec<_>>() {
            done += writer.await.unwrap();
        }
        assert!(done > 60, "{done} writes came through");
        world.check();
    });
}

use std::collections::BTreeMap;

use minisvc_proto::resource::{ENDPOINT_SLICES, ENDPOINTS};

use super::*;
use crate::controllers::{
    endpointslice::tests::{apply, service},
    slices::{MANAGED_BY, SERVICE_NAME},
};

fn bare() -> Object {
    service(json!({"ports": [{"port": 5432}]}))
}

fn endpoints(subsets: Value) -> Object {
    let mut e = Object::new(&ENDPOINTS, Some("default"), "web");
    e.metadata_mut().insert("uid".into(), "e1".into());
    e.0.insert("subsets".into(), subsets);
    e
}

fn converge(
    service: Option<&Object>,
    endpoints: Option<&Object>,
    before: &[Arc<Object>],
) -> Vec<Arc<Object>> {
    let after = apply(before, reconcile(service, endpoints, before).actions);
    assert_eq!(reconcile(service, endpoints, &after).actions, [], "a second run has nothing to do");
    after
}

/// Address and readiness, by family.
fn seen(slices: &[Arc<Object>]) -> BTreeMap<String, Vec<(String, bool)>> {
    let mut out: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for slice in slices {
        let endpoints = slice.pointer("/endpoints").unwrap().as_array().unwrap();
        let all = endpoints.iter().map(|e| {
            (e["addresses"][0].as_str().unwrap().to_owned(), e["conditions"]["ready"].as_bool().unwrap())
        });
        out.entry(slice.str_at("/addressType").unwrap().to_owned()).or_default().extend(all);
    }
    out
}

#[test]
fn addresses_become_slices_of_their_families_and_follow() {
    let mut own = endpoints(json!([{
        "addresses": [{"ip": "192.0.2.1", "hostname": "a", "nodeName": "n1"}, {"ip": "2001:db8::1"}, {"ip": "192.0.2.1"}],
        "notReadyAddresses": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.1"}],
        "ports": [{"name": "db", "port": 5432, "protocol": "TCP", "appProtocol": "postgresql"}],
    }]));
    own.metadata_mut().insert("labels".into(), json!({"team": "blue"}));
    let note = json!({"a/b": "c", "kubectl.kubernetes.io/last-applied-configuration": "{}"});
    own.metadata_mut().insert("annotations".into(), note);
    let slices = converge(Some(&bare()), Some(&own), &[]);
    assert_eq!(
        seen(&slices),
        BTreeMap::from([
            ("IPv4".into(), vec![("192.0.2.1".into(), true), ("192.0.2.2".into(), false)]),
            ("IPv6".into(), vec![("2001:db8::1".into(), true)]),
        ])
    );
    for slice in &slices {
        assert_eq!(
            slice.labels(),
            BTreeMap::from(
                [("team", "blue"), (SERVICE_NAME, "web"), (MANAGED_BY, MANAGER)]
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
            )
        );
        assert_eq!(slice.annotations(), BTreeMap::from([("a/b".into(), "c".into())]));
        assert_eq!(slice.controller_uid(), Some("e1"));
        let port = json!([{"name": "db", "port": 5432, "protocol": "TCP", "appProtocol": "postgresql"}]);
        assert_eq!(slice.pointer("/ports"), Some(&port));
    }
    let first = slices.iter().find(|s| s.str_at("/addressType") == Some("IPv4")).unwrap();
    assert_eq!(first.str_at("/endpoints/0/hostname"), Some("a"));
    assert_eq!(first.str_at("/endpoints/0/nodeName"), Some("n1"));

    let mut changed = own.clone();
    changed.0.insert("subsets".into(), json!([{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 1}]}]));
    let slices = converge(Some(&bare()), Some(&changed), &slices);
    assert_eq!(seen(&slices), BTreeMap::from([("IPv4".into(), vec![("192.0.2.9".into(), true)])]));
    assert_eq!(slices[0].pointer("/ports/0/name"), Some(&"".into()));
}

#[test]
fn they_are_mirrored_while_the_service_has_no_selector_and_nobody_says_otherwise() {
    let own = endpoints(json!([{"addresses": [{"ip": "192.0.2.1"}]}]));
    let slices = converge(Some(&bare()), Some(&own), &[]);
    assert_eq!(slices.len(), 1);
    let mut skipped = own.clone();
    skipped.metadata_mut().insert("labels".into(), json!({SKIP: "true"}));
    let mut lock = own.clone();
    lock.metadata_mut().insert("annotations".into(), json!({LEADER: "{}"}));
    let mut ours = own.clone();
    ours.metadata_mut().insert("labels".into(), json!({endpoints::MANAGED_BY: endpoints::MANAGER}));
    for unwanted in [None, Some(&skipped), Some(&lock), Some(&ours)] {
        assert_eq!(converge(Some(&bare()), unwanted, &slices), [], "{unwanted:?}");
    }
    let selecting = service(json!({"ports": [{"port": 80}], "selector": {"app": "web"}}));
    let elsewhere = service(json!({"type": "ExternalName", "externalName": "a.example"}));
    for unfit in [None, Some(&selecting), Some(&elsewhere)] {
        assert_eq!(converge(unfit, Some(&own), &slices), [], "{unfit:?}");
    }
    // Somebody else's slices, and those of Endpoints that were there before under this name.
    let mut hand_made = Object::new(&ENDPOINT_SLICES, Some("default"), "mine");
    hand_made.metadata_mut().insert("labels".into(), json!({SERVICE_NAME: "web"}));
    let mut again = own.clone();
    again.metadata_mut().insert("uid".into(), "e2".into());
    let both = [slices[0].clone(), Arc::new(hand_made)];
    let after = converge(Some(&bare()), Some(&again), &both);
    assert!(after.contains(&both[1]));
    assert_eq!(after.iter().filter(|s| s.controller_uid() == Some("e2")).count(), 1);
    assert_eq!(after.len(), 2);
}

#[test]
fn what_cannot_be_mirrored_is_counted() {
    let many: Vec<Value> =
        (0..1002).map(|n| json!({"ip": format!("192.0.{}.{}", n / 250, n % 250)})).collect();
    let own = endpoints(json!([
        {"addresses": many},
        {"addresses": [{"ip": "127.0.0.1"}, {"ip": "no"}, {"ip": "192.0.2.1"}],
            "ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]},
    ]));
    let found = reconcile(Some(&bare()), Some(&own), &[]);
    assert_eq!((found.invalid, found.too_many), (2, 2));
    let reasons: Vec<_> = found.complaints().map(|c| c.1).collect();
    assert_eq!(reasons, ["InvalidIPAddress", "TooManyAddressesToMirror"]);
    let slices = apply(&[], found.actions);
    assert_eq!(slices.len(), 11, "a hundred endpoints a slice, and one for the other ports");
    let narrow = slices.iter().find(|s| s.pointer("/ports/0").is_some()).unwrap();
    assert_eq!(narrow.pointer("/ports"), Some(&json!([{"name": "a", "port": 1, "protocol": "TCP"}])));

    let ports: Vec<Value> = (1..=101).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    let own = endpoints(json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": ports}]));
    let found = reconcile(Some(&bare()), Some(&own), &[]);
    assert_eq!((found.actions.len(), found.too_many), (0, 1));
}

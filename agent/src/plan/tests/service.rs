use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value as Json, json};

use super::*;

fn service(mut spec: Json) -> Service {
    let base = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "UDP"}]});
    for (key, value) in base.as_object().unwrap() {
        spec.as_object_mut().unwrap().entry(key).or_insert(value.clone());
    }
    serde_json::from_value(json!({"spec": spec})).unwrap()
}

fn slice(endpoints: &[Json]) -> EndpointSlice {
    let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "port": 8080, "protocol": "UDP"}]});
    serde_json::from_value(slice).unwrap()
}

fn endpoint(n: u8, ready: bool, serving: bool) -> Json {
    json!({"addresses": [pod(n).0.to_string()],
        "conditions": {"ready": ready, "serving": serving, "terminating": !ready}})
}

fn on(node: &str, mut endpoint: Json) -> Json {
    endpoint["nodeName"] = json!(node);
    endpoint
}

fn hinted(hints: &Json, mut endpoint: Json) -> Json {
    endpoint["hints"] = hints.clone();
    endpoint
}

fn here() -> Viewpoint {
    Viewpoint {
        node: "here".into(),
        zone: Some("z".into()),
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        others: ["192.0.2.12".parse().unwrap()].into(),
    }
}

fn planned(endpoints: &[Json]) -> ServicePort {
    plan_service(&service(json!({})), &[&slice(endpoints)], &here()).ports.remove(0)
}

fn backends(active: &[u8], draining: &[u8]) -> Backends {
    Backends { active: pods(active), draining: pods(draining) }
}

#[test]
fn who_ends_and_still_serves_keeps_what_it_has_and_gets_more_only_when_nobody_else_is_there() {
    let (ready, ending, ended) =
        (endpoint(1, true, true), endpoint(2, false, true), endpoint(3, false, false));
    assert_eq!(planned(&[ready.clone(), ending.clone(), ended.clone()]).cluster, backends(&[1], &[2]));
    assert_eq!(planned(&[ending.clone(), ended]).cluster, backends(&[2], &[]));
    // In each scope for itself: here one ends, elsewhere one is ready.
    let port = planned(&[on("there", ready), on("here", ending)]);
    assert_eq!((port.cluster, port.local), (backends(&[1], &[2]), backends(&[2], &[])));
    // What is not told is as the API says: ready, serving, not terminating.
    let silent = json!({"addresses": [pod(4).0.to_string()]});
    let unsaid =
        json!({"addresses": [pod(5).0.to_string()], "conditions": {"ready": false, "terminating": true}});
    assert_eq!(planned(&[silent, unsaid]).cluster, backends(&[4], &[5]));
}

#[test]
fn hints_count_when_all_that_are_ready_have_them_and_one_names_this_node_or_zone() {
    let (zone_z, zone_y) = (json!({"forZones": [{"name": "z"}]}), json!({"forZones": [{"name": "y"}]}));
    let node = |name: &str, zone: &str| json!({"forNodes": [{"name": name}], "forZones": [{"name": zone}]});
    let (near, far) = (hinted(&zone_z, endpoint(1, true, true)), hinted(&zone_y, endpoint(2, true, true)));
    let plain = endpoint(3, true, true);
    let ending = endpoint(4, false, true);
    for (endpoints, wanted) in [
        // The others keep what they have.
        (vec![near.clone(), far.clone()], backends(&[1], &[2])),
        (vec![near.clone(), far.clone(), plain.clone()], backends(&[1, 2, 3], &[])),
        (vec![far.clone()], backends(&[2], &[])),
        // Who ends needs no hint, and gets nothing while somebody is ready, far as he may be.
        (vec![near.clone(), far.clone(), ending.clone()], backends(&[1], &[2, 4])),
        (vec![far.clone(), ending.clone()], backends(&[2], &[4])),
        (
            vec![
                hinted(&node("here", "z"), endpoint(1, true, true)),
                hinted(&node("there", "z"), endpoint(2, true, true)),
            ],
            backends(&[1], &[2]),
        ),
        // No node is this one: then the zone.
        (
            vec![
                hinted(&node("there", "z"), endpoint(1, true, true)),
                hinted(&node("far", "y"), endpoint(2, true, true)),
            ],
            backends(&[1], &[2]),
        ),
        (vec![hinted(&json!({}), endpoint(1, true, true)), far], backends(&[1, 2], &[])),
    ] {
        assert_eq!(planned(&endpoints).cluster, wanted, "{endpoints:?}");
    }
    // They are nothing to policy Local.
    let local = planned(&[on("here", hinted(&zone_y, endpoint(1, true, true))), on("there", near)]).local;
    assert_eq!(local, backends(&[1], &[]));
    let nowhere = Viewpoint { zone: None, ..here() };
    let far = hinted(&zone_y, endpoint(2, true, true));
    let port = plan_service(&service(json!({})), &[&slice(&[far])], &nowhere).ports.remove(0);
    assert_eq!(port.cluster, backends(&[2], &[]));
}

fn lb(ingress: &Json, spec: Json) -> ServicePort {
    let mut lb = service(spec);
    lb.spec.as_mut().unwrap().type_ = Some("LoadBalancer".into());
    lb.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}})).unwrap());
    plan_service(&lb, &[], &here()).ports.remove(0)
}

#[test]
fn a_load_balancer_answers_at_this_nodes_address_if_it_is_listed_and_at_such_as_no_node_has() {
    let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    for (ingress, wanted) in [
        (json!([{"ip": "192.0.2.11"}, {"ip": "192.0.2.12"}]), ips(&["192.0.2.11"])),
        (json!([{"ip": "192.0.2.12"}]), ips(&[])),
        (json!([{"ip": "203.0.113.5", "ipMode": "VIP"}]), ips(&["203.0.113.5"])),
        (json!([{"ip": "203.0.113.5", "ipMode": "Proxy"}, {"hostname": "lb.example"}]), ips(&[])),
        // No address of this family, and such as would take what is the node's own.
        (
            json!([{"ip": "2001:db8::5"}, {"ip": "127.0.0.1"}, {"ip": "0.0.0.0"}, {"ip": "224.0.0.1"}, {"ip": "?"}]),
            ips(&[]),
        ),
        (json!([]), ips(&[])),
    ] {
        assert_eq!(lb(&ingress, json!({})).load_balancer_ips, wanted, "{ingress}");
    }
    // What is left in the status of another type means nothing.
    let mut former = service(json!({"type": "NodePort"}));
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}});
    former.status = Some(serde_json::from_value(status).unwrap());
    assert_eq!(plan_service(&former, &[], &here()).ports[0].load_balancer_ips, ips(&[]));
}

#[test]
fn ranges_of_sources_are_of_one_family_and_none_of_it_lets_nobody_in() {
    let ranges = |ranges: Json| lb(&json!([]), json!({"loadBalancerSourceRanges": ranges})).source_ranges;
    assert_eq!(ranges(json!([])), None);
    assert_eq!(ranges(json!(["198.51.100.9/24"])), Some([range("198.51.100.0/24")].into()));
    assert_eq!(ranges(json!(["198.51.100.0/24", "0.0.0.0/0"])), None);
    assert_eq!(ranges(json!(["2001:db8::/32"])), Some([].into()));
    assert_eq!(
        ranges(json!([" 198.51.100.0/24 ", "2001:db8::/32"])),
        Some([range("198.51.100.0/24")].into())
    );
}

#[test]
fn a_port_stands_for_each_family_with_the_endpoints_and_addresses_of_that_family() {
    let both = service(
        json!({"clusterIPs": ["10.96.0.1", "fd69::1"], "externalIPs": ["203.0.113.1", "2001:db8::1"]}),
    );
    let six = json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd6a::1"]}],
        "ports": [{"name": "", "port": 8080, "protocol": "UDP"}]});
    let six: EndpointSlice = serde_json::from_value(six).unwrap();
    let ports = plan_service(&both, &[&slice(&[endpoint(1, true, true)]), &six], &here()).ports;
    let told: Vec<_> = ports
        .iter()
        .map(|p| {
            let text = |ips: Vec<IpAddr>| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let endpoints = p.cluster.active.iter().map(|(ip, _)| *ip).collect();
            (p.cluster_ip.to_string(), text(p.external_ips.iter().copied().collect()), text(endpoints))
        })
        .collect();
    let told: Vec<_> = told.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    assert_eq!(told, [("10.96.0.1", "203.0.113.1", "10.244.0.1"), ("fd69::1", "2001:db8::1", "fd6a::1")]);
}

#[test]
fn services_of_others_and_such_as_need_no_rules_have_no_plan() {
    let mut proxied = service(json!({}));
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        proxied.metadata.labels = Some([(label.to_owned(), String::new())].into());
        assert_eq!(plan_service(&proxied, &[], &here()), ServicePlan::default(), "{label}");
    }
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": ""}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
    ] {
        assert_eq!(plan_service(&service(spec), &[], &here()), ServicePlan::default());
    }
}

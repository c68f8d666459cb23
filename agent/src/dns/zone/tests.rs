use serde_json::{Value, json};

use super::*;

fn key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey { namespace: namespace.into(), name: name.into() }
}

/// An empty zone with the default ranges.
pub fn empty() -> SharedZone {
    SharedZone::new(Zone::new(&ZoneConfig {
        domain: "Cluster.Local.".into(),
        servers: vec!["10.96.0.10".parse().unwrap(), "fd69::a".parse().unwrap()],
        ranges: ["10.96.0.0/12", "10.244.0.0/16", "fd69::/112"].map(|r| r.parse().unwrap()).into(),
        fixed: [("host.minisvc.internal".into(), vec!["192.0.2.1".parse().unwrap()])].into(),
    }))
}

/// Puts a service by its spec and its slices, each with its ports and endpoints.
pub fn put(
    zone: &SharedZone,
    (namespace, name): (&str, &str),
    spec: Value,
    slices: &[(Value, Value)],
) -> bool {
    let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
    let slice = |(ports, endpoints): &(Value, Value)| -> EndpointSlice {
        serde_json::from_value(json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
            .unwrap()
    };
    let slices: Vec<_> = slices.iter().map(slice).collect();
    zone.put(&key(namespace, name), Some((&service, &slices.iter().collect::<Vec<_>>())))
}

/// What is under a name, as a line.
fn under(zone: &SharedZone, name: &str) -> String {
    let zone = zone.read();
    let (asked, _) = Asked::read(&encode(name).unwrap(), 0).unwrap();
    let dotted = |wire: &[u8]| {
        let (name, _) = Asked::read(wire, 0).unwrap();
        let labels: Vec<_> =
            (0..name.labels()).map(|n| String::from_utf8_lossy(name.label(n)).into_owned()).collect();
        labels.join(".")
    };
    match zone.lookup(&asked) {
        Lookup::Outside => "outside".into(),
        Lookup::Within(start, data) => {
            let data = match data {
                None => "no such name".into(),
                Some(Data::Nothing) => "nothing".into(),
                Some(Data::Apex) => "apex".into(),
                Some(Data::Text(text)) => text.into(),
                Some(Data::Alias(target)) => format!("-> {}", dotted(target)),
                Some(Data::Addresses(Addresses { v4, v6 })) => {
                    let all = v4.iter().map(ToString::to_string).chain(v6.iter().map(ToString::to_string));
                    all.collect::<Vec<_>>().join(" ")
                }
                Some(Data::Targets(service, targets)) => {
                    let one = |t: &Target| {
                        let (name, _) = service.host(*t).unwrap();
                        format!("{}:{}", dotted(&name.concat()), t.port)
                    };
                    targets.iter().map(one).collect::<Vec<_>>().join(" ")
                }
                Some(Data::Pointers(names)) => {
                    let mut names: Vec<_> = names.iter().map(|n| dotted(n)).collect();
                    names.sort();
                    names.join(" ")
                }
            };
            format!("{data} [{}]", dotted(asked.from(start)))
        }
    }
}

/// Each kind of service.
pub fn full() -> SharedZone {
    let zone = empty();
    put(
        &zone,
        ("default", "web"),
        json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd69::7"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 9}]}),
        &[(json!([]), json!([{"addresses": ["10.244.0.2"]}]))],
    );
    let ports = |number: u16| json!([{"name": "sql", "port": number, "protocol": "TCP"}, {"port": 9}]);
    put(
        &zone,
        ("default", "db"),
        json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
        &[
            (
                ports(5432),
                json!([
                    {"addresses": ["10.244.0.2"], "conditions": {"ready": true}, "hostname": "DB-0"},
                    {"addresses": ["10.244.0.3"], "conditions": {"ready": false}, "hostname": "db-1"},
                ]),
            ),
            (
                ports(6432),
                json!([{"addresses": ["10.244.1.2"]}, {"addresses": ["10.244.0.2"], "hostname": "db-0"}]),
            ),
        ],
    );
    let unready = json!([{"addresses": ["10.244.0.9"], "conditions": {"ready": false}}]);
    put(&zone, ("idle", "idle"), json!({"clusterIP": "None"}), &[(ports(1), unready)]);
    put(&zone, ("prod", "mail"), json!({"type": "ExternalName", "externalName": "A.example."}), &[]);
    put(
        &zone,
        ("prod", "here"),
        json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
        &[],
    );
    put(&zone, ("prod", "new"), json!({"ports": [{"name": "http", "port": 80}]}), &[]);
    zone
}

#[test]
fn every_kind_of_service_has_its_names() {
    let zone = full();
    for (name, want) in [
        ("web.default.svc.cluster.local", "10.96.0.7 fd69::7 [cluster.local]"),
        ("WEB.Default.SVC.cluster.LOCAL.", "10.96.0.7 fd69::7 [cluster.local]"),
        ("_http._tcp.web.default.svc.cluster.local", "web.default.svc.cluster.local:80 [cluster.local]"),
        ("_dns._udp.web.default.svc.cluster.local", "web.default.svc.cluster.local:53 [cluster.local]"),
        ("_dns._tcp.web.default.svc.cluster.local", "no such name [cluster.local]"),
        ("_tcp.web.default.svc.cluster.local", "nothing [cluster.local]"),
        ("_sctp.web.default.svc.cluster.local", "no such name [cluster.local]"),
        ("10-244-0-2.web.default.svc.cluster.local", "no such name [cluster.local]"),
        ("db.default.svc.cluster.local", "10.244.0.2 10.244.1.2 [cluster.local]"),
        ("db-0.db.default.svc.cluster.local", "10.244.0.2 [cluster.local]"),
        ("db-1.db.default.svc.cluster.local", "no such name [cluster.local]"),
        ("10-244-1-2.db.default.svc.cluster.local", "10.244.1.2 [cluster.local]"),
        ("10-244-0-2.db.default.svc.cluster.local", "no such name [cluster.local]"),
        (
            "_sql._tcp.db.default.svc.cluster.local",
            "db-0.db.default.svc.cluster.local:5432 db-0.db.default.svc.cluster.local:6432 \
             10-244-1-2.db.default.svc.cluster.local:6432 [cluster.local]",
        ),
        ("idle.idle.svc.cluster.local", "no such name [cluster.local]"),
        ("idle.svc.cluster.local", "no such name [cluster.local]"),
        ("mail.prod.svc.cluster.local", "-> a.example [cluster.local]"),
        ("here.prod.svc.cluster.local", "-> web.default.svc.cluster.local [cluster.local]"),
        ("x.mail.prod.svc.cluster.local", "no such name [cluster.local]"),
        ("new.prod.svc.cluster.local", "nothing [cluster.local]"),
        ("default.svc.cluster.local", "nothing [cluster.local]"),
        ("svc.cluster.local", "nothing [cluster.local]"),
        ("cluster.local", "apex [cluster.local]"),
        ("dns-version.cluster.local", "1.1.0 [cluster.local]"),
        ("dns.cluster.local", "nothing [cluster.local]"),
        ("ns.dns.cluster.local", "10.96.0.10 fd69::a [cluster.local]"),
        ("web.prod.svc.cluster.local", "no such name [cluster.local]"),
        ("*.default.svc.cluster.local", "no such name [cluster.local]"),
        ("nowhere.svc.cluster.local", "no such name [cluster.local]"),
        ("web.default.cluster.local", "no such name [cluster.local]"),
        ("10-244-0-2.default.pod.cluster.local", "no such name [cluster.local]"),
        ("websvc.cluster.local", "no such name [cluster.local]"),
        ("host.minisvc.internal", "192.0.2.1 [host.minisvc.internal]"),
        ("HOST.minisvc.internal", "192.0.2.1 [host.minisvc.internal]"),
        ("x.host.minisvc.internal", "outside"),
        ("minisvc.internal", "outside"),
        ("web.default.svc.mycluster.local", "outside"),
        ("example.com", "outside"),
        ("local", "outside"),
        ("", "outside"),
    ] {
        assert_eq!(under(&zone, name), want, "{name}");
    }
}

#[test]
fn addresses_lead_back_to_names() {
    let zone = full();
    // Two services may have one pod.
    put(
        &zone,
        ("prod", "db"),
        json!({"clusterIP": "None"}),
        &[(json!([]), json!([{"addresses": ["10.244.0.2", "192.0.2.7"]}]))],
    );
    let nibbles = |ip: &str| {
        let digits = format!("{:032x}", u128::from(ip.parse::<Ipv6Addr>().unwrap()));
        digits.chars().rev().flat_map(|c| [c, '.']).collect::<String>() + "ip6.arpa"
    };
    let v6_zone = nibbles("fd69::").split_off(8);
    for (name, want) in [
        ("7.0.96.10.in-addr.arpa", "web.default.svc.cluster.local [96.10.in-addr.arpa]"),
        ("7.0.96.10.IN-ADDR.arpa", "web.default.svc.cluster.local [96.10.in-addr.arpa]"),
        (
            "2.0.244.10.in-addr.arpa",
            "10-244-0-2.db.prod.svc.cluster.local db-0.db.default.svc.cluster.local [244.10.in-addr.arpa]",
        ),
        ("2.1.244.10.in-addr.arpa", "10-244-1-2.db.default.svc.cluster.local [244.10.in-addr.arpa]"),
        ("7.2.0.192.in-addr.arpa", "192-0-2-7.db.prod.svc.cluster.local [7.2.0.192.in-addr.arpa]"),
        (&nibbles("fd69::7"), &format!("web.default.svc.cluster.local [{v6_zone}]")),
        (&nibbles("fd69::8"), &format!("no such name [{v6_zone}]")),
        (&nibbles("fd6a::7"), "outside"),
        // Not ready, no endpoint of a headless service, nobody's.
        ("3.0.244.10.in-addr.arpa", "no such name [244.10.in-addr.arpa]"),
        ("8.0.96.10.in-addr.arpa", "no such name [96.10.in-addr.arpa]"),
        // The service range goes on to 10.111.
        ("8.0.111.10.in-addr.arpa", "no such name [111.10.in-addr.arpa]"),
        ("8.0.112.10.in-addr.arpa", "outside"),
        ("0.96.10.in-addr.arpa", "nothing [96.10.in-addr.arpa]"),
        ("96.10.in-addr.arpa", "nothing [96.10.in-addr.arpa]"),
        ("10.in-addr.arpa", "outside"),
        ("in-addr.arpa", "outside"),
        ("07.0.96.10.in-addr.arpa", "no such name [96.10.in-addr.arpa]"),
        ("x.0.96.10.in-addr.arpa", "no such name [96.10.in-addr.arpa]"),
        ("1.7.0.96.10.in-addr.arpa", "no such name [96.10.in-addr.arpa]"),
        ("256.96.10.in-addr.arpa", "no such name [96.10.in-addr.arpa]"),
        ("x.10.in-addr.arpa", "outside"),
        ("f.ip6.arpa", "outside"),
        ("arpa", "outside"),
    ] {
        assert_eq!(under(&zone, name), want, "{name}");
    }
}

#[test]
fn names_change_when_they_must_and_leave_nothing_behind() {
    let zone = empty();
    let web = || json!({"clusterIP": "10.96.0.7"});
    let headless = || json!({"clusterIP": "None"});
    let endpoint = |ip: &str| [(json!([]), json!([{"addresses": [ip]}]))];
    let at = ("default", "web");
    assert!(put(&zone, at, web(), &endpoint("10.244.0.2")));
    // Endpoints of a service with an address are no business of the zone.
    assert!(!put(&zone, at, web(), &endpoint("10.244.0.3")));
    assert!(put(&zone, at, headless(), &endpoint("10.244.0.2")));
    assert_eq!(under(&zone, "7.0.96.10.in-addr.arpa"), "no such name [96.10.in-addr.arpa]");
    assert!(put(&zone, at, headless(), &endpoint("10.244.0.3")));
    assert!(!put(&zone, at, headless(), &endpoint("10.244.0.3")));
    assert_eq!(under(&zone, "web.default.svc.cluster.local"), "10.244.0.3 [cluster.local]");
    assert_eq!(under(&zone, "2.0.244.10.in-addr.arpa"), "no such name [244.10.in-addr.arpa]");
    assert!(zone.put(&key("default", "web"), None));
    assert!(!zone.put(&key("default", "web"), None));
    assert_eq!(under(&zone, "default.svc.cluster.local"), "no such name [cluster.local]");
    let zone = zone.read();
    assert!(zone.services.is_empty() && zone.reverse.is_empty());
}

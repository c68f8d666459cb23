use std::net::Ipv4Addr;

use super::*;
use crate::plan::Pod;

fn flow(from: &str, to: &str, answered_by: &str) -> Flow {
    Flow { from: from.parse().unwrap(), to: to.parse().unwrap(), answered_by: answered_by.parse().unwrap() }
}

fn pods<const N: usize>(pods: [&str; N]) -> BTreeSet<Pod> {
    pods.map(|pod| pod.parse::<SocketAddr>().map(|pod| (pod.ip(), pod.port())).unwrap()).into()
}

const POD: &str = "10.244.1.9";
const OTHER_NODE: &str = "192.0.2.12";
const CLIENT: &str = "198.51.100.1";

#[test]
fn only_flows_of_services_that_lead_elsewhere_are_wrong() {
    let local = ["192.0.2.11", "127.0.0.1", "2001:db8::11"].map(|ip| ip.parse().unwrap()).into();
    let nodes = ["192.0.2.11", OTHER_NODE].map(|ip| ip.parse().unwrap()).into();
    let here = pods(["10.244.1.2:5353"]);
    let all = pods(["10.244.1.2:5353", "10.244.2.2:5353"]);
    let everybody =
        |pods: &BTreeSet<Pod>| Reach { inside: pods.clone(), outside: pods.clone(), sources: None };
    let desired = Desired {
        service_cidrs: &["10.96.0.0/16", "fd69::/112"].map(|range| range.parse().unwrap()),
        pod_cidrs: &["10.244.0.0/16", "fd6a::/48"].map(|range| range.parse().unwrap()),
        node_port_range: (30000, 32767),
        local: &local,
        nodes: &nodes,
        reach: |address| {
            Option::map(
                match address {
                    UdpAddress::Service(ip, 53) if ip == Ipv4Addr::new(10, 96, 0, 9) => {
                        Some(everybody(&here))
                    }
                    UdpAddress::Service(ip, 53) if ip.to_string() == "fd69::9" => {
                        Some(everybody(&pods(["[fd6a:0:0:1::2]:5353"])))
                    }
                    // An external address under policy Local, and a load balancer's for some.
                    UdpAddress::Service(ip, 53) if ip == Ipv4Addr::new(203, 0, 113, 1) => {
                        Some(Reach { inside: all.clone(), outside: here.clone(), sources: None })
                    }
                    UdpAddress::Service(ip, 53) if ip == Ipv4Addr::new(203, 0, 113, 2) => {
                        let sources = Some(["198.51.100.0/31".parse().unwrap()].into());
                        Some(Reach { sources, ..everybody(&here) })
                    }
                    UdpAddress::NodePort(30053) => Some(everybody(&here)),
                    // Ports of which none is served.
                    UdpAddress::NodePort(30055) => Some(Reach::default()),
                    _ => None,
                },
                Rc::new,
            )
        },
    };
    for right in [
        flow(POD, "10.96.0.9:53", "10.244.1.2:5353"),
        flow("fd6a:0:0:2::9", "[fd69::9]:53", "[fd6a:0:0:1::2]:5353"),
        flow(CLIENT, "192.0.2.11:30053", "10.244.1.2:5353"),
        // From inside every endpoint is right.
        flow(POD, "203.0.113.1:53", "10.244.2.2:5353"),
        flow(OTHER_NODE, "203.0.113.1:53", "10.244.2.2:5353"),
        flow("192.0.2.11", "203.0.113.1:53", "10.244.2.2:5353"),
        flow(CLIENT, "203.0.113.1:53", "10.244.1.2:5353"),
        flow(CLIENT, "203.0.113.2:53", "10.244.1.2:5353"),
        flow("192.0.2.11", "203.0.113.2:53", "10.244.1.2:5353"),
        // Others' traffic, whatever it looks like.
        flow(CLIENT, "198.51.100.7:30053", "198.51.100.7:30053"),
        flow("127.0.0.1", "127.0.0.1:30053", "127.0.0.1:30053"),
        flow(CLIENT, "192.0.2.11:30054", "192.0.2.11:30054"),
        flow(CLIENT, "192.0.2.11:8080", "172.17.0.2:80"),
        flow(CLIENT, "[2001:db8::11]:30054", "[2001:db8::11]:30054"),
    ] {
        assert!(!desired.is_wrong(&right), "{right:?}");
    }
    for wrong in [
        flow(POD, "10.96.0.9:53", "10.244.1.3:5353"),
        flow(POD, "10.96.0.9:53", "10.96.0.9:53"),
        flow(POD, "10.96.0.8:53", "10.244.1.2:5353"),
        flow(POD, "[fd69::9]:53", "[fd6a:0:0:1::3]:5353"),
        flow(POD, "[fd69::8]:53", "[fd6a:0:0:1::2]:5353"),
        flow(CLIENT, "192.0.2.11:30053", "192.0.2.11:30053"),
        flow(CLIENT, "[2001:db8::11]:30053", "[2001:db8::11]:30053"),
        flow(CLIENT, "192.0.2.11:30055", "10.244.1.2:5353"),
        // No service has the address any more.
        flow(CLIENT, "192.0.2.11:30054", "10.244.1.2:5353"),
        flow(CLIENT, "203.0.113.9:53", "10.244.1.2:5353"),
        // From outside the policy holds, and the ranges hold for all but the node.
        flow(CLIENT, "203.0.113.1:53", "10.244.2.2:5353"),
        flow("198.51.100.2", "203.0.113.2:53", "10.244.1.2:5353"),
        flow(POD, "203.0.113.2:53", "10.244.1.2:5353"),
    ] {
        assert!(desired.is_wrong(&wrong), "{wrong:?}");
    }
}

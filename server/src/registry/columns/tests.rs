use std::fmt::Write as _;

use minisvc_proto::resource::RESOURCES;

use super::*;

/// The table as kubectl's -o wide would print it, with ` | ` between the cells.
fn show(objects: &[Value]) -> String {
    let objects: Vec<Object> = objects.iter().map(|o| serde_json::from_value(o.clone()).unwrap()).collect();
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let table = table(objects[0].resource().unwrap(), &objects, Include::None, true, now);
    let mut out = table.column_definitions.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(" | ");
    for row in table.rows {
        assert_eq!(row.cells.len(), table.column_definitions.len(), "a cell for each column");
        let cells = row.cells.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned));
        write!(out, "\n{}", cells.collect::<Vec<_>>().join(" | ")).unwrap();
    }
    out
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:55:00Z"})
}

fn pod(name: &str, status: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta(name), "status": status,
        "spec": {"nodeName": "node-1", "containers": [{"name": "a"}, {"name": "b"}]}})
}

#[test]
fn pods_have_one_word_for_how_they_are() {
    let mut going = pod("going", json!({"phase": "Running", "podIP": "10.244.0.2"}));
    going["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
    let state = |s: Value| {
        json!({"phase": "Running", "containerStatuses": [{"restartCount": 2, "state": s,
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:00Z"}}}]})
    };
    insta::assert_snapshot!(show(&[
        pod("new", json!({})),
        pod("runs", json!({"phase": "Running", "podIPs": [{"ip": "10.244.0.9"}], "containerStatuses": [
            {"ready": true, "state": {"running": {}}}, {"ready": false, "state": {"running": {}}}]})),
        pod("loops", state(json!({"waiting": {"reason": "CrashLoopBackOff"}}))),
        pod("code", state(json!({"terminated": {"exitCode": 3}}))),
        pod("signal", state(json!({"terminated": {"exitCode": 137, "signal": 9}}))),
        pod("half", json!({"phase": "Running", "containerStatuses": [
            {"state": {"terminated": {"reason": "Completed"}}}, {"ready": true, "state": {"running": {}}}]})),
        going,
    ]), @"
    Name | Ready | Status | Restarts | Age | IP | Node | Nominated Node | Readiness Gates
    new | 0/2 | Pending | 0 | 5m | <none> | node-1 | <none> | <none>
    runs | 1/2 | Running | 0 | 5m | 10.244.0.9 | node-1 | <none> | <none>
    loops | 0/2 | CrashLoopBackOff | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    code | 0/2 | ExitCode:3 | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    signal | 0/2 | Signal:9 | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    half | 1/2 | NotReady | 0 | 5m | <none> | node-1 | <none> | <none>
    going | 0/2 | Terminating | 0 | 5m | 10.244.0.2 | node-1 | <none> | <none>
    ");
}

#[test]
fn init_containers_have_the_word_until_they_are_done() {
    let pod = |name: &str, initialized: bool, init: Value, main: Value| {
        let mut pod = pod(
            name,
            json!({"phase": if initialized { "Running" } else { "Pending" },
            "conditions": [{"type": "Initialized", "status": if initialized { "True" } else { "False" }}],
            "initContainerStatuses": init, "containerStatuses": main}),
        );
        pod["spec"]["initContainers"] = json!([{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]);
        pod
    };
    let last = json!({"terminated": {"finishedAt": "2026-01-01T00:59:00Z"}});
    let wait = |name: &str, reason: &str| json!({"name": name, "restartCount": 2, "lastState": last, "state": {"waiting": {"reason": reason}}});
    let main = json!([wait("a", "PodInitializing"), wait("b", "PodInitializing")]);
    let running = |name: &str, ready: bool| json!({"name": name, "ready": ready, "started": ready, "state": {"running": {}}});
    let ended = |ended: Value| json!({"name": "i", "state": {"terminated": ended}});
    let done = || ended(json!({"exitCode": 0, "reason": "Completed"}));
    let idle = || wait("s", "PodInitializing");
    insta::assert_snapshot!(show(&[
        pod("new", false, json!([wait("i", "PodInitializing"), idle()]), main.clone()),
        pod("first", false, json!([running("i", false), idle()]), main.clone()),
        pod("loops", false, json!([wait("i", "CrashLoopBackOff"), idle()]), main.clone()),
        pod("error", false, json!([ended(json!({"exitCode": 1, "reason": "Error"})), idle()]), main.clone()),
        pod("signal", false, json!([ended(json!({"exitCode": 137, "signal": 9})), idle()]), main.clone()),
        pod("second", false, json!([done(), running("s", false)]), main.clone()),
        pod("mains", true, json!([done(), running("s", true)]), main.clone()),
        pod("runs", true, json!([done(), running("s", true)]), json!([running("a", true), running("b", true)])),
        pod("sidecar", true, json!([done(), wait("s", "CrashLoopBackOff")]), json!([running("a", true), running("b", true)])),
    ]), @"
    Name | Ready | Status | Restarts | Age | IP | Node | Nominated Node | Readiness Gates
    new | 0/3 | Init:0/2 | 4 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    first | 0/3 | Init:0/2 | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    loops | 0/3 | Init:CrashLoopBackOff | 4 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    error | 0/3 | Init:Error | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    signal | 0/3 | Init:Signal:9 | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    second | 0/3 | Init:1/2 | 0 | 5m | <none> | node-1 | <none> | <none>
    mains | 1/3 | PodInitializing | 4 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    runs | 3/3 | Running | 0 | 5m | <none> | node-1 | <none> | <none>
    sidecar | 2/3 | Init:CrashLoopBackOff | 2 (60s ago) | 5m | <none> | node-1 | <none> | <none>
    ");
}

#[test]
fn services_and_slices_show_addresses_and_ports() {
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(name), "spec": spec});
    let balanced = |ingress: Value, external: Value| {
        let mut given = service(
            "given",
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.8", "externalIPs": external,
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}),
        );
        given["status"] = json!({"loadBalancer": {"ingress": ingress}});
        given
    };
    insta::assert_snapshot!(show(&[
        service("web", json!({"type": "NodePort", "clusterIP": "10.96.0.7", "selector": {"app": "web", "b": "c"},
            "ports": [{"port": 80, "nodePort": 31234, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]})),
        service("bare", json!({"clusterIP": "None", "externalIPs": ["1.2.3.4"]})),
        service("lb", json!({"type": "LoadBalancer", "clusterIP": "10.96.0.8", "ports": [{"port": 80, "protocol": "TCP"}]})),
        service("name", json!({"type": "ExternalName", "externalName": "example.com"})),
        service("both", json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"], "ports": [{"port": 80, "protocol": "SCTP"}]})),
        balanced(json!([{"ip": "192.0.2.2", "ipMode": "VIP"}, {"hostname": "lb.example.com"}, {"ip": "192.0.2.1"}]), json!(["198.51.100.1"])),
        balanced(json!([]), json!(["198.51.100.1"])),
    ]), @"
    Name | Type | Cluster-IP | External-IP | Port(s) | Age | Selector
    web | NodePort | 10.96.0.7 | <none> | 80:31234/TCP,53/UDP | 5m | app=web,b=c
    bare | ClusterIP | None | 1.2.3.4 | <none> | 5m | <none>
    lb | LoadBalancer | 10.96.0.8 | <pending> | 80/TCP | 5m | <none>
    name | ExternalName | <none> | example.com | <none> | 5m | <none>
    both | ClusterIP | 10.96.0.9 | <none> | 80/SCTP | 5m | <none>
    given | LoadBalancer | 10.96.0.8 | 192.0.2.1,192.0.2.2,lb.example.com,198.51.100.1 | 80:30080/TCP | 5m | <none>
    given | LoadBalancer | 10.96.0.8 | 198.51.100.1 | 80:30080/TCP | 5m | <none>
    ");
    let slice = |name: &str, endpoints: Value, ports: Value| {
        json!({"apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice", "metadata": meta(name), "addressType": "IPv4", "endpoints": endpoints, "ports": ports})
    };
    let endpoint = |ip: &str| json!({"addresses": [ip]});
    let four = json!([endpoint("1.1.1.1"), endpoint("2.2.2.2"), endpoint("3.3.3.3"), endpoint("4.4.4.4")]);
    insta::assert_snapshot!(show(&[
        slice("web-1", four, json!([{"port": 8080}, {"name": "named"}, {}])),
        slice("web-2", json!([]), json!(null)),
    ]), @"
    Name | AddressType | Ports | Endpoints | Age
    web-1 | IPv4 | 8080,named,* | 1.1.1.1,2.2.2.2,3.3.3.3 + 1 more... | 5m
    web-2 | IPv4 | <unset> | <unset> | 5m
    ");
    let endpoints = |name: &str, subsets: Value| json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": meta(name), "subsets": subsets});
    let ready = json!([{"ip": "1.1.1.1"}, {"ip": "fd00::1"}]);
    insta::assert_snapshot!(show(&[
        endpoints("web", json!([{"addresses": ready, "notReadyAddresses": [{"ip": "2.2.2.2"}], "ports": [{"port": 80}, {"port": 81}]}])),
        endpoints("bare", json!([{"addresses": ready}])),
        endpoints("none", json!(null)),
    ]), @"
    Name | Endpoints | Age
    web | 1.1.1.1:80,[fd00::1]:80,1.1.1.1:81 + 1 more... | 5m
    bare | 1.1.1.1,fd00::1 | 5m
    none | <none> | 5m
    ");
}

#[test]
fn what_belongs_to_the_cluster_and_what_runs_in_it() {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    insta::assert_snapshot!(show(&[
        json!({"apiVersion": "v1", "kind": "Node", "metadata": meta("node-1"), "status": {"conditions": ready,
            "addresses": [{"type": "Hostname", "address": "node-1"}, {"type": "InternalIP", "address": "172.31.0.11"}],
            "nodeInfo": {"kubeletVersion": "v0.1.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "minisvc://0.1.0"},
            "peers": {"direct": ["node-2", "node-3"], "vxlan": ["node-4"], "counts": {"vxlan": 900}},
            "externalSources": {"kept": ["node-2", "node-4"], "masqueraded": ["node-3"], "counts": {"kept": 901, "masqueraded": 1}}}}),
        json!({"apiVersion": "v1", "kind": "Node", "spec": {"unschedulable": true}, "metadata": {"name": "node-2",
            "labels": {"node-role.kubernetes.io/edge": ""}}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
    ]), @"
    Name | Status | Roles | Age | Version | Internal-IP | External-IP | OS-Image | Kernel-Version | Container-Runtime | Peers | External-Source
    node-1 | Ready | <none> | 5m | v0.1.0 | 172.31.0.11 | <none> | Debian | 6.1 | minisvc://0.1.0 | 2 direct, 900 vxlan | 901 kept, 1 masqueraded
    node-2 | NotReady,SchedulingDisabled | edge | <unknown> |  | <none> | <none> | <unknown> | <unknown> | <unknown> | <none> | <none>
    ");
    insta::assert_snapshot!(show(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta("a"), "status": {"phase": "Terminating"}}),
    ]), @"
    Name | Status | Age
    a | Terminating | 5m
    ");
    insta::assert_snapshot!(show(&[
        json!({"apiVersion": "v1", "kind": "Event", "metadata": meta("e1"), "type": "Warning", "reason": "FailedScheduling",
            "message": "no node\n", "involvedObject": {"kind": "Pod", "name": "web-1"}, "source": {"component": "scheduler"},
            "count": 3, "firstTimestamp": "2026-01-01T00:50:00Z", "lastTimestamp": "2026-01-01T00:59:50Z"}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": meta("e2"), "type": "Normal", "reason": "New",
            "eventTime": "2026-01-01T00:59:30.000000Z", "reportingComponent": "agent", "reportingInstance": "node-1"}),
    ]), @"
    Last Seen | Type | Reason | Object | Subobject | Source | Message | First Seen | Count | Name
    10s | Warning | FailedScheduling | pod/web-1 | <none> | scheduler | no node | 10m | 3 | e1
    30s | Normal | New |  | <none> | agent, node-1 |  | 30s | 1 | e2
    ");
    let spec = json!({"replicas": 4, "selector": {"matchLabels": {"app": "web"}},
        "template": {"spec": {"containers": [{"name": "web", "image": "host"}]}}});
    let status = json!({"replicas": 4, "readyReplicas": 2, "updatedReplicas": 4, "availableReplicas": 1});
    insta::assert_snapshot!(show(&[
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("web"), "spec": spec, "status": status}),
    ]), @"
    Name | Ready | Up-to-date | Available | Age | Containers | Images | Selector
    web | 2/4 | 4 | 1 | 5m | web | host | app=web
    ");
    insta::assert_snapshot!(show(&[
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta("web-1"), "spec": spec, "status": status}),
    ]), @"
    Name | Desired | Current | Ready | Age | Containers | Images | Selector
    web-1 | 4 | 4 | 2 | 5m | web | host | app=web
    ");
}

#[test]
fn tokens_and_credentials_say_how_long_they_are_good() {
    let token = |name: &str, spec: Value, uses: Value| json!({"apiVersion": "minisvc.io/v1", "kind": "JoinToken", "metadata": meta(name), "spec": spec, "status": {"uses": uses}});
    insta::assert_snapshot!(show(&[
        token("a", json!({"uses": 5, "expirationTimestamp": "2026-01-01T13:00:00Z", "description": "rack 3"}), json!(2)),
        token("b", json!({"description": "b"}), Value::Null),
        token("c", json!({"expirationTimestamp": "2026-01-01T01:00:00Z", "description": "c"}), json!(1)),
    ]), @"
    ID | Uses | Expires | Age | Description
    a | 2/5 | in 12h | 5m | rack 3
    b | 0 | never | 5m | b
    c | 1 | expired | 5m | c
    ");
    let credential = |name: &str, expires: &str| {
        json!({"apiVersion": "minisvc.io/v1", "kind": "NodeCredential", "metadata": meta(name),
            "spec": {"identity": "id", "joinedWith": "0123456789", "expires": expires}})
    };
    insta::assert_snapshot!(show(&[
        credential("node-1", "2026-01-31T01:00:00Z"),
        credential("node-2", "2026-01-01T00:00:00Z"),
    ]), @"
    Name | Identity | Joined-With | Expires | Age
    node-1 | id | 0123456789 | in 30d | 5m
    node-2 | id | 0123456789 | expired | 5m
    ");
}

#[test]
fn an_object_of_any_shape_has_a_row() {
    for resource in RESOURCES {
        for odd in [
            json!({}),
            json!({"metadata": 7, "spec": [], "status": "x"}),
            json!({"status": {"conditions": 1}}),
        ] {
            let object: Object = serde_json::from_value(odd).unwrap();
            let table = table(resource, [&object], Include::Metadata, true, Timestamp::UNIX_EPOCH);
            assert_eq!(table.rows[0].cells.len(), table.column_definitions.len());
            assert_eq!(table.rows[0].object.as_ref().unwrap().kind(), "PartialObjectMetadata");
        }
    }
}

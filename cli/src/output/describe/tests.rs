//! Pages as a user reads them.

use serde_json::json;

use super::*;

const NOW: &str = "2026-11-25T08:00:00Z";

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn page(value: Value, related: &Related) -> String {
    describe(&object(value), related, NOW.parse().unwrap())
}

fn event(reason: &str, message: &str, count: u64, last: &str) -> Object {
    object(
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal", "reason": reason,
        "message": message, "count": count, "firstTimestamp": "2026-11-25T07:00:00Z", "lastTimestamp": last,
        "source": {"component": "minisvc-agent"}}),
    )
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "hello-1", "namespace": "default", "labels": {"app": "hello", "tier": "web"},
            "annotations": {"note": "one\ntwo"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "hello", "uid": "u", "controller": true}]},
        "spec": {"nodeName": "node-2", "containers": [{"name": "hello", "command": ["minisvc", "echo"],
            "ports": [{"containerPort": 8080}], "env": [{"name": "A", "value": "b"}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1}}]},
        "status": {"phase": "Running", "hostIP": "192.168.77.12", "podIP": "10.244.1.4", "startTime": "2026-11-25T07:59:00Z",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "hello is not ready"}],
            "containerStatuses": [{"name": "hello", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40 s"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": "2026-11-25T07:59:00Z",
                    "finishedAt": "2026-11-25T07:59:01Z"}}}]}})
}

#[test]
fn a_pod() {
    let events = vec![
        event("Started", "Started container hello", 3, "2026-11-25T07:59:30Z"),
        event("Scheduled", "Assigned to node-2", 1, "2026-11-25T07:57:30Z"),
    ];
    insta::assert_snapshot!(page(pod(), &Related { events, ..Related::default() }));
}

#[test]
fn a_pod_with_init_containers_probes_and_hooks() {
    let mut pod = pod();
    pod["spec"]["initContainers"] = json!([
        {"name": "migrate", "command": ["migrate"]},
        {"name": "proxy", "command": ["proxy"], "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["test", "-e", "/up"]}},
            "livenessProbe": {"grpc": {"port": 9000, "service": "proxy"}}, "lifecycle": {"preStop": {"sleep": {"seconds": 5}},
            "postStart": {"httpGet": {"port": "web", "path": "/warm", "scheme": "HTTPS"}}}},
    ]);
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff",
        "message": "back-off 8s restarting failed container=proxy pod=p(u): next start at 2026-11-25T08:00:05Z; last end: exit code 1"}});
    pod["status"]["initContainerStatuses"] =
        json!([{"name": "proxy", "ready": false, "restartCount": 4, "state": waiting}]);
    let page = page(pod, &Related::default());
    let (_, section) = page.split_once("Init Containers:").unwrap();
    insta::assert_snapshot!(section.split_once("Containers:").unwrap().0, @"

    migrate:
      Image:  host
      Port:   <none>
      Command:
        migrate
      Environment:  <none>
    proxy:
      Image:  host
      Port:   <none>
      Command:
        proxy
      Restart Policy:  Always
      State:           Waiting
        Reason:        CrashLoopBackOff
        Message:       back-off 8s restarting failed container=proxy pod=p(u): next start at 2026-11-25T08:00:05Z; last end: exit code 1
        Next Start:    in 5s
      Ready:           False
      Restart Count:   4
      Liveness:        grpc <pod>:9000 proxy delay=0s timeout=1s period=10s #success=1 #failure=3
      Startup:         exec [test -e /up] delay=0s timeout=1s period=10s #success=1 #failure=3
      Post Start:      http-get https://:web/warm
      Pre Stop:        sleep 5s
      Environment:     <none>
    ");
}

#[test]
fn a_service() {
    let slice = object(
        json!({"metadata": {"name": "hello-x"}, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.244.1.4"], "conditions": {"ready": true}}, {"addresses": ["10.244.1.3"], "conditions": {"ready": true}},
            {"addresses": ["10.244.1.2"], "conditions": {"ready": true}}, {"addresses": ["10.244.1.1"], "conditions": {"ready": true}},
            {"addresses": ["10.244.1.9"], "conditions": {"ready": false}}]}),
    );
    let progress = ServiceProgress {
        pods: 5,
        late_pods: vec!["hello-9: not Ready".into()],
        late_nodes: vec!["node-3".into()],
        ready_nodes: 3,
        ..ServiceProgress::default()
    };
    let related = Related { slices: vec![slice], progress: Some(progress), ..Related::default() };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "selector": {"app": "hello", "tier": "web"}, "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "externalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP", "nodePort": 30080},
                {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"}]},
        "status": {"conditions": [{"type": "Programmed", "status": "False", "reason": "Late", "message": "1 of 3 nodes is late"}]}});
    insta::assert_snapshot!(page(service, &related));
}

#[test]
fn services_of_the_other_types() {
    let service = |spec: Value, status: Value| {
        let all = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "default"}, "spec": spec, "status": status});
        page(all, &Related::default())
    };
    insta::assert_snapshot!(service(
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "db"}, "sessionAffinity": "None", "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 30999, "trafficDistribution": "PreferSameNode",
            "publishNotReadyAddresses": true, "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            "ports": [{"name": "db", "port": 5432, "targetPort": 5432, "protocol": "TCP", "nodePort": 30080}]}),
        json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ipMode": "VIP"}, {"hostname": "lb.example"}]},
            "conditions": [{"type": "Programmed", "status": "True"},
                {"type": "PortsAllocated", "status": "True", "reason": "PortTakenOnNodes", "message": "node-2 has TCP 5432"}]}),
    ), @"
    Name:                         db
    Namespace:                    default
    Labels:                       <none>
    Annotations:                  <none>
    Selector:                     app=db
    Type:                         LoadBalancer
    IP Family Policy:             PreferDualStack
    IP Families:                  IPv4,IPv6
    IP:                           10.96.0.7
    IPs:                          10.96.0.7,fd00::7
    External IPs:                 192.0.2.1
    LoadBalancer Source Ranges:   10.0.0.0/8,fd00::/8
    LoadBalancer Ingress:         10.0.0.1 (VIP), lb.example
    Port:                         db  5432/TCP
    TargetPort:                   5432/TCP
    NodePort:                     db  30080/TCP
    Endpoints:                    <none>
    Session Affinity:             None
    External Traffic Policy:      Local
    Internal Traffic Policy:      Cluster
    HealthCheck NodePort:         30999
    Traffic Distribution:         PreferSameNode
    Publish Not Ready Addresses:  true
    Programmed:                   True
    Conditions:
      Type            Status  Reason            Message
      PortsAllocated  True    PortTakenOnNodes  node-2 has TCP 5432
    Events:  <none>
    ");
    insta::assert_snapshot!(service(
        json!({"type": "ExternalName", "externalName": "db.example.com", "sessionAffinity": "None"}),
        json!({"loadBalancer": {}}),
    ), @"
    Name:              db
    Namespace:         default
    Labels:            <none>
    Annotations:       <none>
    Selector:          <none>
    Type:              ExternalName
    IP Family Policy:  <none>
    IP Families:       <none>
    IP:                <none>
    IPs:               <none>
    External Name:     db.example.com
    Session Affinity:  None
    Events:            <none>
    ");
}

#[test]
fn endpoints_and_slices() {
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
            {"notReadyAddresses": [{"ip": "192.0.2.3"}]}]});
    insta::assert_snapshot!(page(endpoints, &Related::default()), @"
    Name:         db
    Namespace:    default
    Labels:       <none>
    Annotations:  <none>
    Subsets:
      Addresses:          192.0.2.1,192.0.2.2
      NotReadyAddresses:  <none>
      Ports:
        Name     Port  Protocol
        ----     ----  --------
        <unset>  5432  TCP
      Addresses:          <none>
      NotReadyAddresses:  192.0.2.3
    Events:               <none>
    ");
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "db-1", "namespace": "default"},
        "addressType": "IPv6", "ports": [{"name": "db", "port": 5432, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["fd00::1"], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "node-1",
            "hostname": "a", "zone": "z1", "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "node-1"}]}}]});
    insta::assert_snapshot!(page(slice, &Related::default()), @"
    Name:         db-1
    Namespace:    default
    Labels:       <none>
    Annotations:  <none>
    AddressType:  IPv6
    Ports:
      Name  Port  Protocol
      ----  ----  --------
      db    5432  TCP
    Endpoints:
      - Addresses:    fd00::1
        Ready:        true
        Serving:      true
        Terminating:  false
        NodeName:     node-1
        Hostname:     a
        Zone:         z1
        For Zones:    z1
        For Nodes:    node-1
    Events:           <none>
    ");
}

#[test]
fn a_node() {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "creationTimestamp": "2026-11-25T07:00:00Z"},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.11"}], "capacity": {"cpu": "2", "pods": "250"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "message": "The agent is ready",
                "lastTransitionTime": "2026-11-25T07:00:01Z"}],
            "nodeInfo": {"kernelVersion": "6.1", "machineID": ""},
            "peers": {"direct": ["node-2", "node-3"], "vxlan": ["node-4"], "counts": {"vxlan": 900}},
            "externalSources": {"kept": ["node-2"], "masqueraded": ["node-3"], "counts": {"kept": 900, "masqueraded": 1}}}});
    let mut ended = pod();
    ended["status"]["phase"] = "Failed".into();
    let related = Related { pods: vec![object(pod()), object(ended)], ..Related::default() };
    insta::assert_snapshot!(page(node, &related));
}

#[test]
fn a_deployment() {
    let template = json!({"metadata": {"labels": {"app": "hello"}}, "spec": {"containers": [{"name": "hello", "command": ["true"]}]}});
    let set = |name: &str, command: &str| {
        let mut template = template.clone();
        template["metadata"]["labels"]["pod-template-hash"] = "x".into();
        template["spec"]["containers"][0]["command"][0] = command.into();
        object(
            json!({"metadata": {"name": name}, "spec": {"replicas": 2, "template": template}, "status": {"replicas": 1}}),
        )
    };
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "hello"}}, "template": template,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}},
        "status": {"replicas": 3, "updatedReplicas": 1, "availableReplicas": 2, "unavailableReplicas": 1,
            "conditions": [{"type": "Available", "status": "True"}]}});
    let related = Related {
        replica_sets: vec![set("hello-old", "false"), set("hello-new", "true")],
        ..Related::default()
    };
    insta::assert_snapshot!(page(deployment, &related));
}

#[test]
fn what_a_container_gets_of_its_node() {
    let mut pod = pod();
    pod["spec"]["containers"] = json!([{"name": "web", "command": ["web"],
        "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "100m"}},
        "env": [{"name": "A", "value": "b"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}],
        "volumeMounts": [{"name": "d", "mountPath": "/data", "readOnly": true, "subPath": "x"}]}]);
    pod["spec"]["volumes"] = json!([{"name": "d", "hostPath": {"path": "/srv", "type": "Directory"}},
        {"name": "e", "emptyDir": {}}]);
    let page = page(pod, &Related::default());
    let after = |heading: &str| page.split_once(heading).unwrap().1.to_owned();
    insta::assert_snapshot!(after("    Limits:").split_once("Conditions:").unwrap().0, @r#"
      memory:  64Mi
    Requests:
      cpu:  100m
    Environment:
      A: b
      IP: (v1:status.podIP)
      MEM: (limits.memory)
    Mounts:
      /data from d (ro,path="x")
    "#);
    insta::assert_snapshot!(after("Volumes:").split_once("Events:").unwrap().0, @"
      d:
        Type:  hostPath
        path:  /srv
        type:  Directory
      e:
        Type:  emptyDir
    ");
}

#[test]
fn events_of_one_second_stand_in_the_order_of_their_revisions() {
    let at = |reason: &str, revision: &str| {
        let mut event = event(reason, "m", 1, "2026-11-25T07:00:01Z");
        event.metadata_mut().insert("resourceVersion".into(), revision.into());
        event
    };
    let events = vec![at("Third", "10"), at("First", "8"), at("Second", "9")];
    let page = page(pod(), &Related { events, ..Related::default() });
    let places = ["First", "Second", "Third"].map(|reason| page.find(reason).unwrap());
    assert!(places.is_sorted(), "{page}");
}

#[test]
fn a_page_cannot_speak_to_the_terminal() {
    let text = page(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a\u{1b}[2J", "labels": {"x": "y\u{7}"}}}),
        &Related::default(),
    );
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
}

#[test]
fn ages_are_shortened_as_kubectl_does() {
    for (seconds, text) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (3600, "60m"),
        (3 * 3600 + 60, "3h1m"),
        (9 * 3600 + 60, "9h"),
        (50 * 3600, "2d2h"),
        (100 * 86400, "100d"),
        (3 * 365 * 86400, "3y"),
        (-5, "0s"),
    ] {
        assert_eq!(duration(seconds), text, "{seconds}");
    }
}

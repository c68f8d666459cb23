//! Services: what is refused and changes nothing, and what changes of type give back.

use minisvc_proto::Object;
use minisvc_server::run::Server;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Api, Plain, SERVICES, config};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// A cluster of two families, with node ports enough for six services.
async fn start() -> Api {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir);
    config.service_cidr = "10.96.0.0/16,fd69:6d69:6e69:ffff::/112".parse().unwrap();
    config.pod_cidr = "10.244.0.0/16,fd69:6d69:6e6a::/48".parse().unwrap();
    config.node_port_range = (30000, 30005);
    let api = Api::serve(dir, Server::open(config).await.unwrap());
    api.create("/api/v1/namespaces", json!({"metadata": {"name": "test"}})).await;
    api
}

fn named(name: &str, spec: Value) -> String {
    json!({"metadata": {"name": name}, "spec": spec}).to_string()
}

async fn post(plain: &Plain, name: &str, spec: Value) -> (u16, Value) {
    plain.answer(Method::POST, SERVICES, JSON, named(name, spec)).await
}

async fn put(plain: &Plain, name: &str, spec: Value) -> (u16, Value) {
    plain.answer(Method::PUT, &format!("{SERVICES}/{name}"), JSON, named(name, spec)).await
}

async fn patch(plain: &Plain, path: &str, change: Value) -> (u16, Value) {
    plain.answer(Method::PATCH, &format!("{SERVICES}/{path}"), MERGE, change.to_string()).await
}

async fn get(plain: &Plain, name: &str) -> Object {
    let (code, service) = plain.get(&format!("{SERVICES}/{name}")).await;
    assert_eq!(code, 200, "{service}");
    serde_json::from_value(service).unwrap()
}

async fn delete(plain: &Plain, name: &str) {
    let (code, answer) = plain.answer(Method::DELETE, &format!("{SERVICES}/{name}"), "", "").await;
    assert_eq!(code, 200, "{answer}");
}

/// Reason, field and message of the only cause.
fn cause(status: &Value) -> (String, String, String) {
    let causes = status["details"]["causes"].as_array().unwrap_or_else(|| panic!("{status}"));
    assert_eq!(causes.len(), 1, "{status}");
    let text = |field: &str| causes[0][field].as_str().unwrap().to_owned();
    (text("reason"), text("field"), text("message"))
}

#[tokio::test]
async fn a_rule_that_is_broken_is_named_and_nothing_changes() {
    let api = start().await;
    let plain = api.plain(true);
    let good = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
        "loadBalancerClass": "example.com/vip", "clusterIP": "10.96.0.20", "ports": [{"port": 80, "nodePort": 30000}]});
    assert_eq!(post(&plain, "taken", good.clone()).await.0, 201);
    assert_eq!(post(&plain, "web", json!({"clusterIP": "10.96.0.21", "ports": [{"port": 80}]})).await.0, 201);

    let invalid = "FieldValueInvalid";
    let cases = [
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}]}),
            (invalid, "spec.ports[0].nodePort", "Invalid value: 30000: provided port is already allocated"),
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}),
            (invalid, "spec.ports[0].nodePort", "Invalid value: 30001: provided port is already allocated"),
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 29999}]}),
            (
                invalid,
                "spec.ports[0].nodePort",
                "Invalid value: 29999: provided port is not in the valid range. The range of valid ports is 30000-30005",
            ),
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000, "ports": [{"port": 80}]}),
            (invalid, "spec.healthCheckNodePort", "Invalid value: 30000: provided port is already allocated"),
        ),
        (json!({"ports": []}), ("FieldValueRequired", "spec.ports", "Required value")),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
            (
                invalid,
                "spec.clusterIPs[0]",
                "Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ),
        ),
        (
            json!({"externalIPs": ["169.254.169.254"], "ports": [{"port": 80}]}),
            (
                invalid,
                "spec.externalIPs[0]",
                "Invalid value: \"169.254.169.254\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            ),
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["everywhere"], "ports": [{"port": 80}]}),
            (
                invalid,
                "spec.loadBalancerSourceRanges[0]",
                "Invalid value: \"everywhere\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100_000}}, "ports": [{"port": 80}]}),
            (
                invalid,
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                "Invalid value: 100000: must be greater than 0 and less than 86400",
            ),
        ),
        (
            json!({"trafficDistribution": "Near", "ports": [{"port": 80}]}),
            (
                "FieldValueNotSupported",
                "spec.trafficDistribution",
                "Unsupported value: \"Near\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
            ),
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]}),
            (
                invalid,
                "spec.ipFamilyPolicy",
                "Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
        ),
        (
            json!({"type": "ExternalName", "externalName": "db.example.com", "clusterIP": "10.96.0.22"}),
            ("FieldValueForbidden", "spec.clusterIPs", "Forbidden: may not be set for ExternalName services"),
        ),
    ];
    let before = [get(&plain, "web").await, get(&plain, "taken").await];
    for (spec, (reason, field, message)) in cases {
        let expected = (reason.to_owned(), field.to_owned(), message.to_owned());
        let (code, status) = post(&plain, "new", spec.clone()).await;
        assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{spec}: {status}");
        assert_eq!(status["details"]["kind"], "Service");
        assert_eq!(status["message"], format!("Service \"new\" is invalid: {field}: {message}"));
        assert_eq!(cause(&status), expected, "a new service: {spec}");
        // A service that has an address keeps it, and may not become headless.
        let (code, status) = put(&plain, "web", spec.clone()).await;
        assert_eq!(code, 422, "{spec}: {status}");
        let causes = status["details"]["causes"].as_array().unwrap();
        assert!(causes.iter().any(|c| c["field"] == field && c["message"] == message), "{spec}: {status}");
        assert_eq!([get(&plain, "web").await, get(&plain, "taken").await], before, "{spec}");
    }
    // What was asked for in vain is as free as before, and what is held is held.
    let free = json!({"type": "NodePort", "clusterIP": "10.96.0.22", "ports": [
        {"port": 80, "name": "a", "nodePort": 30002}, {"port": 81, "name": "b", "nodePort": 30003},
        {"port": 82, "name": "c", "nodePort": 30004}, {"port": 83, "name": "d", "nodePort": 30005}]});
    assert_eq!(post(&plain, "rest", free).await.0, 201);
    let (_, status) =
        post(&plain, "again", json!({"clusterIP": "10.96.0.21", "ports": [{"port": 80}]})).await;
    assert_eq!(
        cause(&status).2,
        "Invalid value: [\"10.96.0.21\"]: failed to allocate IP 10.96.0.21: provided IP is already allocated"
    );
    let (code, status) = post(&plain, "more", json!({"type": "NodePort", "ports": [{"port": 80}]})).await;
    assert_eq!((code, &status["reason"]), (500, &json!("InternalError")));
    assert_eq!(status["message"], "Internal error occurred: failed to allocate a nodePort: range is full");

    for (change, field, message) in [
        (json!({"healthCheckNodePort": 30099}), "spec.healthCheckNodePort", "Forbidden: field is immutable"),
        (
            json!({"loadBalancerClass": "example.com/other"}),
            "spec.loadBalancerClass",
            "Invalid value: \"example.com/other\": may not change once set",
        ),
        (
            json!({"clusterIP": "10.96.0.23"}),
            "spec.clusterIPs[0]",
            "Invalid value: [\"10.96.0.23\"]: may not change once set",
        ),
    ] {
        let (code, status) = patch(&plain, "taken", json!({"spec": change})).await;
        assert_eq!(code, 422);
        assert_eq!((cause(&status).1.as_str(), cause(&status).2.as_str()), (field, message));
        assert_eq!(get(&plain, "taken").await, before[1]);
    }
    let (code, same) = put(&plain, "taken", good).await;
    assert_eq!(
        (code, &same["metadata"]["resourceVersion"]),
        (200, &json!(before[1].revision().unwrap().to_string()))
    );
    api.end().await;
}

#[tokio::test]
async fn a_type_changes_in_all_directions_and_what_it_gives_back_is_free_at_once() {
    let api = start().await;
    let plain = api.plain(true);
    let ports = json!([{"port": 80, "nodePort": 30000}]);
    let (code, made) =
        post(&plain, "web", json!({"type": "NodePort", "ports": ports, "selector": {"app": "web"}})).await;
    assert_eq!(code, 201, "{made}");
    let ip = made["spec"]["clusterIP"].clone();

    // A dry run gives nothing back.
    let inner = json!({"spec": {"type": "ClusterIP"}});
    let (code, tried) = patch(&plain, "web?dryRun=All", inner.clone()).await;
    assert_eq!((code, &tried["spec"]["ports"][0]["nodePort"]), (200, &Value::Null));
    let other = json!({"type": "NodePort", "ports": ports});
    assert_eq!(post(&plain, "other", other.clone()).await.0, 422);

    let (code, now) = patch(&plain, "web", inner).await;
    assert_eq!(
        (code, &now["spec"]["clusterIP"], &now["spec"]["externalTrafficPolicy"]),
        (200, &ip, &Value::Null)
    );
    assert_eq!(post(&plain, "other", other).await.0, 201, "the node port is free");

    let local = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}});
    let (_, now) = patch(&plain, "web", local).await;
    let health = now["spec"]["healthCheckNodePort"].clone();
    assert!(now["spec"]["ports"][0]["nodePort"].is_number() && health.is_number(), "{now}");
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    let (code, now) = patch(&plain, "web/status", status.clone()).await;
    assert_eq!((code, &now["status"]["loadBalancer"]["ingress"][0]["ipMode"]), (200, &json!("VIP")));
    let wrong = json!({"status": {"loadBalancer": {"ingress": [{"ip": "nowhere"}]}}});
    let (code, refused) = patch(&plain, "web/status", wrong).await;
    assert_eq!((code, cause(&refused).1.as_str()), (422, "status.loadBalancer.ingress[0].ip"));

    let name = json!({"spec": {"type": "ExternalName", "externalName": "db.example.com"}});
    let (code, now) = patch(&plain, "web", name).await;
    assert_eq!(code, 200, "{now}");
    for field in [
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "healthCheckNodePort",
        "externalTrafficPolicy",
        "allocateLoadBalancerNodePorts",
    ] {
        assert_eq!(now["spec"][field], Value::Null, "{field}");
    }
    assert_eq!(
        (&now["status"]["loadBalancer"], &now["spec"]["selector"]),
        (&Value::Null, &json!({"app": "web"}))
    );
    let taking = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": ip, "healthCheckNodePort": health, "ports": [{"port": 1}]});
    let (code, answer) = post(&plain, "heir", taking).await;
    assert_eq!(code, 201, "address and health check's port are free: {answer}");
    let (code, refused) = patch(&plain, "web/status", status).await;
    assert_eq!((code, cause(&refused).1.as_str()), (422, "status.loadBalancer.ingress"));

    let headless = json!({"spec": {"type": "ClusterIP", "clusterIP": "None"}});
    let (code, now) = patch(&plain, "web", headless).await;
    assert_eq!((code, &now["spec"]["clusterIPs"]), (200, &json!(["None"])), "{now}");
    let (code, _) = patch(&plain, "web", json!({"spec": {"type": "NodePort"}})).await;
    assert_eq!(code, 422, "a headless service has no node port");
    // Deleted and made again with the values that it had.
    let heir = get(&plain, "heir").await;
    delete(&plain, "heir").await;
    let again = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": heir.str_at("/spec/clusterIP"),
        "healthCheckNodePort": heir.pointer("/spec/healthCheckNodePort"),
        "ports": [{"port": 1, "nodePort": heir.pointer("/spec/ports/0/nodePort")}]});
    assert_eq!(post(&plain, "heir", again).await.0, 201);
    api.end().await;
}

#[tokio::test]
async fn a_service_gains_and_loses_its_second_family() {
    let api = start().await;
    let plain = api.plain(true);
    let six = "fd69:6d69:6e69:ffff::20";
    let (_, made) = post(&plain, "web", json!({"ports": [{"port": 80}]})).await;
    assert_eq!(
        (&made["spec"]["ipFamilyPolicy"], &made["spec"]["ipFamilies"]),
        (&json!("SingleStack"), &json!(["IPv4"]))
    );
    let ip = made["spec"]["clusterIP"].clone();
    let two = json!({"spec": {"ipFamilyPolicy": "RequireDualStack", "clusterIPs": [ip, six]}});
    let (code, now) = patch(&plain, "web", two).await;
    assert_eq!((code, &now["spec"]["ipFamilies"]), (200, &json!(["IPv4", "IPv6"])), "{now}");
    let (code, taken) =
        post(&plain, "other", json!({"clusterIP": "FD69:6D69:6E69:FFFF:0::20", "ports": [{"port": 80}]}))
            .await;
    assert_eq!(code, 422);
    let held =
        format!("Invalid value: [\"{six}\"]: failed to allocate IP {six}: provided IP is already allocated");
    assert_eq!(cause(&taken).2, held, "however it is written");
    let (code, one) = patch(&plain, "web", json!({"spec": {"ipFamilyPolicy": "SingleStack"}})).await;
    assert_eq!((code, &one["spec"]["clusterIPs"]), (200, &json!([ip])));
    assert_eq!(post(&plain, "other", json!({"clusterIP": six, "ports": [{"port": 80}]})).await.0, 201);
    // The API server's own service has the first family alone, whatever the cluster has.
    let (_, own) = plain.get("/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(
        (&own["spec"]["clusterIPs"], &own["spec"]["ipFamilyPolicy"]),
        (&json!(["10.96.0.1"]), &json!("SingleStack"))
    );
    api.end().await;
}

#[tokio::test]
async fn sctp_is_a_protocol_like_the_others() {
    let api = start().await;
    let plain = api.plain(true);
    let ports = json!([{"port": 36412, "protocol": "SCTP", "name": "a"}, {"port": 36412, "name": "b"},
        {"port": 36413, "protocol": "SCTP", "name": "c", "targetPort": "sig"}]);
    let (code, made) = post(&plain, "sig", json!({"type": "NodePort", "ports": ports})).await;
    assert_eq!(code, 201, "{made}");
    let [a, b, c] = [0, 1, 2].map(|n| &made["spec"]["ports"][n]);
    assert_eq!((&a["protocol"], &a["targetPort"]), (&json!("SCTP"), &json!(36412)));
    assert!(a["nodePort"] == b["nodePort"] && a["nodePort"] != c["nodePort"], "{made}");
    assert_eq!(get(&plain, "sig").await.pointer("/spec/ports"), Some(&made["spec"]["ports"]));

    // Numbers are of services, not of protocols: TCP of another service is refused, too.
    let (code, refused) =
        post(&plain, "other", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": c["nodePort"]}]}))
            .await;
    assert_eq!((code, cause(&refused).1.as_str()), (422, "spec.ports[0].nodePort"));
    let twice = json!({"ports": [{"port": 1, "protocol": "SCTP", "name": "a"}, {"port": 1, "protocol": "SCTP", "name": "b"}]});
    let (code, refused) = post(&plain, "twice", twice).await;
    assert_eq!(
        (code, cause(&refused).2.as_str()),
        (422, "Duplicate value: {\"port\":1,\"protocol\":\"SCTP\"}")
    );
    let slice = json!({"metadata": {"name": "sig-1", "labels": {"kubernetes.io/service-name": "sig"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.7"]}], "ports": [{"name": "a", "port": 36412, "protocol": "SCTP"}]});
    let path = "/apis/discovery.k8s.io/v1/namespaces/test/endpointslices";
    let (code, made) = plain.answer(Method::POST, path, JSON, slice.to_string()).await;
    assert_eq!((code, &made["ports"][0]["protocol"]), (201, &json!("SCTP")), "{made}");
    api.end().await;
}

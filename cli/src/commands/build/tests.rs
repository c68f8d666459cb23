//! Against what `kubectl … --dry-run=client -o json` prints, without its empty fields.

use clap::Parser;

use super::*;
use crate::args::{Args, ClusterCommand, Command, CreateWhat};

fn built(line: &str) -> Value {
    let words = line.split(' ');
    let Command::Cluster(command) = Args::try_parse_from(words).unwrap().command else { unreachable!() };
    let object = match command {
        ClusterCommand::Run(args) => pod(&args, None),
        ClusterCommand::Create(args) => match args.what.unwrap() {
            CreateWhat::Deployment(args) => deployment(&args, None),
            CreateWhat::Namespace(args) => namespace(&args.name),
            CreateWhat::Service { kind } => service(&kind, None).unwrap(),
        },
        other => panic!("{other:?}"),
    };
    Value::Object(object.0)
}

fn kubectl(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

#[test]
fn services_are_those_of_kubectl() {
    assert_eq!(
        built("minisvc create service nodeport hello --tcp=80:8080"),
        kubectl(
            r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "hello", "labels": {"app": "hello"}},
            "spec": {"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": {"app": "hello"}, "type": "NodePort"}}"#
        )
    );
    assert_eq!(
        built("minisvc create service clusterip hello --tcp=80:http --tcp=443 --clusterip=10.96.0.9"),
        kubectl(
            r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "hello", "labels": {"app": "hello"}},
            "spec": {"ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http"},
            {"name": "443", "protocol": "TCP", "port": 443, "targetPort": 443}],
            "selector": {"app": "hello"}, "clusterIP": "10.96.0.9", "type": "ClusterIP"}}"#
        )
    );
}

#[test]
fn the_other_types_are_those_of_kubectl() {
    assert_eq!(
        built("minisvc create service loadbalancer hello --tcp=80:8080"),
        kubectl(
            r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "hello", "labels": {"app": "hello"}},
            "spec": {"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": {"app": "hello"}, "type": "LoadBalancer"}}"#
        )
    );
    assert_eq!(
        built("minisvc create service externalname db --external-name db.example.com --tcp=5432"),
        kubectl(
            r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "db", "labels": {"app": "db"}},
            "spec": {"ports": [{"name": "5432", "protocol": "TCP", "port": 5432, "targetPort": 5432}],
            "selector": {"app": "db"}, "type": "ExternalName", "externalName": "db.example.com"}}"#
        )
    );
    assert_eq!(
        built("minisvc create service clusterip bare --clusterip=None"),
        kubectl(
            r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "bare", "labels": {"app": "bare"}},
            "spec": {"selector": {"app": "bare"}, "clusterIP": "None", "type": "ClusterIP"}}"#
        )
    );
}

#[test]
fn what_is_said_of_the_traffic_is_in_the_spec() {
    let spec = |flags: &str| built(&format!("minisvc create service {flags}"))["spec"].clone();
    let db = spec("clusterip db --tcp=5432 --no-selector --external-ip=192.0.2.1,2001:db8::1");
    assert_eq!((db.get("selector"), &db["externalIPs"]), (None, &json!(["192.0.2.1", "2001:db8::1"])));
    let near = spec(
        "clusterip a --tcp=80 --selector=tier=web --traffic-distribution=PreferSameNode --publish-not-ready-addresses --internal-traffic-policy=Local",
    );
    assert_eq!(near["selector"], json!({"tier": "web"}));
    assert_eq!(
        (&near["trafficDistribution"], &near["publishNotReadyAddresses"], &near["internalTrafficPolicy"]),
        (&json!("PreferSameNode"), &json!(true), &json!("Local"))
    );
    let sticky = spec("nodeport a --tcp=80 --session-affinity-timeout=10m");
    assert_eq!(sticky["sessionAffinity"], "ClientIP");
    assert_eq!(sticky["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 600}}));
    let both = spec("clusterip a --sctp=5060 --ip-families=IPv4,IPv6");
    assert_eq!(
        (&both["ipFamilyPolicy"], &both["ipFamilies"]),
        (&json!("RequireDualStack"), &json!(["IPv4", "IPv6"]))
    );
    assert_eq!(both["ports"][0]["name"], "5060-sctp");
    let balanced = spec(
        "lb a --tcp=80 --no-node-ports --load-balancer-source-range=10.0.0.0/8 --load-balancer-class=x.example/y --external-traffic-policy=Local",
    );
    assert_eq!(balanced["allocateLoadBalancerNodePorts"], false);
    assert_eq!(balanced["loadBalancerSourceRanges"], json!(["10.0.0.0/8"]));
    assert_eq!(
        (&balanced["loadBalancerClass"], &balanced["externalTrafficPolicy"]),
        (&json!("x.example/y"), &json!("Local"))
    );
    let words = "minisvc create service clusterip a --clusterip=10.96.0.9";
    let Command::Cluster(ClusterCommand::Create(args)) =
        Args::try_parse_from(words.split(' ')).unwrap().command
    else {
        unreachable!()
    };
    let Some(CreateWhat::Service { kind }) = args.what else { unreachable!() };
    assert!(service(&kind, None).unwrap_err().contains("only a service with --clusterip=None"));
}

/// What kubectl's verb does not have.
#[test]
fn tcp_and_udp_of_one_number_share_the_node_port() {
    let service = built("minisvc create service nodeport dns --tcp=53,80 --udp=53:5353 --node-port=30053");
    assert_eq!(
        service["spec"]["ports"],
        json!([
            {"name": "53", "protocol": "TCP", "port": 53, "targetPort": 53, "nodePort": 30053},
            {"name": "80", "protocol": "TCP", "port": 80, "targetPort": 80},
            {"name": "53-5353-udp", "protocol": "UDP", "port": 53, "targetPort": 5353, "nodePort": 30053},
        ])
    );
}

#[test]
fn a_deployment_is_that_of_kubectl_but_for_its_image() {
    assert_eq!(
        built("minisvc create deployment hello --image=host --replicas=4 --port=8080 -- minisvc echo"),
        kubectl(
            r#"{"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "hello", "labels": {"app": "hello"}},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "hello"}},
            "template": {"metadata": {"labels": {"app": "hello"}},
            "spec": {"containers": [{"name": "hello", "image": "host", "command": ["minisvc", "echo"],
            "ports": [{"containerPort": 8080}]}]}}}}"#
        )
    );
    let plain = built("minisvc create deployment hello -- true");
    assert_eq!(
        plain["spec"]["template"]["spec"]["containers"],
        json!([{"name": "hello", "command": ["true"]}])
    );
    assert_eq!(plain["spec"]["replicas"], 1);
}

#[test]
fn pods_and_namespaces_are_those_of_kubectl() {
    assert_eq!(
        built("minisvc run job --image=host --port=80 --env=A=b --env=C=d=e --restart=Never -- sleep 3"),
        kubectl(
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"run": "job"}, "name": "job"},
            "spec": {"containers": [{"command": ["sleep", "3"], "env": [{"name": "A", "value": "b"}, {"name": "C", "value": "d=e"}],
            "image": "host", "name": "job", "ports": [{"containerPort": 80}]}], "restartPolicy": "Never"}}"#
        )
    );
    let labels = built("minisvc run job --labels=a=b,c=d -- true")["metadata"]["labels"].clone();
    assert_eq!(labels, json!({"a": "b", "c": "d"}));
    assert_eq!(
        built("minisvc create namespace blue"),
        kubectl(r#"{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "blue"}}"#)
    );
}

fn expose(of: &Value, flags: &str) -> Result<Value, String> {
    let line = format!("minisvc expose x y{flags}");
    let Command::Cluster(ClusterCommand::Expose(args)) =
        Args::try_parse_from(line.split(' ')).unwrap().command
    else {
        unreachable!()
    };
    let of: Object = serde_json::from_value(of.clone()).unwrap();
    exposed(&of, &args, None).map(|o| Value::Object(o.0))
}

#[test]
fn expose_copies_what_the_object_says() {
    let deployment = built("minisvc create deployment hello --port=8080 -- true");
    assert_eq!(
        expose(&deployment, " --type=NodePort --port=80 --target-port=8080").unwrap(),
        kubectl(
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"labels": {"app": "hello"}, "name": "hello"},
            "spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}], "selector": {"app": "hello"}, "type": "NodePort"}}"#
        )
    );
    let named = expose(&deployment, " --name=other --session-affinity=ClientIP --protocol=udp").unwrap();
    assert_eq!(named["metadata"]["name"], "other");
    assert_eq!(named["spec"]["ports"], json!([{"port": 8080, "protocol": "UDP", "targetPort": 8080}]));
    assert_eq!(named["spec"]["sessionAffinity"], "ClientIP");

    let balanced =
        expose(&deployment, " --type=LoadBalancer --external-ip=192.0.2.1 --cluster-ip=10.96.0.9").unwrap();
    assert_eq!(
        (&balanced["spec"]["type"], &balanced["spec"]["externalIPs"], &balanced["spec"]["clusterIP"]),
        (&json!("LoadBalancer"), &json!(["192.0.2.1"]), &json!("10.96.0.9"))
    );
    let service = built("minisvc create service clusterip hello --tcp=80:8080 --udp=53");
    let ports = expose(&service, "").unwrap()["spec"]["ports"].clone();
    assert_eq!(
        ports,
        json!([{"name": "port-1", "port": 80, "protocol": "TCP", "targetPort": 80},
            {"name": "port-2", "port": 53, "protocol": "UDP", "targetPort": 53}])
    );
    assert_eq!(expose(&service, " --port=53").unwrap()["spec"]["ports"][0]["protocol"], "UDP");

    let mut pod = built("minisvc run job -- true");
    assert!(expose(&pod, "").unwrap_err().starts_with("--port: Pod \"job\" names no ports"));
    assert_eq!(expose(&pod, " --port=1").unwrap()["spec"]["selector"], json!({"run": "job"}));
    pod["metadata"]["labels"] = json!({});
    assert!(expose(&pod, " --port=1").unwrap_err().contains("--selector"));
    let mut set = deployment;
    set["spec"]["selector"]["matchExpressions"] = json!([{"key": "a", "operator": "Exists"}]);
    assert!(expose(&set, " --port=1").unwrap_err().contains("matchExpressions"));
}

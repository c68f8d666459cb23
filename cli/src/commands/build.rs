//! Objects from flags, as kubectl builds them. Values in, values out.

mod service;

use minisvc_proto::{
    Object,
    resource::{DEPLOYMENTS, NAMESPACES, PODS, SERVICES},
};
use serde_json::{Map, Value, json};

pub use service::service;

use crate::args::{
    CreateDeployment, Expose, Run,
    values::{ClusterIp, TargetPort},
};

pub fn namespace(name: &str) -> Object {
    Object::new(&NAMESPACES, None, name)
}

/// Labelled and selected by app=NAME. The container is called like the deployment: there is no image to name it after.
pub fn deployment(args: &CreateDeployment, namespace: Option<&str>) -> Object {
    let mut object = Object::new(&DEPLOYMENTS, namespace, &args.name);
    let labels = json!({"app": args.name});
    let container = container(&args.name, args.image.as_deref(), &args.command, args.port, &[]);
    object.metadata_mut().insert("labels".into(), labels.clone());
    let spec = object.spec_mut();
    spec.insert("replicas".into(), args.replicas.into());
    spec.insert("selector".into(), json!({"matchLabels": labels}));
    spec.insert(
        "template".into(),
        json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}}),
    );
    object
}

/// Labelled by run=NAME, unless labels are given.
pub fn pod(args: &Run, namespace: Option<&str>) -> Object {
    let mut object = Object::new(&PODS, namespace, &args.name);
    let labels = if args.labels.is_empty() { json!({"run": args.name}) } else { map(&args.labels) };
    object.metadata_mut().insert("labels".into(), labels);
    let container = container(&args.name, args.image.as_deref(), &args.command, args.port, &args.env);
    let spec = object.spec_mut();
    spec.insert("containers".into(), json!([container]));
    spec.insert("restartPolicy".into(), args.restart.clone().into());
    object
}

fn container(
    name: &str,
    image: Option<&str>,
    command: &[String],
    port: Option<u16>,
    env: &[(String, String)],
) -> Value {
    let mut container = json!({"name": name, "command": command});
    if let Some(image) = image {
        container["image"] = image.into();
    }
    if let Some(port) = port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if !env.is_empty() {
        container["env"] = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    container
}

/// A service for an object: its selector, its labels, and its ports where none is given. Follows kubectl's `expose`.
pub fn exposed(of: &Object, args: &Expose, namespace: Option<&str>) -> Result<Object, String> {
    let name = args.name.as_deref().unwrap_or(of.name());
    let mut object = Object::new(&SERVICES, namespace, name);
    let selector = if args.selector.is_empty() { selector(of)? } else { map(&args.selector) };
    let labels = if args.labels.is_empty() {
        of.pointer("/metadata/labels").cloned()
    } else {
        Some(map(&args.labels))
    };
    if let Some(labels) = labels.filter(|l| l.as_object().is_some_and(|m| !m.is_empty())) {
        object.metadata_mut().insert("labels".into(), labels);
    }
    let known = ports(of);
    let wanted: Vec<(u16, String)> = match args.port {
        Some(port) => {
            let protocol = known.iter().find(|(p, _)| *p == port).map(|(_, protocol)| protocol.clone());
            vec![(port, protocol.unwrap_or_else(|| "TCP".into()))]
        }
        None => known,
    };
    if wanted.is_empty() && args.cluster_ip != Some(ClusterIp::None) {
        return Err(format!("--port: {} \"{}\" names no ports of its own: give one", of.kind(), of.name()));
    }
    let several = wanted.len() > 1;
    let entries: Vec<Value> = wanted
        .iter()
        .enumerate()
        .map(|(i, (port, protocol))| {
            let target = args.target_port.as_ref().map_or((*port).into(), TargetPort::to_value);
            let protocol = args.protocol.as_ref().unwrap_or(protocol).to_uppercase();
            let mut value = json!({"port": port, "protocol": protocol, "targetPort": target});
            if several {
                value["name"] = format!("port-{}", i + 1).into();
            }
            value
        })
        .collect();
    let spec = object.spec_mut();
    spec.insert("ports".into(), entries.into());
    spec.insert("selector".into(), selector);
    spec.insert("type".into(), args.kind_of_service.clone().into());
    if let Some(ip) = &args.cluster_ip {
        spec.insert("clusterIP".into(), ip.to_string().into());
    }
    service::traffic(spec, &args.traffic);
    Ok(object)
}

/// The labels by which a service finds the object's pods.
fn selector(of: &Object) -> Result<Value, String> {
    let shown = || format!("{} \"{}\"", of.kind(), of.name());
    let found = match of.kind() {
        "Pod" => of.pointer("/metadata/labels"),
        "Service" => of.pointer("/spec/selector"),
        _ => {
            let expressions = of.pointer("/spec/selector/matchExpressions").and_then(Value::as_array);
            if expressions.is_some_and(|e| !e.is_empty()) {
                return Err(format!(
                    "spec.selector.matchExpressions of {} cannot be the selector of a service: give --selector",
                    shown()
                ));
            }
            of.pointer("/spec/selector/matchLabels")
        }
    };
    found
        .filter(|s| s.as_object().is_some_and(|m| !m.is_empty()))
        .cloned()
        .ok_or_else(|| format!("{} has no labels to select its pods by: give --selector", shown()))
}

/// Ports and protocols that the object names itself.
fn ports(of: &Object) -> Vec<(u16, String)> {
    let (list, field) = match of.kind() {
        "Service" => ("/spec/ports", "port"),
        "Pod" => ("/spec/containers", "containerPort"),
        _ => ("/spec/template/spec/containers", "containerPort"),
    };
    let entries = of.pointer(list).and_then(Value::as_array).into_iter().flatten();
    let entries: Vec<&Value> = if of.kind() == "Service" {
        entries.collect()
    } else {
        entries.filter_map(|c| c["ports"].as_array()).flatten().collect()
    };
    entries
        .into_iter()
        .filter_map(|e| {
            let port = u16::try_from(e[field].as_u64()?).ok()?;
            Some((port, e["protocol"].as_str().unwrap_or("TCP").to_owned()))
        })
        .collect()
}

fn map(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests;

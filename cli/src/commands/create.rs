//! `create`

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use minisvc_proto::{
    Object, Resource,
    path::Target,
    report::ServiceProgress,
    resource::{DEPLOYMENTS, SERVICES},
};
use serde_json::{Value, json};

use super::{Session, session};
use crate::{
    args::{Create, CreateDeployment, CreateService, CreateWhat, ServiceFlags},
    output,
};

pub(super) async fn run(session: &Session, args: Create) -> anyhow::Result<()> {
    match (args.filename, args.what) {
        (Some(file), _) => from_file(session, &file).await,
        (None, Some(CreateWhat::Deployment(args))) => {
            create(session, &DEPLOYMENTS, deployment(args, &session.namespace)).await
        }
        (None, Some(CreateWhat::Service { kind })) => {
            let (kind, flags) = match kind {
                CreateService::Clusterip(flags) => ("ClusterIP", flags),
                CreateService::Nodeport(flags) => ("NodePort", flags),
            };
            let object = service(kind, &flags, &session.namespace);
            create(session, &SERVICES, object).await?;
            if flags.wait { wait(session, &flags).await } else { Ok(()) }
        }
        (None, None) => bail!("nothing to create: give -f FILE, deployment or service"),
    }
}

async fn create(session: &Session, resource: &'static Resource, object: Object) -> anyhow::Result<()> {
    let namespace = object.namespace().unwrap_or(&session.namespace).to_owned();
    let target = Target::collection(resource, Some(&namespace));
    let made = session.client.create(&target, &object, false).await?;
    Ok(output::line(&format!("{}/{} created", session::kind(resource), made.name()))?)
}

async fn from_file(session: &Session, file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let values: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| {
        let fault = e.to_string();
        anyhow::anyhow!("{}: {}", file.display(), fault.lines().next().unwrap_or("not YAML"))
    })?;
    // All are checked before the first is sent.
    let mut objects = Vec::new();
    for value in values {
        let Value::Object(map) = value else { bail!("{}: a document is no object", file.display()) };
        let object = Object(map);
        let resource = object.resource().with_context(|| {
            format!("{}: no kind \"{}\" in \"{}\"", file.display(), object.kind(), object.api_version())
        })?;
        objects.push((resource, object));
    }
    for (resource, object) in objects {
        create(session, resource, object).await?;
    }
    Ok(())
}

fn deployment(args: CreateDeployment, namespace: &str) -> Object {
    let mut object = Object::new(&DEPLOYMENTS, Some(namespace), &args.name);
    let labels = json!({"app": args.name});
    let mut container = json!({"name": args.name, "command": args.command});
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
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

fn service(kind: &str, flags: &ServiceFlags, namespace: &str) -> Object {
    let mut object = Object::new(&SERVICES, Some(namespace), &flags.name);
    let labels = json!({"app": flags.name});
    let ports = flags.tcp.iter().enumerate().map(|(i, (port, target))| {
        let name = format!("{port}-{target}");
        let mut value = json!({"name": name, "protocol": "TCP", "port": port, "targetPort": target});
        if let (0, Some(node_port)) = (i, flags.node_port) {
            value["nodePort"] = node_port.into();
        }
        value
    });
    let ports: Vec<Value> = ports.collect();
    object.metadata_mut().insert("labels".into(), labels.clone());
    let spec = object.spec_mut();
    spec.insert("type".into(), kind.into());
    spec.insert("selector".into(), labels);
    spec.insert("ports".into(), ports.into());
    object
}

async fn wait(session: &Session, flags: &ServiceFlags) -> anyhow::Result<()> {
    let (namespace, name) = (&session.namespace, &flags.name);
    let path = format!(
        "/apis/minisvc.io/v1/namespaces/{namespace}/services/{name}/progress?timeoutSeconds={}",
        flags.timeout
    );
    let answer = session.client.raw(reqwest::Method::GET, &path, None).await?;
    let progress: ServiceProgress = serde_json::from_value(answer)?;
    if progress.pods == 0 {
        output::note("note: the selector matches no pod");
        return Ok(());
    }
    if progress.complete {
        return Ok(());
    }
    let late: Vec<String> = progress
        .late_pods
        .into_iter()
        .chain(progress.late_nodes.iter().map(|n| format!("node {n}")))
        .collect();
    bail!("service {name} is created, but late after {} s: {}", flags.timeout, late.join(", "))
}

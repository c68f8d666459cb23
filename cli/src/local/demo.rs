//! `up --demo`: four pods behind a service, asked from everywhere, and what answered.

mod answers;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use minisvc_proto::{
    Object, ObjectKey, Resource,
    client::{Client, ClientError, ListParams, query},
    path::Target,
    resource::{DEPLOYMENTS, NODES, PODS, SERVICES},
};
use serde_json::Value;

use self::answers::{Answer, Facts, Node};
use super::hints::Known;
use crate::{
    args::{
        CreateDeployment, CreateService, NodePortFlags, Produce, ServiceFlags, ServiceWait, Traffic,
        values::port_pair,
    },
    commands::{build, exec, programmed},
    echo,
};

const NAME: &str = "hello";
const NAMESPACE: &str = "default";
const REPLICAS: u32 = 4;
const PORT: u16 = 80;
const WAIT: Duration = Duration::from_secs(30);
/// The relay learns of a new nodePort a moment after the nodes.
const DOOR: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The nodePort of the demonstration's service, where there is one already.
pub async fn known(client: &Client) -> Option<Known> {
    let service =
        client.get(&Target::object(&ObjectKey::namespaced(&SERVICES, NAMESPACE, NAME))).await.ok()?;
    Some(Known { node_port: node_port(&service)? })
}

fn node_port(service: &Object) -> Option<u16> {
    u16::try_from(service.pointer("/spec/ports/0/nodePort")?.as_u64()?).ok().filter(|p| *p > 0)
}

/// Makes deployment and service (or takes those that are there), asks, and tells.
pub async fn run(
    client: &Client,
    told: &impl Fn(&str) -> anyhow::Result<()>,
    print: impl Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    told("$ minisvc create deployment hello --replicas 4 -- minisvc echo --port 8080")?;
    told(&make(client, &DEPLOYMENTS, &deployment()).await?)?;
    told("$ minisvc create service nodeport hello --tcp=80:8080")?;
    let service = service()?;
    told(&make(client, &SERVICES, &service).await?)?;
    let progress = programmed::await_progress(client, NAMESPACE, &service, WAIT).await?;
    told(&format!(
        "{} pods are Ready, and {} nodes have programmed the service",
        progress.pods, progress.ready_nodes
    ))?;
    let facts = facts(client).await?;
    let mut answers = vec![from_here(&facts).await];
    for (i, node) in facts.nodes.iter().enumerate() {
        // Each node is asked by its neighbour, so that the question crosses the LAN.
        let from = &facts.nodes[(i + facts.nodes.len() - 1) % facts.nodes.len()];
        let asked = SocketAddr::new(node.ip.into(), facts.node_port).to_string();
        let question =
            question(&format!("/apis/minisvc.io/v1/nodes/{}/exec", from.name), &own_path()?, &asked, &[]);
        answers.push(Answer::of(&from.name, &asked, exec::capture(client, &question).await));
    }
    if let Some(pod) = &facts.pod {
        let target = Target::object(&ObjectKey::namespaced(&PODS, NAMESPACE, pod)).with_subresource("exec");
        let asked = format!("{NAME}:{PORT}");
        let question = question(&target.to_string(), "minisvc", &asked, &[("container", NAME)]);
        answers.push(Answer::of(&format!("pod {pod}"), &asked, exec::capture(client, &question).await));
    }
    told("asked from everywhere:")?;
    let ways = answers.iter().map(|a| answers::way(a, &facts));
    let lines = answers::table(&answers).into_iter().chain([String::new()]).chain(ways);
    for line in lines {
        print(format!("         {line}").trim_end())?;
    }
    match answers.iter().filter(|a| a.said.is_err()).count() {
        0 => Ok(()),
        silent => bail!("{silent} of {} questions got no answer", answers.len()),
    }
}

fn own_path() -> anyhow::Result<String> {
    Ok(super::own_binary()?.display().to_string())
}

/// An exec of `minisvc echo --ask ADDRESS`, for no program need be there to ask.
fn question(path: &str, binary: &str, asked: &str, more: &[(&str, &str)]) -> String {
    let words = [binary, "echo", "--ask", asked];
    let pairs = words.iter().map(|w| ("command", *w)).chain(more.iter().copied());
    format!("{path}{}", query(pairs.chain([("stdout", "true"), ("stderr", "true")])))
}

fn deployment() -> Object {
    let command = ["minisvc", "echo", "--port", "8080"].map(str::to_owned).to_vec();
    let args = CreateDeployment {
        name: NAME.into(),
        replicas: REPLICAS,
        port: None,
        image: None,
        produce: Produce::default(),
        command,
    };
    build::deployment(&args, Some(NAMESPACE))
}

fn service() -> anyhow::Result<Object> {
    let flags = ServiceFlags {
        name: NAME.into(),
        tcp: vec![port_pair("80:8080").map_err(anyhow::Error::msg)?],
        udp: Vec::new(),
        sctp: Vec::new(),
        clusterip: None,
        selector: Vec::new(),
        no_selector: false,
        traffic: Traffic::default(),
        wait: ServiceWait { wait: true, timeout: WAIT },
        produce: Produce::default(),
    };
    let flags = CreateService::Nodeport(NodePortFlags { service: flags, node_port: None });
    build::service(&flags, Some(NAMESPACE)).map_err(anyhow::Error::msg)
}

/// Creates, or says that it is there.
async fn make(client: &Client, resource: &'static Resource, object: &Object) -> anyhow::Result<String> {
    let shown = format!("{}/{}", resource.qualified_singular(), object.name());
    match client.create(&Target::collection(resource, Some(NAMESPACE)), object, false).await {
        Ok(_) => Ok(format!("{shown} created")),
        Err(ClientError::Api(e)) if e.is_already_exists() => Ok(format!("{shown} is there already")),
        Err(e) => Err(e.into()),
    }
}

async fn facts(client: &Client) -> anyhow::Result<Facts> {
    let service = client.get(&Target::object(&ObjectKey::namespaced(&SERVICES, NAMESPACE, NAME))).await?;
    let node_port = node_port(&service)
        .context("service \"hello\" is no NodePort service: delete it, and `up --demo` makes it anew")?;
    let (_, nodes) = client.list(&Target::collection(&NODES, None), &ListParams::default()).await?;
    let nodes = nodes.iter().filter_map(super::api::ready_node).map(|(name, ip)| Node { name, ip }).collect();
    let labels = ListParams::labels(format!("app={NAME}"));
    let (_, pods) = client.list(&Target::collection(&PODS, Some(NAMESPACE)), &labels).await?;
    let running =
        |p: &&Object| p.deletion_timestamp().is_none() && p.str_at("/status/phase") == Some("Running");
    let target = service.pointer("/spec/ports/0/targetPort").and_then(Value::as_u64).unwrap_or(0);
    Ok(Facts {
        node_port,
        cluster_ip: service
            .str_at("/spec/clusterIP")
            .and_then(|ip| ip.parse().ok())
            .unwrap_or(Ipv4Addr::UNSPECIFIED),
        port: PORT,
        target: u16::try_from(target).unwrap_or(0),
        nodes,
        pod: pods.iter().find(running).map(|p| p.name().to_owned()),
    })
}

/// By the relay, as soon as it has opened the door.
async fn from_here(facts: &Facts) -> Answer {
    let asked = format!("127.0.0.1:{}", facts.node_port);
    let end = Instant::now() + DOOR;
    loop {
        match echo::ask(&asked).await {
            Err(_) if Instant::now() < end => tokio::time::sleep(POLL).await,
            said => return Answer::of("you", &asked, said),
        }
    }
}

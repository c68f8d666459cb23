//! Which doors stand open: one for every nodePort of every service.

use std::{collections::BTreeMap, path::Path, sync::PoisonError, time::Duration};

use minisvc_agent::{
    plan::Proto,
    relay::{Door, DoorKey, Taken, keep},
};
use minisvc_proto::{
    Object,
    client::Client,
    event::{Note, Severity, Source},
    path::Target,
    resource::{EVENTS, NODES, SERVICES},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{IntoRoom, Nodes, RoomSockets, Targets};
use crate::local::{
    api::{connect, follow as follow_kind, ready_node, second_address},
    paths::Paths,
    report::say,
};

/// Between two looks for the credentials.
const AGAIN: Duration = Duration::from_millis(10);
/// Words about doors that were taken, waiting to be said.
const TAKEN: usize = 64;

type Owner = (String, String, String);

/// Follows nodes and services for ever.
pub async fn follow(paths: &Paths, room: RoomSockets) -> anyhow::Result<()> {
    // The room writes the administrator's credentials when the server is up.
    let api = once_there(&paths.admin_config(), || connect(&paths.admin_config())).await?;
    let known = Nodes::default();
    let nodes = follow_kind(&api, &NODES, |nodes| {
        let ready = |node: &Object| ready_node(node).map(|(_, ip)| (ip, second_address(node)));
        let list = nodes.into_iter().filter_map(ready).collect();
        *known.ready.write().unwrap_or_else(PoisonError::into_inner) = list;
    });
    let wanted = tokio::sync::watch::Sender::new(BTreeMap::new());
    let services = follow_kind(&api, &SERVICES, |services| {
        let only6 = services.iter().filter(|s| is_of_ipv6_alone(s));
        let only6 = only6.flat_map(|s| wanted_doors(&[*s]).into_keys()).collect();
        *known.only6.write().unwrap_or_else(PoisonError::into_inner) = only6;
        wanted.send_replace(wanted_doors(&services));
    });
    let (taken, words) = mpsc::channel(TAKEN);
    let open = |proto, port| {
        let targets = Targets::Nodes(known.clone(), (proto, port));
        Door::open(proto, port, IntoRoom { room: room.clone(), targets })
    };
    tokio::join!(nodes, services, keep(wanted.subscribe(), open, taken), tell(&api, words));
    Ok(())
}

/// Reads a file as soon as it is there. It is looked for first: an attempt may fail because it is not, and it may come before one
/// has looked why.
async fn once_there<T>(path: &Path, read: impl FnOnce() -> T) -> T {
    while !path.exists() {
        tokio::time::sleep(AGAIN).await;
    }
    read()
}

/// Says, on the terminal and as an event, which nodePorts this machine does not have.
async fn tell(api: &Client, mut taken: mpsc::Receiver<Taken<Owner>>) {
    while let Some(Taken { proto, port, owner, cause }) = taken.recv().await {
        let (namespace, name, _) = &owner;
        let text = format!(
            "{proto} port {port} of this machine cannot be had ({cause}): {namespace}/{name} answers on the nodes only"
        );
        say(&text);
        tracing::warn!("{text}");
        if let Err(e) = event(api, &owner, &text).await {
            tracing::warn!("no event could be written: {e:#}");
        }
    }
}

fn is_of_ipv6_alone(service: &Object) -> bool {
    service.pointer("/spec/ipFamilies").is_some_and(|families| *families == serde_json::json!(["IPv6"]))
}

/// The nodePorts of all services, each with the namespace, name and uid of its owner.
fn wanted_doors(services: &[&Object]) -> BTreeMap<DoorKey, Owner> {
    let mut doors = BTreeMap::new();
    for service in services {
        let text = |pointer: &str| service.str_at(pointer).unwrap_or("").to_owned();
        let owner = (text("/metadata/namespace"), text("/metadata/name"), text("/metadata/uid"));
        let ports = service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice);
        for port in ports.unwrap_or_default() {
            let number = port.get("nodePort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
            let protocol = match port.get("protocol").and_then(Value::as_str) {
                None | Some("TCP") => Proto::Tcp,
                Some("UDP") => Proto::Udp,
                Some(_) => continue,
            };
            if let Some(number) = number.filter(|n| *n > 0) {
                doors.insert((protocol, number), owner.clone());
            }
        }
    }
    doors
}

async fn event(api: &Client, (namespace, name, uid): &Owner, message: &str) -> anyhow::Result<()> {
    let mut service = Object::new(&SERVICES, Some(namespace), name);
    service.metadata_mut().insert("uid".into(), uid.as_str().into());
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let source = Source { component: "minisvc-relay", host: None };
    let note = Note::new(&service, Severity::Warning, "PortTaken", message);
    let event = note.to_event(&suffix[..16], source, 1, &now);
    api.create(&Target::collection(&EVENTS, Some(namespace)), &event, false).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_file_that_comes_is_read_when_it_is_there_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let read = once_there(&path, || std::fs::read_to_string(&path).unwrap());
        let write = async {
            tokio::task::yield_now().await;
            std::fs::write(dir.path().join("new"), "all of it").unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
        };
        assert_eq!(tokio::join!(read, write).0, "all of it");
    }

    #[test]
    fn a_service_of_ipv6_alone_is_known() {
        let service = |families: Value| -> Object {
            serde_json::from_value(json!({"metadata": {}, "spec": {"ipFamilies": families}})).unwrap()
        };
        for (families, expected) in [
            (json!(["IPv6"]), true),
            (json!(["IPv4", "IPv6"]), false),
            (json!(["IPv6", "IPv4"]), false),
            (Value::Null, false),
        ] {
            assert_eq!(is_of_ipv6_alone(&service(families.clone())), expected, "{families}");
        }
    }

    #[test]
    fn every_node_port_is_a_door_and_nothing_else_is() {
        let service: Object = serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s", "uid": "u"}, "spec": {"ports": [
            {"port": 80, "nodePort": 30080}, {"port": 53, "nodePort": 30080, "protocol": "UDP"},
            {"port": 81}, {"port": 82, "nodePort": 0}, {"port": 83, "nodePort": 30083, "protocol": "SCTP"}]}}))
        .unwrap();
        let doors = wanted_doors(&[&service]);
        assert_eq!(doors.keys().collect::<Vec<_>>(), [&(Proto::Tcp, 30080), &(Proto::Udp, 30080)]);
    }
}

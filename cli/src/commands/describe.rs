//! `describe`

use anyhow::bail;
use jiff::Timestamp;
use minisvc_proto::{
    Object,
    client::{ClientError, ListParams},
    path::Target,
    resource::{DEPLOYMENTS, ENDPOINT_SLICES, EVENTS, NODES, PODS, REPLICA_SETS, SERVICES},
};

use super::{DONE, Outcome, Session, complain, pods, selection};
use crate::{
    args::Describe,
    output::{self, describe::Related},
};

pub(super) async fn run(session: &Session, args: Describe) -> Outcome {
    let mut code = DONE;
    let mut found = Vec::new();
    for item in selection::parse(&args.what)? {
        let answer = match &item.name {
            Some(_) if args.all_namespaces || args.selector.is_some() => {
                bail!("a name, or one of -l and -A: not both")
            }
            Some(name) => {
                session.client.get(&Target::object(&session.key(item.resource, name))).await.map(|o| vec![o])
            }
            None => {
                let params = ListParams { label_selector: args.selector.clone(), field_selector: None };
                let target = session.collection(item.resource, args.all_namespaces);
                session.client.list(&target, &params).await.map(|(_, objects)| objects)
            }
        };
        match answer {
            Ok(objects) => found.extend(objects),
            Err(e @ ClientError::Api(_)) => code = complain(e),
            Err(e) => return Err(e.into()),
        }
    }
    if found.is_empty() && code == DONE {
        output::note(&format!("No resources found in {} namespace.", session.namespace));
    }
    for (i, object) in found.iter().enumerate() {
        let related = related(session, object).await?;
        let page = output::describe::describe(object, &related, Timestamp::now());
        output::bytes(format!("{}{page}", if i > 0 { "\n\n" } else { "" }).as_bytes())?;
    }
    Ok(code)
}

/// What belongs to an object.
async fn related(session: &Session, object: &Object) -> anyhow::Result<Related> {
    let mut related = Related::default();
    let namespace = object.namespace();
    let list = async |resource, namespace: Option<&str>, params: ListParams| {
        session
            .client
            .list(&Target::collection(resource, namespace), &params)
            .await
            .map(|(_, objects)| objects)
    };
    let labels = pods::selector(object).map(|s| ListParams::labels(s.to_string()));
    let owned = |o: &Object| o.controller().is_some_and(|c| c.uid == object.uid());
    match object.resource() {
        Some(r) if *r == NODES => {
            let on_it = ListParams::fields(format!("spec.nodeName={}", object.name()));
            related.pods = list(&PODS, None, on_it).await?;
        }
        Some(r) if *r == SERVICES => {
            let name = format!("kubernetes.io/service-name={}", object.name());
            related.slices = list(&ENDPOINT_SLICES, namespace, ListParams::labels(name)).await?;
            let path = format!(
                "/apis/minisvc.io/v1/namespaces/{}/services/{}/progress?timeoutSeconds=0",
                namespace.unwrap_or_default(),
                object.name()
            );
            // A server that keeps no account of progress has none to show.
            let progress = session.client.raw(reqwest::Method::GET, &path, None).await;
            related.progress = progress.ok().and_then(|p| serde_json::from_value(p).ok());
        }
        Some(r) if *r == REPLICA_SETS => {
            related.pods = list(&PODS, namespace, labels.unwrap_or_default()).await?;
            related.pods.retain(owned);
        }
        Some(r) if *r == DEPLOYMENTS => {
            related.replica_sets = list(&REPLICA_SETS, namespace, labels.unwrap_or_default()).await?;
            related.replica_sets.retain(owned);
        }
        _ => {}
    }
    related.events = list(&EVENTS, namespace, ListParams::default()).await?;
    related.events.retain(|e| is_about(e, object));
    Ok(related)
}

/// By uid where the event has one: an object that was made again under the same name has a history of its own.
fn is_about(event: &Object, object: &Object) -> bool {
    match event.str_at("/involvedObject/uid").filter(|u| !u.is_empty()) {
        Some(uid) if !object.uid().is_empty() && uid != object.name() => uid == object.uid(),
        _ => {
            event.str_at("/involvedObject/kind") == Some(object.kind())
                && event.str_at("/involvedObject/name") == Some(object.name())
                && event
                    .str_at("/involvedObject/namespace")
                    .is_none_or(|n| n.is_empty() || Some(n) == object.namespace())
        }
    }
}

//! `healthCheckNodePort`: whoever balances load over the nodes asks each of them whether it has endpoints of a service.
//! [pkg/proxy/healthcheck]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use minisvc_proto::{NodeName, Object, report::NodeReport, resource::SERVICES};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::events::{Recorder, Severity};
use crate::{
    plan::{Proto, ServiceKey},
    relay::{DoorKey, Taken, keep},
};

/// A client has so long for its request, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections to one port at a time; more are closed at once.
const CONNECTIONS: usize = 64;
/// Words about ports that are taken, waiting to be recorded.
const WORDS: usize = 16;

/// A service whose endpoints are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    key: ServiceKey,
    uid: String,
}

/// Which ports answer, and for which service.
type Ports = BTreeMap<DoorKey, Asked>;

/// What the answers are made of, kept from services and slices.
#[derive(Debug)]
pub struct HealthChecks {
    node: NodeName,
    ports: watch::Sender<Ports>,
    /// By port: how many ready endpoints are on this node.
    endpoints: watch::Sender<BTreeMap<u16, usize>>,
    of_service: BTreeMap<ServiceKey, u16>,
}

impl HealthChecks {
    /// Answers for this node.
    pub fn new(node: NodeName) -> Self {
        HealthChecks {
            node,
            ports: watch::Sender::default(),
            endpoints: watch::Sender::default(),
            of_service: BTreeMap::new(),
        }
    }

    /// What to answer, now and later.
    pub fn subscribe(&self) -> Answers {
        Answers { ports: self.ports.subscribe(), endpoints: self.endpoints.subscribe() }
    }

    /// A service with its slices, or gone.
    pub fn put(&mut self, key: &ServiceKey, found: Option<(&Service, &[&EndpointSlice])>) {
        let port = found.and_then(|(service, _)| port_of(service));
        if let Some(old) = self.of_service.get(key).copied().filter(|old| Some(*old) != port) {
            self.of_service.remove(key);
            self.ports.send_modify(|ports| drop(ports.remove(&(Proto::Tcp, old))));
            self.endpoints.send_modify(|endpoints| {
                endpoints.remove(&old);
            });
        }
        let (Some(port), Some((service, slices))) = (port, found) else { return };
        let uid = service.metadata.uid.clone().unwrap_or_default();
        let asked = Asked { key: key.clone(), uid };
        let local = local_endpoints(slices, self.node.as_str());
        self.endpoints.send_if_modified(|endpoints| endpoints.insert(port, local) != Some(local));
        self.ports.send_if_modified(|ports| {
            ports.insert((Proto::Tcp, port), asked.clone()).as_ref() != Some(&asked)
        });
        self.of_service.insert(key.clone(), port);
    }
}

/// The port at which a service's health is asked for. [pkg/api/v1/service/util.go, NeedsHealthCheck]
fn port_of(service: &Service) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let needs = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| needs)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// How many ready endpoints are on a node. Those that terminate do not count, even where they are all that serves: new connections
/// had better go to another node.
fn local_endpoints(slices: &[&EndpointSlice], node: &str) -> usize {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|e| {
        e.node_name.as_deref() == Some(node) && e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
    });
    // An endpoint with several port numbers stands in several slices, one with two addresses in a slice for each family.
    let unique: BTreeSet<_> = here
        .map(|e| match e.target_ref.as_ref().and_then(|target| target.uid.clone()) {
            Some(uid) => (Some(uid), None),
            None => (None, e.addresses.first().cloned()),
        })
        .collect();
    unique.len()
}

/// See [`HealthChecks::subscribe`].
#[derive(Clone, Debug)]
pub struct Answers {
    ports: watch::Receiver<Ports>,
    endpoints: watch::Receiver<BTreeMap<u16, usize>>,
}

impl Answers {
    /// What a load balancer hears at a port, and its HTTP code: 200 if this node has endpoints and forwards, else 503.
    fn answer(&self, port: u16, is_healthy: bool) -> (StatusCode, usize, Value) {
        let local = self.endpoints.borrow().get(&port).copied().unwrap_or(0);
        let key = self.ports.borrow().get(&(Proto::Tcp, port)).map(|asked| asked.key.clone());
        let (namespace, name) = key.map(|key| (key.namespace, key.name)).unzip();
        let code = if local > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": local,
            "serviceProxyHealthy": is_healthy,
        });
        (code, local, body)
    }
}

/// Answers at every health check port until cancelled. `report` says whether the node forwards.
pub async fn run(
    answers: Answers,
    report: watch::Receiver<NodeReport>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let (taken, mut words) = mpsc::channel(WORDS);
    let tell = async {
        while let Some(word) = words.recv().await {
            let (service, message) = taken_word(&word);
            tracing::warn!("{message}");
            recorder.event(&service, Severity::Warning, "PortTaken", message);
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = answer_all(answers, report, taken) => shutdown.cancelled().await,
        () = tell => shutdown.cancelled().await,
    }
}

async fn answer_all(
    answers: Answers,
    report: watch::Receiver<NodeReport>,
    taken: mpsc::Sender<Taken<Asked>>,
) {
    let wanted = answers.ports.clone();
    keep(wanted, |_, port| listen(port, answers.clone(), report.clone()), taken).await;
}

fn taken_word(word: &Taken<Asked>) -> (Object, String) {
    let Taken { port, owner, cause, .. } = word;
    let mut service = Object::new(&SERVICES, Some(&owner.key.namespace), &owner.key.name);
    service.metadata_mut().insert("uid".into(), Value::String(owner.uid.clone()));
    (service, format!("healthCheckNodePort {port} cannot be answered on this node ({cause})"))
}

/// At every address of the node, of either family; closed when dropped.
async fn listen(port: u16, answers: Answers, report: watch::Receiver<NodeReport>) -> io::Result<JoinSet<()>> {
    let any = |ip: IpAddr| TcpListener::bind((ip, port));
    // A listener for IPv6 takes IPv4, too, where there is IPv6.
    let listener = match any(Ipv6Addr::UNSPECIFIED.into()).await {
        Err(e) if e.kind() != io::ErrorKind::AddrInUse => any(Ipv4Addr::UNSPECIFIED.into()).await?,
        other => other?,
    };
    let mut task = JoinSet::new();
    task.spawn(serve(listener, port, answers, report));
    Ok(task)
}

async fn serve(listener: TcpListener, port: u16, answers: Answers, report: watch::Receiver<NodeReport>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, port, "a health check could not be accepted");
                    tokio::time::sleep(PATIENCE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (answers, report) = (answers.clone(), report.clone());
        connections.spawn(async move {
            // Each connection is good for one answer: load balancers ask anew each time.
            let _ = timeout(2 * PATIENCE, connection(stream, port, &answers, &report)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, port: u16, answers: &Answers, report: &watch::Receiver<NodeReport>) {
    let service = service_fn(async |_| {
        let is_healthy = report.borrow().ready;
        let (code, local, body) = answers.answer(port, is_healthy);
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        headers.insert("x-load-balancing-endpoint-weight", header::HeaderValue::from(local));
        Ok::<_, Infallible>(response)
    });
    let answered = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = answered {
        tracing::debug!(%error, port, "a health check broke off");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn service(port: Option<u16>, policy: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": port}}))
        .unwrap()
    }

    fn slice(endpoints: &[(&str, &str, bool)]) -> EndpointSlice {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(uid, node, ready)| {
                json!({"addresses": ["10.244.1.2"], "nodeName": node, "conditions": {"ready": ready},
                    "targetRef": {"kind": "Pod", "uid": uid}})
            })
            .collect();
        serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints})).unwrap()
    }

    fn key() -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: "web".into() }
    }

    #[test]
    fn ready_endpoints_of_this_node_are_counted_once() {
        let (one, other) = (
            slice(&[("a", "here", true), ("b", "there", true), ("c", "here", false)]),
            slice(&[("a", "here", true)]),
        );
        assert_eq!(local_endpoints(&[&one, &other], "here"), 1);
        assert_eq!(local_endpoints(&[&one], "there"), 1);
        assert_eq!(local_endpoints(&[&other], "there"), 0);
    }

    #[tokio::test]
    async fn a_load_balancer_hears_of_a_port_what_its_node_has() {
        let mut checks = HealthChecks::new("here".parse().unwrap());
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        let (report, healthy) = watch::channel(NodeReport { ready: true, ..NodeReport::default() });
        let (taken, _words) = mpsc::channel(1);
        let task = tokio::spawn(answer_all(checks.subscribe(), healthy, taken));
        let ask = async || {
            let mut stream = loop {
                // The port opens right after it is wanted.
                if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, free)).await {
                    break stream;
                }
                tokio::task::yield_now().await;
            };
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("x-load-balancing-endpoint-weight"), "{head}");
            (head[9..12].to_owned(), serde_json::from_str::<Value>(body).unwrap())
        };
        let service = service(Some(free), "Local");
        let (full, empty) = (slice(&[("a", "here", true)]), slice(&[("a", "there", true)]));
        let said = |n: usize, healthy: bool| {
            json!({"service": {"namespace": "default", "name": "web"}, "localEndpoints": n,
                "serviceProxyHealthy": healthy})
        };
        checks.put(&key(), Some((&service, &[&full])));
        assert_eq!(ask().await, ("200".into(), said(1, true)));
        checks.put(&key(), Some((&service, &[&empty])));
        assert_eq!(ask().await, ("503".into(), said(0, true)));
        checks.put(&key(), Some((&service, &[&full])));
        report.send_modify(|r| r.ready = false);
        assert_eq!(ask().await, ("503".into(), said(1, false)));
        // Gone, or of another policy: nobody answers.
        let other = self::service(Some(free), "Cluster");
        checks.put(&key(), Some((&other, &[&full])));
        while TcpStream::connect((Ipv4Addr::LOCALHOST, free)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        drop(checks);
        task.await.unwrap();
    }
}

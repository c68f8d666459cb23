//! What a probe or a hook asks of a container, and the asking.

mod command;
mod grpc;
mod http;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use super::probe::Verdict;
use crate::runtime::PodRuntime;

/// One thing to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A GET that must be answered.
    Http(http::Get),
    /// A connection that must be accepted.
    Tcp(SocketAddr),
    /// `grpc.health.v1.Health/Check` of this service.
    Grpc(SocketAddr, String),
    /// A program in the container that must end with 0.
    Command(Vec<String>),
    /// Time that must pass.
    Sleep(Duration),
}

/// The container that is asked.
pub struct Place<R> {
    /// Runs it.
    pub runtime: Arc<R>,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// Which start of it.
    pub attempt: u32,
}

impl<R> Place<R> {
    /// What came of asking it.
    pub fn report(&self, what: What) -> Report {
        Report { container: self.container.clone(), attempt: self.attempt, what }
    }
}

/// What came of asking a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The container's name.
    pub container: String,
    /// Which start of it.
    pub attempt: u32,
    /// The news.
    pub what: What,
}

/// See [`Report`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its postStart hook has ended.
    PostStart(Result<(), String>),
    /// Its preStop hook has ended.
    PreStop(Result<(), String>),
    /// A probe has something to say.
    Probe(Verdict),
}

impl Handler {
    /// Of a probe of this container. A fault is one line for the user.
    pub fn of_probe(probe: &Probe, container: &Container, ip: Ipv4Addr) -> Result<Self, String> {
        match probe {
            Probe { exec: Some(exec), .. } => Ok(Handler::Command(exec.command.clone().unwrap_or_default())),
            Probe { http_get: Some(get), .. } => {
                Ok(Handler::Http(http::Get::of(get, target(container, &get.port, get.host.as_deref(), ip)?)?))
            }
            Probe { tcp_socket: Some(tcp), .. } => {
                Ok(Handler::Tcp(target(container, &tcp.port, tcp.host.as_deref(), ip)?))
            }
            Probe { grpc: Some(grpc), .. } => {
                let port = target(container, &IntOrString::Int(grpc.port), None, ip)?;
                Ok(Handler::Grpc(port, grpc.service.clone().unwrap_or_default()))
            }
            _ => Err("exec, httpGet, tcpSocket or grpc required".into()),
        }
    }

    /// Of a hook of this container. A fault is one line for the user.
    pub fn of_hook(hook: &LifecycleHandler, container: &Container, ip: Ipv4Addr) -> Result<Self, String> {
        match hook {
            LifecycleHandler { exec: Some(exec), .. } => {
                Ok(Handler::Command(exec.command.clone().unwrap_or_default()))
            }
            LifecycleHandler { http_get: Some(get), .. } => {
                let target = target(container, &get.port, get.host.as_deref(), ip)?;
                // Kubernetes does not look at the answer's status. [pkg/kubelet/lifecycle, runHTTPHandler]
                Ok(Handler::Http(http::Get::of(get, target)?.with_any_status()))
            }
            LifecycleHandler { sleep: Some(sleep), .. } => {
                Ok(Handler::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))))
            }
            _ => Err("exec, httpGet or sleep required".into()),
        }
    }

    /// Whether asking costs a process.
    pub fn is_costly(&self) -> bool {
        matches!(self, Handler::Command(_))
    }

    /// Asks once. Dropping it ends all that it began. An error is one line for the user, in Kubernetes' words where it has any.
    pub async fn ask<R: PodRuntime>(&self, place: &Place<R>) -> Result<(), String> {
        match self {
            Handler::Http(get) => get.ask().await,
            Handler::Tcp(target) => TcpStream::connect(target).await.map(drop).map_err(|e| dial(*target, &e)),
            Handler::Grpc(target, service) => grpc::check(*target, service).await,
            Handler::Command(argv) => command::run(place, argv).await,
            Handler::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
        }
    }
}

/// Why there is no connection, in Go's words, as users of Kubernetes know them.
fn dial(target: SocketAddr, error: &std::io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    };
    format!("dial tcp {target}: connect: {why}")
}

/// Where a port of the container is asked: at the pod's address, if no host is named.
fn target(
    container: &Container,
    port: &IntOrString,
    host: Option<&str>,
    ip: Ipv4Addr,
) -> Result<SocketAddr, String> {
    let number = port_number(container, port).ok_or_else(|| {
        let shown = match port {
            IntOrString::Int(n) => n.to_string(),
            IntOrString::String(s) => format!("\"{s}\""),
        };
        format!("port {shown} is no port, and no name of one in ports")
    })?;
    let ip: IpAddr = match host.filter(|h| !h.is_empty()) {
        None => ip.into(),
        Some(host) => host.parse().map_err(|_| format!("host \"{host}\" is no address"))?,
    };
    Ok(SocketAddr::new(ip, number))
}

fn port_number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0)
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::runtime::{contract, fake::FakeRuntime};

    /// A container that runs nothing real.
    pub fn place() -> Place<FakeRuntime> {
        Place { runtime: Arc::default(), uid: "u".into(), container: "c".into(), attempt: 2 }
    }

    /// One whose main process runs.
    pub async fn running() -> Place<FakeRuntime> {
        let place = place();
        place.runtime.create(&contract::setup("u", "/nowhere".as_ref())).await.unwrap();
        place.runtime.start("u", &contract::spec("c", 0, &["sleep"])).await.unwrap();
        place
    }

    pub fn of_probe(probe: Value) -> Result<Handler, String> {
        let container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}));
        Handler::of_probe(&serde_json::from_value(probe).unwrap(), &container.unwrap(), Ipv4Addr::LOCALHOST)
    }

    #[test]
    fn ports_have_numbers_or_names_and_faults_are_said() {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(of_probe(json!({"tcpSocket": {"port": 81}})), Ok(Handler::Tcp(at(81))));
        assert_eq!(of_probe(json!({"tcpSocket": {"port": "web"}})), Ok(Handler::Tcp(at(8080))));
        assert_eq!(
            of_probe(json!({"grpc": {"port": 5, "service": "s"}})),
            Ok(Handler::Grpc(at(5), "s".into()))
        );
        assert_eq!(
            of_probe(json!({"exec": {"command": ["true"]}})),
            Ok(Handler::Command(vec!["true".into()]))
        );
        for (bad, why) in [
            (json!({"tcpSocket": {"port": "nope"}}), "port \"nope\" is no port"),
            (json!({"tcpSocket": {"port": 0}}), "port 0 is no port"),
            (json!({"httpGet": {"port": 80, "path": "/a b"}}), "httpGet: invalid"),
            (json!({"httpGet": {"port": 80, "host": "a.b"}}), "host \"a.b\" is no address"),
            (json!({}), "exec, httpGet"),
        ] {
            let said = of_probe(bad.clone()).unwrap_err();
            assert!(said.starts_with(why), "{bad}: {said}");
        }
    }

    #[tokio::test]
    async fn a_hook_may_ask_command_or_sleep() {
        let of = |hook: Value| {
            let container = serde_json::from_value(json!({"name": "c"})).unwrap();
            Handler::of_hook(&serde_json::from_value(hook).unwrap(), &container, Ipv4Addr::LOCALHOST)
        };
        let pause = of(json!({"sleep": {"seconds": 0}})).unwrap();
        assert_eq!(pause, Handler::Sleep(Duration::ZERO));
        assert_eq!(pause.ask(&place()).await, Ok(()));
        assert_eq!(
            of(json!({"exec": {"command": ["a", "b"]}})),
            Ok(Handler::Command(vec!["a".into(), "b".into()]))
        );
        assert!(matches!(of(json!({"httpGet": {"port": 80}})), Ok(Handler::Http(_))));
        assert_eq!(of(json!({"tcpSocket": {"port": 80}})), Err("exec, httpGet or sleep required".into()));
    }
}

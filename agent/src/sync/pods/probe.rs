//! Readiness probes, from the node to the pod's address.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

/// Until a container was ready once, it is asked this often during its first period: most are ready within milliseconds, and
/// nobody wants to wait a whole period for them.
const EAGER: Duration = Duration::from_millis(50);

/// What is asked, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadinessProbe {
    target: SocketAddr,
    http: Option<HttpGet>,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success: u32,
    failure: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct HttpGet {
    path: String,
    headers: Vec<(String, String)>,
}

/// A change of what a probe says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of which container.
    pub container: String,
    /// Of which start.
    pub attempt: u32,
    /// Ready or not; `None` when a failure changes nothing, but should be told.
    pub ready: Option<bool>,
    /// Why not.
    pub message: String,
}

impl ReadinessProbe {
    /// The container's probe, if it has one that can be done; a fault is one line for the user.
    pub fn of(container: &Container, ip: Ipv4Addr) -> Result<Option<Self>, String> {
        let Some(probe) = &container.readiness_probe else { return Ok(None) };
        let (port, host, http) = match probe {
            Probe { http_get: Some(get), .. } => (&get.port, &get.host, Some(http_get(get, ip)?)),
            Probe { tcp_socket: Some(tcp), .. } => (&tcp.port, &tcp.host, None),
            _ => return Err("readinessProbe: httpGet or tcpSocket required".into()),
        };
        let number = port_number(container, port).ok_or_else(|| {
            let shown = match port {
                IntOrString::Int(n) => n.to_string(),
                IntOrString::String(s) => format!("\"{s}\""),
            };
            format!("readinessProbe: port {shown} is no port, and no name of one in ports")
        })?;
        let ip = match host.as_deref().filter(|h| !h.is_empty()) {
            None => ip.into(),
            Some(host) => {
                host.parse().map_err(|_| format!("readinessProbe: host \"{host}\" is no address"))?
            }
        };
        let seconds = |n: Option<i32>, default: u64| {
            Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default))
        };
        let times = |n: Option<i32>, default: u32| {
            n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
        };
        Ok(Some(ReadinessProbe {
            target: SocketAddr::new(ip, number),
            http,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds.filter(|n| *n > 0), 10),
            timeout: seconds(probe.timeout_seconds.filter(|n| *n > 0), 1),
            success: times(probe.success_threshold, 1),
            failure: times(probe.failure_threshold, 3),
        }))
    }

    /// Asks until the receiver is gone or the task is ended. A container that `was_ready` when an earlier agent asked last is
    /// taken to be, and asked at once.
    pub async fn run(
        self,
        container: String,
        attempt: u32,
        was_ready: bool,
        verdicts: mpsc::Sender<Verdict>,
    ) {
        let start = Instant::now();
        let mut next = if was_ready { start } else { start + self.initial_delay };
        let mut count = Count { ready: was_ready, was_ready, ..Count::default() };
        loop {
            sleep_until(next).await;
            let answer = match timeout(self.timeout, self.ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {:?}", self.timeout)),
            };
            let step = count.step(answer.is_ok(), self.success, self.failure);
            if step.changed.is_some() || (step.told && answer.is_err()) {
                let message =
                    answer.err().map(|e| format!("Readiness probe failed: {e}")).unwrap_or_default();
                let verdict = Verdict { container: container.clone(), attempt, ready: step.changed, message };
                if verdicts.send(verdict).await.is_err() {
                    return;
                }
            }
            let eager = !count.was_ready && start.elapsed() < self.initial_delay + self.period;
            next = Instant::now() + if eager { EAGER } else { self.period };
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let target = self.target;
        let stream = TcpStream::connect(target).await.map_err(|e| format!("{target}: {e}"))?;
        let Some(get) = &self.http else { return Ok(()) };
        let bad = |e: &dyn std::fmt::Display| format!("http://{target}{}: {e}", get.path);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| bad(&e))?;
        let mut request = http::Request::get(get.path.as_str());
        for (name, value) in &get.headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| bad(&e))?;
        let answer = tokio::select! {
            answer = sender.send_request(request) => answer.map_err(|e| bad(&e))?,
            Err(e) = connection => return Err(bad(&e)),
        };
        let code = answer.status().as_u16();
        if (200..400).contains(&code) { Ok(()) } else { Err(bad(&format!("status {code}"))) }
    }
}

fn http_get(get: &HTTPGetAction, ip: Ipv4Addr) -> Result<HttpGet, String> {
    if get.scheme.as_deref().is_some_and(|s| !s.is_empty() && s != "HTTP") {
        return Err("readinessProbe: httpGet.scheme: only HTTP can be had".into());
    }
    let path = get.path.clone().unwrap_or_default();
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let mut headers: Vec<_> =
        get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    for (name, value) in
        [("Host", ip.to_string()), ("User-Agent", "minisvc-probe".into()), ("Accept", "*/*".into())]
    {
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
            headers.push((name.into(), value));
        }
    }
    let mut request = http::Request::get(path.as_str());
    for (name, value) in &headers {
        request = request.header(name, value);
    }
    request.body(()).map_err(|e| format!("readinessProbe: httpGet: {e}"))?;
    Ok(HttpGet { path, headers })
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

/// Answers in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    good: u32,
    bad: u32,
    ready: bool,
    was_ready: bool,
}

struct Step {
    changed: Option<bool>,
    /// The failures in a row have just reached the threshold.
    told: bool,
}

impl Count {
    fn step(&mut self, good: bool, success: u32, failure: u32) -> Step {
        let before = self.ready;
        if good {
            (self.good, self.bad) = (self.good.saturating_add(1), 0);
            self.ready |= self.good >= success;
        } else {
            (self.good, self.bad) = (0, self.bad.saturating_add(1));
            self.ready &= self.bad < failure;
        }
        self.was_ready |= self.ready;
        Step { changed: (before != self.ready).then_some(self.ready), told: self.bad == failure }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn probe(spec: serde_json::Value) -> Result<Option<ReadinessProbe>, String> {
        let container =
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": spec});
        ReadinessProbe::of(&serde_json::from_value(container).unwrap(), Ipv4Addr::LOCALHOST)
    }

    #[test]
    fn thresholds_count_answers_in_a_row() {
        let mut count = Count::default();
        let changes: String = "+-++--+---+"
            .chars()
            .map(|c| match count.step(c == '+', 2, 3).changed {
                Some(true) => 'R',
                Some(false) => 'N',
                None => '.',
            })
            .collect();
        assert_eq!(changes, "...R.....N.");
    }

    #[test]
    fn ports_have_numbers_or_names_and_faults_are_said() {
        let target = |spec| probe(spec).unwrap().unwrap().target.port();
        assert_eq!(target(json!({"tcpSocket": {"port": 81}})), 81);
        assert_eq!(target(json!({"httpGet": {"port": "web"}})), 8080);
        for bad in [
            json!({"tcpSocket": {"port": "nope"}}),
            json!({"tcpSocket": {"port": 0}}),
            json!({"exec": {"command": ["true"]}}),
            json!({"httpGet": {"port": 80, "scheme": "HTTPS"}}),
            json!({"httpGet": {"port": 80, "path": "/a b"}}),
        ] {
            let why = probe(bad.clone()).unwrap_err();
            assert!(why.starts_with("readinessProbe: "), "{bad}: {why}");
        }
    }

    #[tokio::test]
    async fn a_server_is_asked_with_its_headers_and_a_bad_status_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            for status in ["200 OK", "503 Busy"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                seen.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        let spec = json!({"httpGet": {"port": port, "path": "healthz",
            "httpHeaders": [{"name": "X-Who", "value": "probe"}]}});
        let probe = probe(spec).unwrap().unwrap();
        assert_eq!(probe.ask().await, Ok(()));
        assert!(probe.ask().await.unwrap_err().ends_with("/healthz: status 503"));
        let seen = server.await.unwrap();
        assert!(seen[0].starts_with("GET /healthz HTTP/1.1\r\n"), "{}", seen[0]);
        assert!(seen[0].to_lowercase().contains("x-who: probe\r\n"), "{}", seen[0]);
        // The listener is gone.
        assert!(probe.ask().await.unwrap_err().contains("refused"));
    }

    #[tokio::test]
    async fn the_first_success_is_told_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = probe(json!({"tcpSocket": {"port": port}})).unwrap().unwrap();
        let (sender, mut verdicts) = mpsc::channel(4);
        let task = tokio::spawn(probe.run("c".into(), 2, false, sender));
        let verdict = verdicts.recv().await.unwrap();
        assert_eq!((verdict.attempt, verdict.ready), (2, Some(true)));
        task.abort();
    }

    #[tokio::test]
    async fn what_was_ready_is_asked_at_once_and_says_only_that_it_is_no_longer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let spec = json!({"tcpSocket": {"port": port}, "initialDelaySeconds": 3600, "failureThreshold": 1});
        let (sender, mut verdicts) = mpsc::channel(4);
        let task = tokio::spawn(probe(spec).unwrap().unwrap().run("c".into(), 0, true, sender));
        assert_eq!(verdicts.recv().await.unwrap().ready, Some(false));
        task.abort();
    }
}

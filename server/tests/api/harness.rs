//! A server of its own for each test, in a directory that goes with it.

use std::{fs, net::Ipv4Addr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use minisvc_proto::{
    Object,
    client::{Client, Kubeconfig},
    join::{CertificateAnswer, JoinToken},
    path::Target,
};
use minisvc_server::{
    pki::Pki,
    run::{Limits, Server, ServerConfig, ServerError, pki_dir},
};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Method, Response, header};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

pub struct Api {
    pub dir: TempDir,
    pub url: String,
    pub admin: Client,
    pub stop: CancellationToken,
    pub served: JoinHandle<Result<(), ServerError>>,
}

pub fn config(dir: &TempDir) -> ServerConfig {
    ServerConfig {
        data_dir: dir.path().to_owned(),
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        advertise: Ipv4Addr::LOCALHOST.into(),
        tls_sans: vec!["api.test".into()],
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        node_port_range: (30000, 32767),
        vxlan_port: 8473,
        node_certificate_ttl: Duration::from_hours(30 * 24),
        pod_eviction_timeout: Duration::from_secs(6),
    }
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        let api = Self::start_in(tempfile::tempdir().unwrap(), limits).await;
        api.create("/api/v1/namespaces", json!({"metadata": {"name": "test"}})).await;
        api
    }

    /// Another server on the data as they are now: what is left after a kill -9 at this moment.
    pub async fn start_on_copy(&self) -> Self {
        Self::start_in(self.copy(), Limits::default()).await
    }

    /// The data as they are now.
    pub fn copy(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in ["store/db", "store/conf", "store/acknowledged", "pki/ca.crt", "pki/ca.key"] {
            let to = copy.path().join(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(self.dir.path().join(file), to).unwrap();
        }
        copy
    }

    async fn start_in(dir: TempDir, limits: Limits) -> Self {
        let mut server = Server::open(config(&dir)).await.unwrap();
        server.limits = limits;
        Self::serve(dir, server)
    }

    /// A server that is open.
    pub fn serve(dir: TempDir, server: Server) -> Self {
        let url = format!("https://{}", server.address());
        let pki = Pki::load(&pki_dir(dir.path())).unwrap();
        let admin = client(&pki.kubeconfig(&pki.issue_admin().unwrap(), &url).unwrap());
        let stop = CancellationToken::new();
        let served = tokio::spawn(server.serve(stop.clone()));
        Api { dir, url, admin, stop, served }
    }

    /// A join token of the server's own making, for a request such as `{"uses": 1}`.
    pub async fn token(&self, spec: Value) -> JoinToken {
        let made = self.create("/apis/minisvc.io/v1/jointokens", json!({"spec": spec})).await;
        made.str_at("/status/token").unwrap().parse().unwrap()
    }

    /// Asks for a node's certificate: code and answer.
    pub async fn ask(&self, client: &Plain, node: &str, bearer: &str, csr: &str) -> (u16, Value) {
        let url = format!("{}/apis/minisvc.io/v1/nodes/{node}/certificate", self.url);
        let mut request = client.http.post(url).json(&json!({"csr": csr}));
        if !bearer.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Lets a machine join as this node, as an agent does it.
    pub async fn join(&self, node: &str, token: &JoinToken) -> Machine {
        let key = KeyPair::generate().unwrap();
        let (code, answer) = self.ask(&self.plain(false), node, &token.bearer(), &csr(&key)).await;
        assert_eq!(code, 200, "{answer}");
        Machine { key: key.serialize_pem(), answer: serde_json::from_value(answer).unwrap() }
    }

    /// TLS as a client with this certificate and key.
    pub fn tls_with(&self, certificate: &str, key: &str) -> rustls::ClientConfig {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        self.tls_builder().with_client_auth_cert(certificates(certificate), key).unwrap()
    }

    /// A plain HTTP client with this certificate and key.
    pub fn plain_with(&self, certificate: &str, key: &str) -> Plain {
        let tls = self.tls_with(certificate, key);
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
        Plain { http, url: self.url.clone() }
    }

    fn tls_builder(&self) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(self.pki().ca_pem()) {
            roots.add(certificate).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
    }

    pub fn pki(&self) -> Pki {
        Pki::load(&pki_dir(self.dir.path())).unwrap()
    }

    /// A client with the certificate of a node that joined just now.
    pub async fn node(&self, name: &str) -> Client {
        let token = self.token(json!({})).await;
        let machine = self.join(name, &token).await;
        let base64 = |pem: &str| STANDARD.encode(pem);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {
                "server": self.url, "certificate-authority-data": base64(&machine.answer.ca),
            }}],
            "users": [{"name": "a", "user": {
                "client-certificate-data": base64(&machine.answer.certificate),
                "client-key-data": base64(&machine.key),
            }}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        });
        client(&kubeconfig.to_string())
    }

    /// TLS as a client, with the admin's certificate or without any.
    pub fn tls(&self, with_certificate: bool, alpn: &[&str]) -> rustls::ClientConfig {
        let mut tls = if with_certificate {
            let admin = self.pki().issue_admin().unwrap();
            self.tls_with(&admin.certificate_pem(), &admin.key_pem())
        } else {
            self.tls_builder().with_no_client_auth()
        };
        tls.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        tls
    }

    /// A plain HTTP client, with the admin's certificate or without any.
    pub fn plain(&self, with_certificate: bool) -> Plain {
        let tls = self.tls(with_certificate, &["h2", "http/1.1"]);
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
        Plain { http, url: self.url.clone() }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("https://").unwrap()
    }

    /// A connection on which nothing was said yet, with the admin's certificate or without any.
    pub async fn raw(&self, with_certificate: bool) -> TlsStream<TcpStream> {
        self.raw_with(self.tls(with_certificate, &["http/1.1"])).await.unwrap()
    }

    /// The same with this TLS.
    pub async fn raw_with(&self, tls: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address()).await?;
        TlsConnector::from(Arc::new(tls)).connect("localhost".try_into().unwrap(), tcp).await
    }

    pub async fn create(&self, path: &str, object: Value) -> Object {
        let target = Target::parse(path).unwrap();
        self.admin.create(&target, &serde_json::from_value(object).unwrap(), false).await.unwrap()
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.served.await.unwrap().unwrap();
    }
}

/// A machine that joined.
pub struct Machine {
    pub key: String,
    pub answer: CertificateAnswer,
}

/// A request for a certificate of this key.
pub fn csr(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

fn client(kubeconfig: &str) -> Client {
    Client::from_kubeconfig(&Kubeconfig::from_yaml(kubeconfig).unwrap()).unwrap()
}

/// Requests as they are written, and answers with their codes.
pub struct Plain {
    pub http: reqwest::Client,
    pub url: String,
}

impl Plain {
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        let request = self.http.request(method, format!("{}{path}", self.url)).body(body);
        let request =
            if media_type.is_empty() { request } else { request.header(header::CONTENT_TYPE, media_type) };
        request.send().await.unwrap()
    }

    /// Code and JSON of an answer.
    pub async fn answer(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> (u16, Value) {
        let answer = self.send(method, path, media_type, body).await;
        let code = answer.status().as_u16();
        let bytes = answer.bytes().await.unwrap();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|e| panic!("{path}: {code}: {e}: {}", String::from_utf8_lossy(&bytes)));
        (code, value)
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.answer(Method::GET, path, "", "").await
    }
}

pub fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}})
}

pub fn pod(name: &str, node: &str) -> Value {
    let containers =
        json!([{"name": "main", "command": ["minisvc", "echo"]}, {"name": "side", "command": ["true"]}]);
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": containers}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

pub const PODS: &str = "/api/v1/namespaces/test/pods";
pub const SERVICES: &str = "/api/v1/namespaces/test/services";

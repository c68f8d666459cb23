//! A GET of a container. Certificates are not looked at, as Kubernetes does not: it is the container that is asked for, at its
//! address, and nothing is told to it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// As many are followed.
const REDIRECTIONS: usize = 10;

/// What is asked, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    target: SocketAddr,
    tls: bool,
    path: String,
    headers: Vec<(String, String)>,
    any_status: bool,
}

impl Get {
    /// The fault is one line for the user.
    pub fn of(get: &HTTPGetAction, target: SocketAddr) -> Result<Self, String> {
        let path = get.path.clone().unwrap_or_default();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let mut headers: Vec<_> =
            get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let own = [
            ("Host", target.to_string()),
            ("User-Agent", "minisvc-probe".into()),
            ("Accept", "*/*".into()),
            ("Connection", "close".into()),
        ];
        for (name, value) in own {
            if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
                headers.push((name.into(), value));
            }
        }
        let tls = get.scheme.as_deref() == Some("HTTPS");
        let get = Get { target, tls, path, headers, any_status: false };
        get.request().map_err(|e| format!("httpGet: {e}"))?;
        Ok(get)
    }

    /// Any answer will be good.
    pub fn with_any_status(self) -> Self {
        Get { any_status: true, ..self }
    }

    fn request(&self) -> Result<http::Request<Empty<Bytes>>, http::Error> {
        let mut request = http::Request::get(self.path.as_str());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new())
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.target, self.path)
    }

    /// Asks once. A redirection is followed while it stays with this host. [pkg/probe/http, RedirectChecker]
    pub async fn ask(&self) -> Result<(), String> {
        let mut get = self.clone();
        for _ in 0..=REDIRECTIONS {
            let answer = get.once().await.map_err(|why| format!("Get \"{}\": {why}", get.url()))?;
            if let Some(next) = get.redirected(&answer) {
                get = next;
                continue;
            }
            let code = answer.status().as_u16();
            return if self.any_status || (200..400).contains(&code) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {code}"))
            };
        }
        Err(format!("Get \"{}\": stopped after {REDIRECTIONS} redirects", get.url()))
    }

    async fn once(&self) -> Result<http::Response<()>, String> {
        let stream = TcpStream::connect(self.target).await.map_err(|e| super::dial(self.target, &e))?;
        if !self.tls {
            return self.exchange(stream).await;
        }
        let connector = TlsConnector::from(config().ok_or("no TLS")?);
        let name = ServerName::IpAddress(self.target.ip().into());
        self.exchange(connector.connect(name, stream).await.map_err(|e| e.to_string())?).await
    }

    /// The head of the answer.
    async fn exchange(&self, io: impl AsyncRead + AsyncWrite + Unpin) -> Result<http::Response<()>, String> {
        let text = |e: &dyn std::error::Error| e.to_string();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| text(&e))?;
        let request = self.request().map_err(|e| text(&e))?;
        let answer = sender.send_request(request);
        tokio::pin!(answer, connection);
        tokio::select! {
            biased;
            answer = &mut answer => answer.map(|a| a.map(drop)).map_err(|e| text(&e)),
            Err(e) = &mut connection => Err(text(&e)),
        }
    }

    /// Where the answer leads, if that is here.
    fn redirected(&self, answer: &http::Response<()>) -> Option<Self> {
        if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return None;
        }
        let location = answer.headers().get("location")?.to_str().ok()?;
        let mut next = self.clone();
        if location.contains("://") {
            let uri: http::Uri = location.parse().ok()?;
            let host: IpAddr = uri.host()?.trim_matches(['[', ']']).parse().ok()?;
            next.tls = uri.scheme_str()? == "https";
            next.target = SocketAddr::new(host, uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 }));
            uri.path_and_query().map_or("/", |p| p.as_str()).clone_into(&mut next.path);
        } else if location.starts_with('/') {
            location.clone_into(&mut next.path);
        } else {
            let path = self.path.split('?').next().unwrap_or("/");
            let (directory, _) = path.rsplit_once('/')?;
            next.path = format!("{directory}/{location}");
        }
        (next.target.ip() == self.target.ip() && next.request().is_ok()).then_some(next)
    }
}

/// Trusts everybody.
fn config() -> Option<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(ring::default_provider());
        let anybody = Arc::new(Anybody(provider.clone()));
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.ok()?.dangerous().with_custom_certificate_verifier(anybody);
        Some(Arc::new(builder.with_no_client_auth()))
    };
    CONFIG.get_or_init(make).clone()
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{super::tests::*, *};

    /// Answers one request after the other with these statuses, and returns what was asked.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, status: &str) -> String {
        let mut buffer = [0; 1024];
        let n = stream.read(&mut buffer).await.unwrap();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[tokio::test]
    async fn a_server_is_asked_with_its_headers_and_a_bad_status_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            for status in ["200 OK", "503 Busy"] {
                seen.push(serve(listener.accept().await.unwrap().0, status).await);
            }
            seen
        });
        let get = of_probe(json!({"httpGet": {"port": port, "path": "healthz",
            "httpHeaders": [{"name": "X-Who", "value": "probe"}]}}))
        .unwrap();
        assert_eq!(get.ask(&place()).await, Ok(()));
        assert_eq!(get.ask(&place()).await, Err("HTTP probe failed with statuscode: 503".into()));
        let seen = server.await.unwrap();
        assert!(seen[0].starts_with("GET /healthz HTTP/1.1\r\n"), "{}", seen[0]);
        assert!(seen[0].to_lowercase().contains("x-who: probe\r\n"), "{}", seen[0]);
        // The listener is gone.
        let why = get.ask(&place()).await.unwrap_err();
        let at = format!("127.0.0.1:{port}");
        assert_eq!(why, format!("Get \"http://{at}/healthz\": dial tcp {at}: connect: connection refused"));
    }

    #[tokio::test]
    async fn redirections_are_followed_while_they_stay_here() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let here = format!("302 Found\r\nLocation: http://127.0.0.1:{port}/b/c?d");
        let get = of_probe(json!({"httpGet": {"port": port, "path": "/a"}})).unwrap();
        let loops = vec!["307 Again\r\nLocation: /a"; 11];
        // What is answered, what is asked, what comes of it.
        type Case<'a> = (&'a [&'a str], &'a [&'a str], Result<(), String>);
        let cases: [Case<'_>; 4] = [
            (
                &[&here, "308 On\r\nLocation: e", "503 Busy"],
                &["/a", "/b/c?d", "/b/e"],
                Err("HTTP probe failed with statuscode: 503".into()),
            ),
            (&[&here, "200 OK"], &["/a", "/b/c?d"], Ok(())),
            // Elsewhere nobody is asked; that it answers is good enough.
            (&["302 Found\r\nLocation: http://192.0.2.1/"], &["/a"], Ok(())),
            (
                &loops,
                &["/a"; 11],
                Err(format!("Get \"http://127.0.0.1:{port}/a\": stopped after 10 redirects")),
            ),
        ];
        for (answers, asked, want) in cases {
            let serving = async {
                let mut paths = Vec::new();
                for answer in answers {
                    let text = serve(listener.accept().await.unwrap().0, answer).await;
                    paths.push(text.split(' ').nth(1).unwrap().to_owned());
                }
                paths
            };
            let place = place();
            let (said, paths) = tokio::join!(get.ask(&place), serving);
            assert_eq!((said, paths), (want, asked.iter().map(|p| (*p).to_owned()).collect()));
        }
    }

    #[tokio::test]
    async fn https_is_asked_whoever_signed_the_certificate() {
        let signed = rcgen::generate_simple_self_signed(["elsewhere.test".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve(acceptor.accept(stream).await.unwrap(), "204 Fine").await
        });
        let get = of_probe(json!({"httpGet": {"port": port, "scheme": "HTTPS"}})).unwrap();
        assert_eq!(get.ask(&place()).await, Ok(()));
        assert!(server.await.unwrap().starts_with("GET / HTTP/1.1\r\n"));
    }
}

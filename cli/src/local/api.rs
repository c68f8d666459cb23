//! The few requests that `up` and the relay make, with the administrator's kubeconfig that the server printed.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use reqwest::Method;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;

/// The API, reached through the relay.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

impl Api {
    /// From a kubeconfig with one cluster and one user.
    pub fn from_kubeconfig(path: &Path) -> anyhow::Result<Api> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let config: Kubeconfig = serde_saphyr::from_str(&text)
            .map_err(|e| anyhow!("{e}"))
            .with_context(|| path.display().to_string())?;
        let cluster = &config.clusters.first().context("a kubeconfig without a cluster")?.cluster;
        let user = &config.users.first().context("a kubeconfig without a user")?.user;
        let decode = |s: &str| base64::engine::general_purpose::STANDARD.decode(s.trim());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&decode(&cluster.certificate_authority_data)?) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&decode(&user.client_certificate_data)?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&decode(&user.client_key_data)?)?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Somebody's proxy is no way to 127.0.0.1.
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
        Ok(Api { http, url: cluster.server.trim_end_matches('/').to_owned() })
    }

    /// One request; an answer that is no success is an error with the server's message.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if !status.is_success() {
            let message = answer.get("message").and_then(Value::as_str).unwrap_or("no message");
            bail!("{message} ({status})");
        }
        Ok(answer)
    }

    /// Lists, then calls `changed` with the whole list again after every change, until the watch ends.
    pub async fn follow(&self, path: &str, mut changed: impl AsyncFnMut(&[Value])) -> anyhow::Result<()> {
        let list = self.request(Method::GET, path, None).await?;
        let revision = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or("0");
        let mut items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        changed(&items).await;
        let url =
            format!("{}{path}?watch=true&allowWatchBookmarks=true&resourceVersion={revision}", self.url);
        let mut response = self.http.get(url).send().await?.error_for_status()?;
        let mut pending = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            pending.extend_from_slice(&chunk);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event: Value = serde_json::from_slice(&line)?;
                if apply(&mut items, &event)? {
                    changed(&items).await;
                }
            }
        }
        Ok(())
    }
}

/// Brings a list up to date with a watch event; says whether it changed.
fn apply(items: &mut Vec<Value>, event: &Value) -> anyhow::Result<bool> {
    let object = event.get("object").context("a watch event without an object")?;
    let uid = |o: &Value| o.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
    let same = |o: &Value| uid(o).is_some() && uid(o) == uid(object);
    match event.get("type").and_then(Value::as_str) {
        Some("ADDED" | "MODIFIED") => {
            items.retain(|o| !same(o));
            items.push(object.clone());
            Ok(true)
        }
        Some("DELETED") => {
            items.retain(|o| !same(o));
            Ok(true)
        }
        Some("BOOKMARK") => Ok(false),
        _ => {
            bail!("the watch ended: {}", object.get("message").and_then(Value::as_str).unwrap_or("no reason"))
        }
    }
}

/// Name and address of the nodes that are Ready.
pub fn ready_nodes(nodes: &[Value]) -> Vec<(String, std::net::Ipv4Addr)> {
    let condition = |node: &&Value| {
        let list = node.pointer("/status/conditions").and_then(Value::as_array);
        list.is_some_and(|l| l.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    let address = |node: &Value| {
        let list = node.pointer("/status/addresses")?.as_array()?;
        list.iter().find(|a| a["type"] == "InternalIP")?.get("address")?.as_str()?.parse().ok()
    };
    let name = |node: &Value| node.pointer("/metadata/name")?.as_str().map(str::to_owned);
    nodes.iter().filter(condition).filter_map(|n| Some((name(n)?, address(n)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_change_the_list_and_errors_end_it() {
        let mut items = vec![json!({"metadata": {"uid": "a"}})];
        let event = |kind: &str, uid: &str| json!({"type": kind, "object": {"metadata": {"uid": uid}}});
        assert!(apply(&mut items, &event("ADDED", "b")).unwrap());
        assert!(apply(&mut items, &event("DELETED", "a")).unwrap());
        assert_eq!(items, [json!({"metadata": {"uid": "b"}})]);
        assert!(!apply(&mut items, &event("BOOKMARK", "")).unwrap());
        assert!(apply(&mut items, &event("ERROR", "")).is_err());
    }

    #[test]
    fn only_ready_nodes_with_an_address_serve() {
        let node = |name: &str, ready: &str| {
            json!({"metadata": {"name": name}, "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "addresses": [{"type": "InternalIP", "address": "192.168.77.11"}]}})
        };
        let ready = ready_nodes(&[node("a", "True"), node("b", "Unknown"), json!({})]);
        assert_eq!(ready, [("a".to_owned(), "192.168.77.11".parse().unwrap())]);
    }
}

//! What a machine asks to become a node, and a node to stay one.

use serde_json::json;

use super::{Client, ClientError, REQUEST_TIMEOUT, connection, tls};
use crate::{
    join::{CertificateAnswer, CertificateRequest, ClusterInfo, JoinToken},
    names::NodeName,
};

/// Asks the server at this URL for a node's certificate. The token's secret is sent only to a server of the token's cluster.
pub async fn join(
    server: &str,
    token: &JoinToken,
    node: &NodeName,
    request: &CertificateRequest,
) -> Result<CertificateAnswer, ClientError> {
    let client = Client::pinned(server, &token.ca_hash)?;
    let post = client.http.post(client.url(&path(node))).bearer_auth(token.bearer()).json(request);
    client.decode(post.timeout(REQUEST_TIMEOUT)).await
}

impl Client {
    /// A client that is nobody, for a server that is known by the hash of its CA.
    pub fn pinned(server: &str, ca_hash: &str) -> Result<Self, ClientError> {
        let http = connection(tls::pinned_config(ca_hash, &[b"http/1.1"])?)?;
        Ok(Client { server: server.to_owned(), http1: http.clone(), http })
    }

    /// Asks whether the server is ready; its time, as it says it.
    pub async fn health(&self) -> Result<Option<String>, ClientError> {
        let get = self.http.get(self.url("/readyz")).timeout(REQUEST_TIMEOUT);
        let answer = self.send(get).await?;
        let date = answer.headers().get(reqwest::header::DATE).and_then(|d| d.to_str().ok());
        Ok(date.map(str::to_owned))
    }

    /// A new certificate for the node that we are.
    pub async fn renew(
        &self,
        node: &NodeName,
        request: &CertificateRequest,
    ) -> Result<CertificateAnswer, ClientError> {
        self.json(reqwest::Method::POST, &path(node), Some(&json!(request))).await
    }

    /// What all nodes must agree on.
    pub async fn cluster(&self) -> Result<ClusterInfo, ClientError> {
        self.json(reqwest::Method::GET, "/apis/minisvc.io/v1/cluster", None).await
    }
}

fn path(node: &NodeName) -> String {
    format!("/apis/minisvc.io/v1/nodes/{node}/certificate")
}

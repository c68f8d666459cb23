//! Files in kubeconfig format: where the server is and who we are.

use std::{fs, path::Path, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::ClientError;

/// A kubeconfig: the parts that minisvc reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Kubeconfig {
    /// Always `v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Always `Config`.
    pub kind: String,
    /// Which of the contexts is used.
    pub current_context: String,
    /// Servers.
    pub clusters: Vec<NamedCluster>,
    /// Credentials.
    pub users: Vec<NamedUser>,
    /// A server with credentials.
    pub contexts: Vec<NamedContext>,
    /// Relative files are beside the kubeconfig.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// An entry of `clusters`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCluster {
    /// Its name.
    pub name: String,
    /// The server.
    pub cluster: Cluster,
}

/// A server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Cluster {
    /// Its URL.
    pub server: String,
    /// PEM in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// A PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<PathBuf>,
}

/// An entry of `users`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedUser {
    /// Its name.
    pub name: String,
    /// The credentials.
    pub user: User,
}

/// Credentials: a client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct User {
    /// PEM in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// PEM in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    /// A PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// A PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
}

/// An entry of `contexts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedContext {
    /// Its name.
    pub name: String,
    /// What it joins.
    pub context: Context,
}

/// A cluster with a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// A name of `clusters`.
    pub cluster: String,
    /// A name of `users`.
    pub user: String,
    /// The namespace where none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A certificate with its key, and who made it, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The CA's certificate.
    pub ca: Vec<u8>,
    /// The certificate, and those between it and the CA.
    pub certificate: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

/// What the current context comes to, in PEM.
pub(super) struct Access {
    pub server: String,
    pub ca: Vec<u8>,
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Kubeconfig {
    /// From YAML (or JSON, which is YAML).
    pub fn from_yaml(text: &str) -> Result<Self, ClientError> {
        serde_saphyr::from_str(text).map_err(|e| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default();
            ClientError::Config(format!("not a kubeconfig: {}", line.trim_start_matches("error: ")))
        })
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ClientError> {
        let text = fs::read_to_string(path).map_err(|e| {
            ClientError::Config(format!("cannot read the configuration {}: {e}", path.display()))
        })?;
        let mut config =
            Self::from_yaml(&text).map_err(|e| ClientError::Config(format!("{}: {e}", path.display())))?;
        config.directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(config)
    }

    /// The entry that `current-context` names.
    pub fn context(&self) -> Result<&Context, ClientError> {
        let name = &self.current_context;
        self.contexts.iter().find(|c| c.name == *name).map(|c| &c.context).ok_or_else(|| {
            ClientError::Config(format!("current-context: \"{name}\" is not among the contexts"))
        })
    }

    /// The URL of the current context's server.
    pub fn server(&self) -> Result<&str, ClientError> {
        Ok(&self.cluster(self.context()?)?.server)
    }

    fn cluster(&self, context: &Context) -> Result<&Cluster, ClientError> {
        let found = self.clusters.iter().find(|c| c.name == context.cluster);
        found.map(|c| &c.cluster).ok_or_else(|| {
            ClientError::Config(format!("cluster \"{}\" is not among the clusters", context.cluster))
        })
    }

    /// The client certificate of the current context with its key, and the CA that both sides trust.
    pub fn credentials(&self) -> Result<Credentials, ClientError> {
        let access = self.access()?;
        let (certificate, key) = access.identity.ok_or_else(|| {
            ClientError::Config("client-certificate-data: required, with client-key-data".into())
        })?;
        Ok(Credentials { ca: access.ca, certificate, key })
    }

    pub(super) fn access(&self) -> Result<Access, ClientError> {
        let context = self.context()?;
        let user = self.users.iter().find(|u| u.name == context.user).ok_or_else(|| {
            ClientError::Config(format!("user \"{}\" is not among the users", context.user))
        })?;
        let (cluster, user) = (self.cluster(context)?, &user.user);
        let server = cluster.server.trim_end_matches('/').to_owned();
        if !server.starts_with("https://") {
            return Err(ClientError::Config(format!("server: \"{server}\" is no https:// URL")));
        }
        let pem = |field, data: &Option<String>, file: &Option<PathBuf>| {
            self.pem(field, data.as_deref(), file.as_deref())
        };
        let ca = pem(
            "certificate-authority",
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
        )?;
        let cert = pem("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
        let key = pem("client-key", &user.client_key_data, &user.client_key)?;
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(ClientError::Config(
                    "client-key-data: required with client-certificate-data".into(),
                ));
            }
            (None, Some(_)) => {
                return Err(ClientError::Config(
                    "client-certificate-data: required with client-key-data".into(),
                ));
            }
        };
        let ca =
            ca.ok_or_else(|| ClientError::Config("certificate-authority-data: required, in base64".into()))?;
        Ok(Access { server, ca, identity })
    }

    fn pem(
        &self,
        field: &str,
        data: Option<&str>,
        file: Option<&Path>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        match (data, file) {
            (Some(data), _) => STANDARD
                .decode(data.trim())
                .map(Some)
                .map_err(|e| ClientError::Config(format!("{field}-data: not base64: {e}"))),
            (None, Some(file)) => {
                let file = self.directory.join(file);
                fs::read(&file)
                    .map(Some)
                    .map_err(|e| ClientError::Config(format!("{field}: cannot read {}: {e}", file.display())))
            }
            (None, None) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: k\n  cluster:\n    \
        server: https://127.0.0.1:7443/\n    certificate-authority-data: Q0E=\nusers:\n- name: u\n  user:\n    \
        client-certificate-data: Q0VSVA==\n    client-key-data: S0VZ\ncontexts:\n- name: c\n  context: {cluster: k, user: u}\n";

    #[test]
    fn the_current_context_is_followed() {
        let access = Kubeconfig::from_yaml(YAML).unwrap().access().unwrap();
        assert_eq!(access.server, "https://127.0.0.1:7443");
        assert_eq!(access.ca, b"CA");
        assert_eq!(access.identity, Some((b"CERT".to_vec(), b"KEY".to_vec())));
    }

    #[test]
    fn a_fault_names_its_field() {
        let fault = |yaml: String| Kubeconfig::from_yaml(&yaml).unwrap().access().err().unwrap().to_string();
        assert!(
            fault(YAML.replace("current-context: c", "current-context: d"))
                .starts_with("current-context: \"d\"")
        );
        assert!(fault(YAML.replace("Q0E=", "'?'")).starts_with("certificate-authority-data: not base64"));
        assert!(Kubeconfig::from_yaml("a: [").is_err());
    }
}

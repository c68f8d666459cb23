//! What the agent keeps of its membership: `node.kubeconfig` in its data directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use minisvc_proto::{
    NodeName,
    client::{Kubeconfig, key_hash, kubeconfig as file},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;

const FILE: &str = "node.kubeconfig";
const USER_PREFIX: &str = "system:node:";

/// The server, its CA, and the node's certificate with its key.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As it is in the file.
    pub kubeconfig: Kubeconfig,
    /// What it says.
    pub facts: Facts,
}

/// What can be read in the credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The URL of the server.
    pub server: String,
    /// The hash of the CA's key, as tokens name it.
    pub ca_hash: String,
    /// Whose certificate it is.
    pub node: NodeName,
    /// When it begins.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
}

impl Stored {
    /// From what the server gave; an error says what is wrong with it.
    pub fn new(server: &str, ca: &str, certificate: &str, key: &str) -> Result<Self, String> {
        let data = |pem: &str| Some(STANDARD.encode(pem));
        let name = "minisvc".to_owned();
        let kubeconfig = Kubeconfig {
            api_version: "v1".into(),
            kind: "Config".into(),
            current_context: name.clone(),
            clusters: vec![file::NamedCluster {
                name: name.clone(),
                cluster: file::Cluster {
                    server: server.to_owned(),
                    certificate_authority_data: data(ca),
                    certificate_authority: None,
                },
            }],
            users: vec![file::NamedUser {
                name: name.clone(),
                user: file::User {
                    client_certificate_data: data(certificate),
                    client_key_data: data(key),
                    ..file::User::default()
                },
            }],
            contexts: vec![file::NamedContext {
                name: name.clone(),
                context: file::Context { cluster: name.clone(), user: name, namespace: None },
            }],
            directory: PathBuf::new(),
        };
        let facts = facts(&kubeconfig)?;
        Ok(Stored { kubeconfig, facts })
    }

    /// What an earlier agent kept in this data directory.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE);
        let metadata = match fs::metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| IdentityError::file(&path, &e))?,
        };
        let damaged = |why: String| IdentityError::File { path: path.clone(), why };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(damaged(format!(
                "its mode is {mode:04o}, so others can read the node's key; 0600 would be right"
            )));
        }
        let kubeconfig = Kubeconfig::load(&path)?;
        let facts = facts(&kubeconfig).map_err(|why| {
            damaged(format!("{why}; remove the file and start the agent with a new token to join anew"))
        })?;
        Ok(Some(Stored { kubeconfig, facts }))
    }

    /// Keeps it: whole or not at all, on disk, for the owner alone.
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        let write = || -> io::Result<()> {
            let temporary = path.with_extension("new");
            match fs::remove_file(&temporary) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
            // JSON is YAML.
            serde_json::to_writer_pretty(&mut file, &self.kubeconfig)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(data_dir)?.sync_all()
        };
        write().map_err(|e| IdentityError::file(&path, &e))
    }

    /// The same node at another URL of its server.
    pub fn moved_to(&self, server: &str) -> Self {
        let mut moved = self.clone();
        server.clone_into(&mut moved.facts.server);
        for cluster in &mut moved.kubeconfig.clusters {
            server.clone_into(&mut cluster.cluster.server);
        }
        moved
    }
}

fn facts(kubeconfig: &Kubeconfig) -> Result<Facts, String> {
    let credentials = kubeconfig.credentials().map_err(|e| e.to_string())?;
    let der = |what: &str, pem: &[u8]| {
        CertificateDer::from_pem_slice(pem).map_err(|e| format!("{what} cannot be read ({e})"))
    };
    let ca_hash = key_hash(&der("the CA's certificate", &credentials.ca)?)
        .ok_or_else(|| "the CA's certificate cannot be read".to_owned())?;
    let certificate = der("the node's certificate", &credentials.certificate)?;
    let (_, parsed) = X509Certificate::from_der(&certificate)
        .map_err(|e| format!("the node's certificate cannot be read ({e})"))?;
    let user = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or("");
    let node = user
        .strip_prefix(USER_PREFIX)
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| format!("the certificate is that of {user:?}, not of a node"))?;
    let time =
        |t: &x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).map_err(|e| e.to_string());
    Ok(Facts {
        server: kubeconfig.server().map_err(|e| e.to_string())?.trim_end_matches('/').to_owned(),
        ca_hash,
        node,
        not_before: time(&parsed.validity().not_before)?,
        not_after: time(&parsed.validity().not_after)?,
    })
}

use std::{fs, os::unix::fs::PermissionsExt};

use minisvc_proto::client::Kubeconfig;
use rcgen::KeyPair;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::{authority::ca_files, *};

fn open(dir: &Path) -> Pki {
    Pki::open(dir).unwrap()
}

fn serve(pki: &Pki, names: &[&str], ips: &[&str]) -> ServerConfig {
    let reached =
        Reached::new(names.iter().map(|n| (*n).to_owned()), ips.iter().map(|ip| ip.parse().unwrap()));
    pki.server_config(pki.serving(reached).unwrap()).unwrap()
}

/// Both sides of a handshake in memory, and the certificate that the client showed.
fn handshake(client: ClientConfig, name: &str, server: ServerConfig) -> Result<usize, rustls::Error> {
    let mut client = ClientConnection::new(Arc::new(client), name.to_owned().try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(server.peer_certificates().map_or(0, <[_]>::len))
}

#[test]
fn the_ca_outlives_restarts_and_the_servers_certificate_follows_its_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let first = open(&pki);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&pki), mode(&pki.join("ca.key"))), (0o700, 0o600));

    let again = open(&pki);
    assert_eq!(again.ca_pem(), first.ca_pem());
    let client = || first.client_config_for_agents().unwrap();
    let here = serve(&first, &["localhost"], &["127.0.0.1"]);
    let moved = serve(&again, &[], &["10.0.0.1"]);
    assert_eq!(handshake(client(), "127.0.0.1", here.clone()), Ok(1));
    assert_eq!(handshake(client(), "localhost", here.clone()), Ok(1));
    assert_eq!(handshake(client(), "10.0.0.1", moved.clone()), Ok(1));
    assert!(handshake(client(), "127.0.0.1", moved).is_err());

    let stranger = open(&dir.path().join("other"));
    let with_foreign_ca = stranger.client_config_for_agents().unwrap();
    assert!(handshake(with_foreign_ca, "127.0.0.1", here).is_err());
}

#[test]
fn a_node_cannot_pose_as_the_api_server_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let node = pki.issue_node(&"localhost".parse().unwrap()).unwrap();
    let posing = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![node.der()], node.private_key())
        .unwrap();
    let client = || pki.client_config_for_agents().unwrap();
    assert!(handshake(client(), "localhost", posing.clone()).is_err());
    assert!(handshake(client(), &node_tls_name("localhost"), posing).is_ok());
}

#[test]
fn a_kubeconfig_is_read_by_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let node = pki.issue_node(&"node-1".parse().unwrap()).unwrap();
    let config = Kubeconfig::from_yaml(&pki.kubeconfig(&node, "https://10.0.0.1:7443").unwrap()).unwrap();
    assert_eq!(config.clusters[0].cluster.server, "https://10.0.0.1:7443");
    assert_eq!(config.users[0].name, "system:node:node-1");
    minisvc_proto::client::Client::from_kubeconfig(&config).expect("the credentials fit together");
}

#[test]
fn a_ca_that_cannot_be_used_is_one_clear_line_and_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let load = || Pki::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(Pki::load(dir.path()).is_err_and(|e| e.to_string().ends_with("makes it at its first start")));
    open(dir.path());
    let (certificate, key) = ca_files(dir.path());
    let good = fs::read(&key).unwrap();

    fs::write(&key, "no key").unwrap();
    assert!(load().starts_with(&key.display().to_string()), "{}", load());
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(load().ends_with("its key is not the one in ca.key beside it"), "{}", load());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load().contains("its mode is 0644"), "{}", load());
    fs::remove_file(&key).unwrap();
    assert!(load().contains("restore it from a backup"), "{}", load());

    files::write(&key, &good).unwrap();
    assert_eq!(load(), "");
    // Cut off between the two files: nothing was issued yet, so a new CA is made.
    fs::remove_file(&certificate).unwrap();
    assert_eq!(load(), "");
}

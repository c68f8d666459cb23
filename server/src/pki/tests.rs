use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use minisvc_proto::client::Kubeconfig;
use rcgen::KeyPair;
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject};

use super::{
    authority::ca_files,
    serving::{Remake, Served, remake},
    *,
};

fn open(dir: &Path) -> Pki {
    Pki::open(dir).unwrap()
}

fn serve(pki: &Pki, names: &[&str], ips: &[&str]) -> ServerConfig {
    let reached =
        Reached::new(names.iter().map(|n| (*n).to_owned()), ips.iter().map(|ip| ip.parse().unwrap()));
    pki.server_config(pki.serving(reached).unwrap()).unwrap()
}

/// What a machine has that joined as this node.
fn node_certificate(
    pki: &Pki,
    name: &str,
    validity: Validity,
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = Request::from_pem(&csr).unwrap();
    let pem = pki.sign_node(&request, &name.parse().unwrap(), "identity", validity).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    (CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), key)
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
    let (node, key) = node_certificate(&pki, "localhost", Validity::now(Duration::from_hours(1)));
    let posing = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![node], key)
        .unwrap();
    let client = || pki.client_config_for_agents().unwrap();
    assert!(handshake(client(), "localhost", posing.clone()).is_err());
    assert!(handshake(client(), &node_tls_name("localhost"), posing).is_ok());
}

#[test]
fn a_kubeconfig_is_read_by_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let admin = pki.issue_admin().unwrap();
    let config = Kubeconfig::from_yaml(&pki.kubeconfig(&admin, "https://10.0.0.1:7443").unwrap()).unwrap();
    assert_eq!(config.clusters[0].cluster.server, "https://10.0.0.1:7443");
    assert_eq!(config.users[0].name, "minisvc-admin");
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

fn at(base: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { base - by } else { base + by }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A machine whose clock says `time` takes a node's certificate, as the server does, and the server's, as an agent does.
#[test]
fn clocks_may_differ_by_an_hour_and_certificates_end() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let now = SystemTime::now();
    let (node, _) = node_certificate(&pki, "node-1", Validity::at(now, Duration::from_hours(30 * 24)));
    let clients =
        WebPkiClientVerifier::builder_with_provider(pki.roots().unwrap(), provider()).build().unwrap();
    let agents =
        WebPkiServerVerifier::builder_with_provider(pki.roots().unwrap(), provider()).build().unwrap();
    let reached = || Reached::new([], ["10.0.0.1".parse().unwrap()]);
    let serving = pki.serving(reached()).unwrap();
    let server = serving.chain();
    let (ip, name) = ("10.0.0.1".try_into().unwrap(), "node-1.nodes.minisvc.internal".try_into().unwrap());
    for (seconds, node_good, server_good) in [
        (-2 * DAY, false, false),
        (-23 * HOUR, true, true),
        (-HOUR, true, true),
        (0, true, true),
        (HOUR, true, true),
        (29 * DAY, true, true),
        (30 * DAY + HOUR, false, true),
        (90 * DAY + HOUR, false, false),
    ] {
        let time = unix(at(now, seconds));
        let as_client = clients.verify_client_cert(&node, &[], time);
        let as_server = agents.verify_server_cert(&node, &[], &name, &[], time);
        assert_eq!((as_client.is_ok(), as_server.is_ok()), (node_good, node_good), "{seconds}");
        let seen = agents.verify_server_cert(&server[0], &server[1..], &ip, &[], time);
        assert_eq!(seen.is_ok(), server_good, "{seconds}: {seen:?}");
    }
    // The chain ends in the CA that a join token names.
    let (_, ca) = x509_parser::parse_x509_certificate(&server[1]).unwrap();
    assert_eq!(minisvc_proto::digest::sha256_hex(ca.public_key().raw), pki.ca_hash());
}

#[test]
fn the_served_certificate_is_made_anew_before_it_ends_and_when_addresses_change() {
    let now = SystemTime::now();
    let reached = |ips: &[&str]| Reached::new(["a".into()], ips.iter().map(|ip| ip.parse().unwrap()));
    let served = Served { reached: reached(&["10.0.0.1"]), not_after: at(now, 90 * DAY) };
    for (ips, seconds, expected) in [
        (vec!["10.0.0.1"], 0, None),
        (vec!["10.0.0.1", "10.0.0.1"], 59 * DAY, None),
        (vec!["10.0.0.1"], 61 * DAY, Some(Remake::Age)),
        (vec!["10.0.0.1"], 200 * DAY, Some(Remake::Age)),
        (vec!["10.0.0.2"], 0, Some(Remake::Addresses)),
        (vec!["10.0.0.1", "10.0.0.2"], 61 * DAY, Some(Remake::Addresses)),
    ] {
        assert_eq!(remake(&served, &reached(&ips), at(now, seconds)), expected, "{ips:?} {seconds}");
    }

    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path());
    let serving = pki.serving(reached(&["10.0.0.1"])).unwrap();
    let config = pki.server_config(serving.clone()).unwrap();
    let client = || pki.client_config_for_agents().unwrap();
    assert!(handshake(client(), "10.0.0.2", config.clone()).is_err());
    assert_eq!(serving.refresh(&pki, reached(&["10.0.0.1"]), now).unwrap(), None);
    let moved = reached(&["10.0.0.1", "10.0.0.2"]);
    assert_eq!(serving.refresh(&pki, moved.clone(), now).unwrap(), Some(Remake::Addresses));
    assert_eq!(handshake(client(), "10.0.0.2", config), Ok(1));
    let before = serving.chain();
    assert_eq!(serving.refresh(&pki, moved, at(now, 61 * DAY)).unwrap(), Some(Remake::Age));
    assert_ne!(serving.chain(), before);
    assert_eq!(serving.refresh(&pki, serving.served().reached.clone(), at(now, 61 * DAY)).unwrap(), None);
}

use std::time::Duration;

use minisvc_proto::join::BACKDATED;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;

/// Credentials of a CA of their own, with the token that would have given them.
fn credentials(node: &str, life: Duration) -> (Stored, JoinToken) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::from_ca_cert_der(ca.der(), ca_key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let now = std::time::SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + life).into();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let stored = Stored::new("https://a:7443", &ca.pem(), &certificate.pem(), &key.serialize_pem()).unwrap();
    let ca_hash = stored.facts.ca_hash.clone();
    (stored, JoinToken { id: "0123456789".into(), secret: "ab".repeat(32), ca_hash })
}

fn decide(
    server: Option<&str>,
    token: Option<&JoinToken>,
    node: Option<&str>,
    stored: Option<&Stored>,
) -> Result<String, String> {
    let node = node.map(|n| n.parse().unwrap());
    let asked = Asked { server, token, node: node.as_ref(), now: Timestamp::now() };
    match plan(Path::new("/data"), &asked, stored) {
        Ok(Plan::Use { stored, moved }) => Ok(format!("use {} moved={moved}", stored.facts.server)),
        Ok(Plan::Join { server, node }) => {
            Ok(format!("join {server} as {}", node.map_or("host".to_owned(), |n| n.to_string())))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_machine_joins_once_and_then_is_a_member() {
    let (stored, token) = credentials("n1", Duration::from_hours(1));
    let (_, other) = credentials("n1", Duration::from_hours(1));
    let (ended, its) = credentials("n1", Duration::from_secs(0));
    let some = Some(&stored);
    for (asked, wanted) in [
        (decide(Some("https://a:7443"), Some(&token), None, None), Ok("join https://a:7443 as host")),
        (decide(Some("https://a:7443"), Some(&token), Some("n2"), None), Ok("join https://a:7443 as n2")),
        (decide(None, None, None, some), Ok("use https://a:7443 moved=false")),
        (decide(None, Some(&token), Some("n1"), some), Ok("use https://a:7443 moved=false")),
        (decide(Some("https://b:7443"), None, None, some), Ok("use https://b:7443 moved=true")),
        (decide(None, Some(&its), None, Some(&ended)), Ok("join https://a:7443 as n1")),
        (decide(None, None, None, None), Err("/data holds no node.kubeconfig")),
        (decide(None, Some(&token), None, None), Err("--server: required")),
        (
            decide(Some("https://a:7443"), None, None, None),
            Err("--token-file: required to join https://a:7443"),
        ),
        (decide(None, Some(&other), None, some), Err("node n1 of another cluster")),
        (decide(None, None, Some("n2"), some), Err("--node-name n2: /data belongs to node n1")),
        (decide(None, None, None, Some(&ended)), Err("the certificate of node n1 ended at")),
    ] {
        match (asked, wanted) {
            (Ok(got), Ok(wanted)) => assert_eq!(got, wanted),
            (Err(got), Err(says)) => assert!(got.contains(says), "{got}"),
            (got, wanted) => panic!("{got:?}, not {wanted:?}"),
        }
    }
}

#[test]
fn what_is_kept_is_for_the_owner_alone_and_is_read_back() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    assert!(Stored::load(dir.path()).unwrap().is_none());
    let (stored, _) = credentials("n1", Duration::from_hours(1));
    stored.save(dir.path()).unwrap();
    let file = dir.path().join("node.kubeconfig");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Stored::load(dir.path()).unwrap().unwrap().facts, stored.facts);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Stored::load(dir.path()).unwrap_err().to_string().contains("0644"));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "{").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Stored::load(dir.path()).unwrap_err().to_string().contains("node.kubeconfig"));
}

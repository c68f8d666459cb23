//! Tokens that are not good, and servers that are not the right ones.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use minisvc_proto::join::JoinToken;
use minisvc_tests::machines::{ADMIN, Impostor, OfAnotherCa, WithStolenKey, World, in_room};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::{text, until};

/// The same with another last digit.
fn altered(digits: &str) -> String {
    let (head, last) = digits.split_at(digits.len() - 1);
    format!("{head}{}", if last == "0" { "1" } else { "0" })
}

#[test]
fn a_token_that_is_not_good_is_refused_in_one_line() {
    in_room("tokens::a_token_that_is_not_good_is_refused_in_one_line", |home| {
        let world = World::on_one_network(home, "tokens", &["node-1", "node-2", "elsewhere"]);
        let server = world.server(&[]);
        let elsewhere = world.machine("elsewhere");
        let other = elsewhere.start(&["server"]);
        other.until("the API is at");

        let short = world.token("--ttl 1s");
        let id = short.parse::<JoinToken>().unwrap().id;
        let end = text(&world.object(&format!("jointoken/{id}"))["spec"]["expirationTimestamp"]);
        let used = world.token("--uses 1");
        let _first = world.join("node-1", &used);
        world.ready(&["node-1"]);
        let revoked = world.token("");
        world.run(&["token", "revoke", &revoked]).ok();
        let good: JoinToken = world.token("").parse().unwrap();
        let others = elsewhere.run(&["--config", ADMIN, "token", "create"]).ok();
        let wrong = JoinToken { secret: altered(&good.secret), ..good.clone() }.to_string();
        let unknown = JoinToken { id: altered(&good.id), ..good.clone() }.to_string();
        let mixed = JoinToken { ca_hash: altered(&good.ca_hash), ..good.clone() }.to_string();
        let cut = good.to_string()[..40].to_owned();
        let end: SystemTime = end.parse::<jiff::Timestamp>().unwrap().into();
        until("the short token has ended", || {
            world.sh("minisvc token list").ok();
            SystemTime::now() >= end + Duration::from_secs(1)
        });

        let url = world.url();
        for (token, parts) in [
            (short.as_str(), &["expired at", "minisvc token create"][..]),
            (&used, &["used up", "1 machine", "minisvc token create"]),
            (&revoked, &["unknown", "revoked", "minisvc token create"]),
            (&unknown, &["unknown", "minisvc token create"]),
            (&wrong, &["secret", "wrong"]),
            (&mixed, &["not of the token's cluster"]),
            (others.trim(), &["not of the token's cluster", "--server"]),
            (&cut, &["3 parts", "copied as a whole"]),
            ("secret", &["no join token", "minisvc token create"]),
            ("", &["no join token"]),
        ] {
            let file = world.file(token);
            let line = world.refused("node-2", &["--server", &url, "--token-file", &file]);
            for part in parts {
                assert!(line.contains(part), "no {part:?} in {line}");
            }
        }
        for (flags, part) in [
            (&["--token-file", &world.file(&good.to_string())][..], "--server"),
            (&["--server", &url], "--token-file"),
            (&[], "--server https://"),
            (&["--server", &url.replace("https", "http"), "--token", &good.to_string()], "https://"),
        ] {
            let line = world.refused("node-2", flags);
            assert!(line.contains(part), "no {part:?} in {line}");
        }
        // What was typed as a flag is a usage error. It is not repeated: the terminal's log is no place for it either.
        let said = world.machine("node-2").run(&["agent", "--server", &url, "--token", &good.secret]);
        assert_eq!(said.status.code(), Some(2), "{said}");
        assert!(!said.err.contains(&good.secret), "{said}");

        // Nothing is left of all that, and nobody wrote a secret down.
        let nodes = world.sh("minisvc get nodes,nodecredentials -o name").ok();
        assert!(!nodes.contains("node-2"), "{nodes}");
        let said = server.said().join("\n");
        for token in [&short, &used, &revoked, &wrong] {
            let secret = token.parse::<JoinToken>().unwrap().secret;
            assert!(!said.contains(&secret), "{said}");
            let stored = world.sh("minisvc get jointokens -o yaml").ok();
            assert!(!stored.contains(&secret), "{stored}");
        }
        // Who refused says so, and to whom.
        let from = world.machine("node-2").ip().to_string();
        assert!(server.lines_with(&from).iter().any(|l| l.contains("expired")), "{said}");

        // The good one is good all the same.
        let _second = world.join("node-2", &good.to_string());
        world.ready(&["node-2"]);
    });
}

#[test]
fn who_stands_in_the_servers_place_never_hears_the_token() {
    in_room("tokens::who_stands_in_the_servers_place_never_hears_the_token", |home| {
        let world = World::on_one_network(home, "impostors", &["node-1", "node-2"]);
        let server = world.server(&[]);
        let token: JoinToken = world.token("").parse().unwrap();
        let agent = world.join("node-1", &token.to_string());
        world.ready(&["node-1"]);
        agent.stop();
        server.stop();

        let stolen = world.credentials_of("node-1");
        // The CA's certificate is no secret: the server shows it to everybody.
        let ca = CertificateDer::from_pem_slice(&stolen.ca).unwrap();
        let place = world.machine("server");
        let address = SocketAddr::new(place.ip().into(), 7443);
        let rogue = |more| OfAnotherCa::new(&home.join("rogue"), address.ip(), more);
        let file = world.file(&token.to_string());
        let attempt = |impostor: Impostor, part: &str| {
            let line = world.refused("node-2", &["--server", &world.url(), "--token-file", &file]);
            assert!(line.contains(part), "no {part:?} in {line}");
            let seen = impostor.seen();
            assert!(seen.connections > 0, "{seen:?}");
            assert_eq!((seen.handshakes, seen.heard), (0, Vec::new()), "{part}");
        };
        attempt(Impostor::start(place.net(), address, rogue(Vec::new())), "not of the token's cluster");
        attempt(Impostor::start(place.net(), address, rogue(vec![ca])), "of another CA");
        attempt(
            Impostor::start(place.net(), address, WithStolenKey::new(&stolen)),
            "does not hold this name or address",
        );
        assert!(!world.machine("node-2").path("/var/lib/minisvc/agent/node.kubeconfig").exists());

        // A node that has joined shows its certificate to the right server alone, and waits for that one.
        let impostor = Impostor::start(place.net(), address, rogue(Vec::new()));
        let agent = world.machine("node-1").start(&["agent"]);
        agent.until("the server's certificate is of another CA");
        let seen = impostor.seen();
        assert_eq!((seen.handshakes, seen.heard), (0, Vec::new()));
        drop(impostor);
        let _server = world.server(&[]);
        world.ready(&["node-1"]);
        let _other = world.join("node-2", &token.to_string());
        world.ready(&["node-2"]);
        let mode = |path: &str| {
            let of = fs::metadata(world.machine("node-2").path(path)).unwrap();
            std::os::unix::fs::PermissionsExt::mode(&of.permissions()) & 0o777
        };
        assert_eq!(mode("/var/lib/minisvc/agent/node.kubeconfig"), 0o600);
    });
}

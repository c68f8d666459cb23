//! The rules as `nft` shows them, against the text that was reviewed: a change of the rules is seen in review.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use minisvc_agent::{
    net::Family6,
    nft::{Nft, Settled, Static},
    plan::{Elements, Families, Family, Id, Key, Proto, Value},
};
use minisvc_tests::netns::{Namespace, isolated};

use crate::cluster::VXLAN_PORT;

/// Set to write the text anew.
const WRITE: &str = "MINISVC_WRITE_GOLDEN";

fn fixed(dual: bool) -> anyhow::Result<Static> {
    let family6 = Family6 {
        node_ip: "2001:db8::b".parse()?,
        local_pod_cidr: "fd69:6d69:6e6a:1::/64".parse()?,
        pod_cidr: "fd69:6d69:6e6a::/48".parse()?,
        service_cidr: "fd69:6d69:6e69:ffff::/112".parse()?,
        dns_ip: "fd69:6d69:6e69:ffff::a".parse()?,
    };
    Ok(Static {
        node_ip: Ipv4Addr::new(192, 0, 2, 11),
        dns_ip: Ipv4Addr::new(10, 96, 0, 10),
        service_cidr: "10.96.0.0/16".parse()?,
        pod_cidr: "10.244.0.0/16".parse()?,
        local_pod_cidr: "10.244.1.0/24".parse()?,
        vxlan_port: VXLAN_PORT,
        family6: dual.then_some(family6),
    })
}

/// One of every element, of services that `nft` must be able to show.
fn elements(ip: IpAddr, pod: IpAddr, ranges: [&str; 2]) -> anyhow::Result<Elements> {
    let (id, local) = (Id(1), Id(2));
    let port = |id, slots| Value::Port { id, slots, affinity: None };
    let mut elements: Elements = BTreeMap::from([
        (Key::Node(ip), Value::Present),
        (Key::Direct(ip), Value::Present),
        (Key::ClusterIp(ip), Value::Present),
        (Key::Slot(id, 0), Value::Pod(pod, 8080)),
        (Key::Endpoint(local, 7), Value::Pod(pod, 8080)),
        (Key::Choice(local, 0), Value::Number(7)),
        (Key::Guarded(ip, Proto::Tcp, 80), Value::Present),
        (Key::Guarded(ip, Proto::Sctp, 80), Value::Present),
        (Key::NodePort(Proto::Sctp, 30_080), port(id, 1)),
        (Key::OutsideNodePort(Proto::Sctp, 30_080), Value::Drop),
        (Key::OutsideService(ip, Proto::Tcp, 80), Value::Drop),
        (Key::OutsideNodePort(Proto::Udp, 30_080), Value::Port { id: local, slots: 1, affinity: Some(60) }),
        (Key::NodePort(Proto::Udp, 30_080), port(id, 1)),
    ]);
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        elements.insert(Key::Service(ip, proto, 80), port(id, 1));
    }
    for range in ranges {
        elements.insert(Key::Allowed(ip, Proto::Tcp, 80, range.parse()?), Value::Present);
    }
    Ok(elements)
}

/// Without the elements of sets, and of chains that are alike but for their number without all but the first two and the last.
fn listing(at: &Namespace, family: &str) -> anyhow::Result<String> {
    let listed = at.run("nft", &["-s", "-t", "list", "table", family, "minisvc"])?;
    let mut kept = String::new();
    let mut skipping = false;
    for line in listed.lines() {
        if let Some(name) = line.trim().strip_prefix("chain c").and_then(|l| l.strip_suffix(" {")) {
            skipping = name.parse::<u32>().is_ok_and(|n| ![1, 2, 65_536].contains(&n));
        } else if line.trim().starts_with("chain ") {
            skipping = false;
        }
        if !skipping {
            kept.push_str(line.trim_end());
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[test]
fn the_rules_are_those_that_were_reviewed() -> anyhow::Result<()> {
    isolated("golden::the_rules_are_those_that_were_reviewed", || {
        let at = Namespace::new("node")?;
        let none = Families { v4: Elements::new(), v6: Some(Elements::new()) };
        at.enter(|| Ok(Nft::open()?.settle(&fixed(true)?, &none)?))?;
        for family in ["ip", "ip6"] {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/packets/golden/{family}.nft"));
            let now = listing(&at, family)?;
            if std::env::var_os(WRITE).is_some() {
                std::fs::write(&path, &now)?;
            }
            let reviewed = std::fs::read_to_string(&path)?;
            let changed: Vec<_> = diff(&reviewed, &now);
            assert!(
                changed.is_empty(),
                "{}; if that is meant, run this test with {WRITE}=1 and commit {}",
                changed.join("\n"),
                path.display()
            );
        }
        Ok(())
    })
}

/// Lines that only one of two texts has.
fn diff(before: &str, after: &str) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    let only = |a: &str, b: &str, sign: &str| -> Vec<String> {
        a.lines().filter(|l| !b.lines().any(|m| m == *l)).map(|l| format!("{sign}{l}")).collect()
    };
    let changed = [only(before, after, "-"), only(after, before, "+")].concat();
    if changed.is_empty() { vec!["the same lines in another order".to_owned()] } else { changed }
}

#[test]
fn both_tables_are_written_shown_adopted_mended_and_removed_together() -> anyhow::Result<()> {
    isolated("golden::both_tables_are_written_shown_adopted_mended_and_removed_together", || {
        let at = Namespace::new("node")?;
        // Asking what the kernel has leaves nothing behind.
        for family in [Family::V4, Family::V6] {
            at.enter(|| Ok(Nft::open()?.probe(family)?))?;
        }
        assert_eq!(at.run("nft", &["list", "tables"])?, "");
        let mut v4 =
            elements("192.0.2.10".parse()?, "10.244.1.2".parse()?, ["198.51.100.0/23", "203.0.113.7/32"])?;
        let (mac, pods) = ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 244, 2, 0));
        v4.extend([
            (Key::AtHome(mac, pods), Value::Present),
            (Key::EntryZone(mac), Value::Zone(3)),
            (Key::EntryMark(mac), Value::Mark(0x5000_0003)),
            (Key::Returning(Ipv4Addr::new(192, 0, 2, 12), pods), Value::Present),
            (Key::Kept(pods), Value::Present),
        ]);
        let v6 = elements(
            "2001:db8::10".parse()?,
            "fd69:6d69:6e6a:1::2".parse()?,
            ["2001:db8:1::/63", "2001:db8:9::7/128"],
        )?;
        let both = Families { v4: v4.clone(), v6: Some(v6) };
        let (dual, single) = (fixed(true)?, fixed(false)?);
        let settle = |fixed: &Static, wanted: &Families<Elements>| {
            at.enter(|| {
                let mut nft = Nft::open()?;
                let before = nft.generation()?;
                let how = nft.settle(fixed, wanted)?;
                Ok((how, nft.generation()? - before))
            })
        };
        assert_eq!(settle(&dual, &both)?, (Settled::Replaced, 1), "one transaction for both");
        assert_eq!(at.enter(|| Ok(Nft::open()?.planned()?))?, both);
        // `nft` shows all of it, in its own words.
        let list = |family: &str, kind: &str, name: &str| {
            at.run("nft", &["list", kind, family, "minisvc", name])
                .map(|t| t.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        for (family, kind, name, shown) in [
            ("ip", "map", "svc", "192.0.2.10 . sctp . 80 : 0x00001001"),
            ("ip", "map", "np", "sctp . 30080 : 0x00001001"),
            ("ip", "map", "np_outside", "sctp . 30080 : 0x0000007f"),
            ("ip", "set", "guarded", "192.0.2.10 . sctp . 80"),
            ("ip6", "map", "np", "sctp . 30080 : 0x00001001"),
            ("ip", "map", "svc_outside", "192.0.2.10 . tcp . 80 : 0x0000007f"),
            ("ip", "map", "np_outside", "udp . 30080 : 0x00002080"),
            ("ip", "set", "guarded", "192.0.2.10 . tcp . 80"),
            ("ip", "set", "allowed", "192.0.2.10 . tcp . 80 . 198.51.100.0/23"),
            ("ip", "map", "ep", "0x00001000 . 0x00000000 : 10.244.1.2 . 8080"),
            ("ip6", "map", "svc", "2001:db8::10 . sctp . 80 : 0x00001001"),
            ("ip6", "set", "allowed", "2001:db8::10 . tcp . 80 . 2001:db8:1::/63"),
            ("ip6", "set", "allowed", "2001:db8::10 . tcp . 80 . 2001:db8:9::7"),
            ("ip6", "map", "ep", "0x00001000 . 0x00000000 : fd69:6d69:6e6a:1::2 . 8080"),
            ("ip6", "set", "hairpin", "fd69:6d69:6e6a:1::fe . fd69:6d69:6e6a:1::fe"),
        ] {
            let text = list(family, kind, name)?;
            assert!(text.contains(shown), "{family} {name}: no {shown} in {text}");
        }
        // Another agent finds all of it as it should be, and changes nothing.
        assert_eq!(settle(&dual, &both)?, (Settled::AsWanted, 0));
        // What somebody took away comes back, and what somebody put goes.
        at.run("nft", &["delete", "element", "ip6", "minisvc", "guarded", "{ 2001:db8::10 . tcp . 80 }"])?;
        at.run(
            "nft",
            &["add", "element", "ip", "minisvc", "allowed", "{ 192.0.2.10 . tcp . 80 . 192.0.2.0/24 }"],
        )?;
        let (how, transactions) = settle(&dual, &both)?;
        assert!(
            matches!(how, Settled::Corrected(n) if n >= 2) && transactions == 1,
            "{how:?}, {transactions}"
        );
        assert_eq!(settle(&dual, &both)?, (Settled::AsWanted, 0));
        at.run("nft", &["delete", "table", "ip6", "minisvc"])?;
        assert_eq!(settle(&dual, &both)?, (Settled::Replaced, 1));
        assert_eq!(at.enter(|| Ok(Nft::open()?.planned()?))?, both);
        // The cluster has one family only from now on; somebody else's table of that family stays.
        at.run("nft", &["add", "table", "ip6", "foreign"])?;
        let one = Families { v4, v6: None };
        assert_eq!(settle(&single, &one)?, (Settled::Replaced, 1));
        assert_eq!(at.run("nft", &["list", "tables", "ip6"])?.trim(), "table ip6 foreign");
        assert_eq!(settle(&single, &one)?, (Settled::AsWanted, 0));
        Ok(())
    })
}

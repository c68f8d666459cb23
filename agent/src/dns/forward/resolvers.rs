//! Which resolvers are asked, and in which order.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

const PORT: u16 = 53;
/// How often the file is looked at, as long as anybody asks.
const LOOK: Duration = Duration::from_secs(1);
/// A resolver that said nothing is asked after the others for so long.
const DISTRUST: Duration = Duration::from_secs(10);

/// The servers of a resolv.conf, read anew when it changes: a laptop changes its network.
#[derive(Debug)]
pub(super) struct Resolvers {
    file: Option<PathBuf>,
    own: Vec<IpAddr>,
    looked: Option<Instant>,
    version: Option<Version>,
    /// With until when they are distrusted.
    all: Vec<(SocketAddr, Option<Instant>)>,
}

/// What tells one state of a file from another.
type Version = (SystemTime, u64, u64);

impl Resolvers {
    pub(super) fn of_file(file: PathBuf, own: Vec<IpAddr>) -> Self {
        Resolvers { file: Some(file), own, looked: None, version: None, all: Vec::new() }
    }

    #[cfg(test)]
    pub(super) fn fixed(all: Vec<SocketAddr>) -> Self {
        let all = all.into_iter().map(|r| (r, None)).collect();
        Resolvers { file: None, own: Vec::new(), looked: None, version: None, all }
    }

    /// Whom to ask, best first: in the file's order, but those that said nothing lately come last.
    pub(super) fn order(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.look(now);
        let trusted = |until: &Option<Instant>| until.is_none_or(|until| until <= now);
        let (good, bad): (Vec<_>, Vec<_>) = self.all.iter().partition(|(_, until)| trusted(until));
        good.into_iter().chain(bad).map(|(resolver, _)| resolver).collect()
    }

    /// What came of asking them.
    pub(super) fn learn(&mut self, answered: Option<SocketAddr>, silent: &[SocketAddr], now: Instant) {
        for (resolver, until) in &mut self.all {
            if answered == Some(*resolver) {
                *until = None;
            } else if silent.contains(resolver) {
                *until = Some(now + DISTRUST);
            }
        }
    }

    fn look(&mut self, now: Instant) {
        let Some(file) = &self.file else { return };
        if self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return;
        }
        let first = self.looked.replace(now).is_none();
        let read = || -> io::Result<_> {
            let version = version(&fs::metadata(file)?)?;
            if self.version == Some(version) {
                return Ok(None);
            }
            Ok(Some((version, fs::read_to_string(file)?)))
        };
        match read() {
            Ok(None) => {}
            Ok(Some((version, text))) => {
                self.all = parse(&text, &self.own).into_iter().map(|r| (r, None)).collect();
                self.version = Some(version);
                let resolvers: Vec<_> = self.all.iter().map(|(r, _)| r.to_string()).collect();
                tracing::info!(file = %file.display(), ?resolvers, "resolvers for names outside the cluster");
            }
            // What was known stays: whoever writes the file is perhaps not done.
            Err(error) if !first => {
                tracing::debug!(file = %file.display(), %error, "the resolvers cannot be read");
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "names outside the cluster cannot be asked for");
            }
        }
    }
}

fn version(metadata: &fs::Metadata) -> io::Result<Version> {
    use std::os::unix::fs::MetadataExt;
    Ok((metadata.modified()?, metadata.len(), metadata.ino()))
}

/// The servers of a resolv.conf, without ourselves.
fn parse(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let server = (words.next() == Some("nameserver")).then(|| words.next().and_then(address)).flatten();
        if let Some(server) = server.filter(|s| !own.contains(&s.ip()) && !all.contains(s)) {
            all.push(server);
        }
    }
    all
}

/// `192.0.2.1`, `2001:db8::1`, or `fe80::1%eth0`.
fn address(text: &str) -> Option<SocketAddr> {
    let Some((ip, link)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let index = link.parse().ok().or_else(|| nix::net::if_::if_nametoindex(link).ok())?;
    Some(std::net::SocketAddrV6::new(ip.parse().ok()?, PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn resolvers_come_from_nameserver_lines() {
        let text = "# nameserver 1.1.1.1\nsearch a\nnameserver 9.9.9.9\n nameserver 169.254.1.1\nnameserver ::1\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%no-such-link\nnameserver\nnameserver x\nnameserver 9.9.9.9\n";
        let own = [IpAddr::from([169, 254, 1, 1])];
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let want = addresses(&["9.9.9.9:53", "[::1]:53", &format!("[fe80::1%{lo}]:53")]);
        assert_eq!(parse(text, &own), want);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut resolvers = Resolvers::of_file(file.clone(), Vec::new());
        assert_eq!(resolvers.order(at(0)), []);
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(resolvers.order(at(2)), addresses(&["192.0.2.1:53"]));
        // Another file in its place, as programs write it.
        let new = dir.path().join("new");
        fs::write(&new, "nameserver 192.0.2.2\nnameserver 192.0.2.3\n").unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(resolvers.order(at(2)), addresses(&["192.0.2.1:53"]));
        assert_eq!(resolvers.order(at(4)), addresses(&["192.0.2.2:53", "192.0.2.3:53"]));
        fs::remove_file(&file).unwrap();
        assert_eq!(resolvers.order(at(6)), addresses(&["192.0.2.2:53", "192.0.2.3:53"]));
    }

    #[test]
    fn a_silent_resolver_is_asked_last_for_a_while() {
        let all = addresses(&["192.0.2.1:53", "192.0.2.2:53"]);
        let back: Vec<_> = all.iter().rev().copied().collect();
        let mut resolvers = Resolvers::fixed(all.clone());
        let now = Instant::now();
        resolvers.learn(Some(all[1]), &all[..1], now);
        assert_eq!(resolvers.order(now), back);
        assert_eq!(resolvers.order(now + DISTRUST), all);
        resolvers.learn(Some(all[0]), &[], now);
        assert_eq!(resolvers.order(now), all);
    }
}

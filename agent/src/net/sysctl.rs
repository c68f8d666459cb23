//! The settings under /proc/sys that a node needs. Containers often have it read-only: what is right already is enough.

use std::fs;

use nix::errno::Errno;

use super::{
    NetError,
    reverse_path::{ReversePath, Setting},
};

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Switches IPv4 forwarding on, in the namespace of the calling thread.
pub(super) fn forwarding_on() -> Result<(), NetError> {
    let is_on = fs::read_to_string(FORWARD).is_ok_and(|text| text.trim() != "0");
    if is_on {
        return Ok(());
    }
    fs::write(FORWARD, "1")
        .map_err(|e| NetError::ForwardingOff(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
}

/// The settings of IPv6 by link; `all` and `default` are no links.
const LINKS6: &str = "/proc/sys/net/ipv6/conf";

/// Whether a setting of a link has a value.
fn is6(link: &str, name: &str, value: &str) -> bool {
    fs::read_to_string(format!("{LINKS6}/{link}/{name}")).is_ok_and(|text| text.trim() == value)
}

fn set6(link: &str, name: &str, value: &str) -> Result<(), Errno> {
    if is6(link, name, value) {
        return Ok(());
    }
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    fs::write(format!("{LINKS6}/{link}/{name}"), value).map_err(errno)
}

/// Switches IPv6 forwarding on, in the namespace of the calling thread. A link of a machine that forwards does not listen to router
/// advertisements any more, and the routes that came with them go at once: links that listen now are told to go on first.
/// [Documentation/networking/ip-sysctl.rst, accept_ra]
pub(super) fn forwarding6_on() -> Result<(), NetError> {
    if is6("all", "disable_ipv6", "1") || fs::metadata(LINKS6).is_err() {
        return Err(NetError::NoIpv6);
    }
    if is6("all", "forwarding", "1") {
        return Ok(());
    }
    let links = fs::read_dir(LINKS6).into_iter().flatten().flatten();
    for link in links.filter_map(|entry| entry.file_name().into_string().ok()) {
        let listens = is6(&link, "accept_ra", "1") && is6(&link, "forwarding", "0");
        if listens && !["all", "default", "lo"].contains(&link.as_str()) {
            set6(&link, "accept_ra", "2").map_err(NetError::ForwardingOff6)?;
        }
    }
    set6("all", "forwarding", "1").map_err(NetError::ForwardingOff6)
}

/// Lets a link of ours carry IPv6, where the machine's default says that new links do not, and keeps it from taking routes of
/// whoever sends advertisements there: pods are no routers.
pub(super) fn ipv6_on(link: &str) -> Result<(), NetError> {
    deaf_to_routers(link);
    set6(link, "disable_ipv6", "0").map_err(|errno| NetError::Kernel {
        operation: "switch on IPv6 (net.ipv6.conf.*.disable_ipv6) on",
        object: link.to_owned(),
        errno,
    })
}

/// Keeps a link from taking routes of whoever sends router advertisements there. A kernel without IPv6 takes none.
pub(super) fn deaf_to_routers(link: &str) {
    if let Err(error) = set6(link, "accept_ra", "0")
        && error != Errno::ENOENT
    {
        tracing::info!(%error, "net.ipv6.conf.{link}.accept_ra cannot be set to 0");
    }
}

/// Keeps the nodePorts out of what the kernel gives to clients; what the administrator reserved stays. Where this is not
/// allowed a client may, rarely, hold a nodePort's number as its own: nothing breaks but that relay port.
pub(super) fn reserve_ports(range: (u16, u16)) {
    let Ok(now) = fs::read_to_string(RESERVED) else { return };
    if let Some(wanted) = merged(now.trim(), range)
        && let Err(error) = fs::write(RESERVED, wanted)
    {
        tracing::info!(%error, "nodePorts are not reserved in net.ipv4.ip_local_reserved_ports");
    }
}

/// What decides whether the kernel takes pods' answers that go through other nodes. What cannot be read is off.
pub(super) fn reverse_path() -> ReversePath {
    let value = |of: &str, name: &str| -> u32 {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/{name}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let setting = |name: &str| Setting { all: value("all", name), default: value("default", name) };
    ReversePath { rp_filter: setting("rp_filter"), src_valid_mark: setting("src_valid_mark") }
}

/// Lets packets come out of the tunnel whose senders are reached by another way: two nodes may disagree about the way between them.
/// Where this is not allowed, and the machine's own setting is strict, such packets are lost.
pub(super) fn loose_reverse_path(link: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if !is(&path, "2")
        && let Err(error) = fs::write(&path, "2")
    {
        tracing::info!(%error, "{path} cannot be set to 2");
    }
}

/// Of a link that carries IPv4 alone. A kernel without IPv6 has no such setting.
pub(super) fn ipv6_off(link: &str) {
    let _ = set6(link, "disable_ipv6", "1");
}

/// The list with the range added; `None` if it is covered already.
fn merged(list: &str, (first, last): (u16, u16)) -> Option<String> {
    let mut covered = list.split(',').filter_map(|item| {
        let (a, b) = item.split_once('-').unwrap_or((item, item));
        Some((a.trim().parse::<u16>().ok()?, b.trim().parse::<u16>().ok()?))
    });
    if covered.any(|(a, b)| a <= first && b >= last) {
        return None;
    }
    let separator = if list.is_empty() { "" } else { "," };
    Some(format!("{list}{separator}{first}-{last}"))
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn the_administrators_ports_stay_reserved() {
        assert_eq!(merged("", (30000, 32767)).as_deref(), Some("30000-32767"));
        assert_eq!(merged("8080,9000-9100", (30000, 32767)).as_deref(), Some("8080,9000-9100,30000-32767"));
        assert_eq!(merged("22,29000-33000", (30000, 32767)), None);
    }
}

//! The settings under /proc/sys that a node needs. Containers often have it read-only: what is right already is enough.

use std::fs;

use nix::errno::Errno;

use super::NetError;

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

/// Lets packets come out of the tunnel whose senders are reached by another way: two nodes may disagree about the way between them.
/// Where this is not allowed, and the machine's own setting is strict, such packets are lost.
pub(super) fn loose_reverse_path(link: &str) {
    let conf = |family: &str, name: &str| format!("/proc/sys/net/{family}/conf/{link}/{name}");
    let path = conf("ipv4", "rp_filter");
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if !is(&path, "2")
        && let Err(error) = fs::write(&path, "2")
    {
        tracing::info!(%error, "{path} cannot be set to 2");
    }
    // The tunnel carries IPv4 alone. A kernel without IPv6 has no such file.
    let _ = fs::write(conf("ipv6", "disable_ipv6"), "1");
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

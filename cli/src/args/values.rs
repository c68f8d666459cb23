//! Values of flags: text in, value or a line that says what would be right.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde_json::Value;

/// `PORT` or `PORT:TARGET` of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPair {
    /// The service's port.
    pub port: u16,
    /// The pods' port.
    pub target: TargetPort,
}

/// A number, or the name of a container's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

impl TargetPort {
    /// As `targetPort` holds it.
    pub fn to_value(&self) -> Value {
        match self {
            TargetPort::Number(n) => (*n).into(),
            TargetPort::Name(s) => s.clone().into(),
        }
    }
}

impl std::fmt::Display for TargetPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetPort::Number(n) => n.fmt(f),
            TargetPort::Name(s) => s.fmt(f),
        }
    }
}

pub fn port(s: &str) -> Result<u16, String> {
    match s.parse::<u16>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("\"{s}\" is no port, 1-65535 would be right")),
    }
}

/// A number, or an IANA service name: at most 15 of a-z, 0-9 and '-', with a letter among them.
pub fn target_port(s: &str) -> Result<TargetPort, String> {
    let name = s.len() <= 15
        && s.bytes().any(|b| b.is_ascii_lowercase())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-')
        && !s.contains("--");
    if name {
        return Ok(TargetPort::Name(s.to_owned()));
    }
    port(s).map(TargetPort::Number).map_err(|e| format!("{e}, or the name of a container's port"))
}

pub fn port_pair(s: &str) -> Result<PortPair, String> {
    if let Some((p, target)) = s.split_once(':') {
        return Ok(PortPair { port: port(p)?, target: target_port(target)? });
    }
    let port = port(s)?;
    Ok(PortPair { port, target: TargetPort::Number(port) })
}

/// What `clusterIP` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterIp {
    /// A headless service.
    None,
    /// An address of the service range.
    Address(IpAddr),
}

impl std::fmt::Display for ClusterIp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClusterIp::None => f.write_str("None"),
            ClusterIp::Address(ip) => ip.fmt(f),
        }
    }
}

pub fn cluster_ip(s: &str) -> Result<ClusterIp, String> {
    if s.eq_ignore_ascii_case("none") {
        return Ok(ClusterIp::None);
    }
    let address = s.parse().map(ClusterIp::Address);
    address.map_err(|_| format!("\"{s}\" is no IP address, or None for a headless service"))
}

/// `10.0.0.0/8`.
pub fn network(s: &str) -> Result<IpNet, String> {
    s.parse().map_err(|_| format!("\"{s}\" is no network, 10.0.0.0/8 or fd00::/8 would be right"))
}

/// Whole seconds of at most a day.
pub fn affinity_timeout(s: &str) -> Result<Duration, String> {
    let time = ttl(s)?;
    if (1..=86400).contains(&time.as_secs()) {
        Ok(time)
    } else {
        Err(format!("\"{s}\" is not between 1s and 24h"))
    }
}

/// Two ports, `30000-32767`.
pub fn port_range(s: &str) -> Result<(u16, u16), String> {
    let range = s.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    range
        .filter(|(first, last)| 0 < *first && first <= last)
        .ok_or_else(|| format!("\"{s}\" is no range of ports, 30000-32767 would be right"))
}

/// `NAME=VALUE`.
pub fn pair(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((k, v)) if !k.is_empty() => Ok((k.to_owned(), v.to_owned())),
        _ => Err(format!("\"{s}\" is no NAME=VALUE")),
    }
}

/// `1h`, `2m30s`, `500ms`, or seconds as a bare number.
pub fn duration(s: &str) -> Result<Duration, String> {
    let fault = || format!("\"{s}\" is no duration, 30s, 2m or 1h would be right");
    if let Ok(seconds) = s.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut rest = s;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0).ok_or_else(fault)?;
        let number: u64 = rest[..digits].parse::<u32>().map_err(|_| fault())?.into();
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        sum += match &rest[digits..unit] {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number * 60),
            "h" => Duration::from_secs(number * 3600),
            _ => return Err(fault()),
        };
        rest = &rest[unit..];
    }
    if s.is_empty() { Err(fault()) } else { Ok(sum) }
}

/// How long a token is good for: a duration in whole seconds.
pub fn ttl(s: &str) -> Result<Duration, String> {
    match duration(s)? {
        time if time.subsec_nanos() > 0 => {
            Err(format!("\"{s}\" is not in whole seconds, 30m or 24h would be right"))
        }
        time => Ok(time),
    }
}

/// What `wait --for` waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A condition of the status has a value (`True` where none is said; compared without case).
    Condition { kind: String, value: String },
    /// The object is there.
    Create,
    /// The object is gone.
    Delete,
    /// A field has a value.
    Field { pointer: String, value: Option<String> },
}

pub fn goal(s: &str) -> Result<Goal, String> {
    if let Some(condition) = s.strip_prefix("condition=") {
        let (kind, value) = condition.split_once('=').unwrap_or((condition, "True"));
        if kind.is_empty() || value.is_empty() {
            return Err("condition=NAME or condition=NAME=VALUE would be right".into());
        }
        return Ok(Goal::Condition { kind: kind.to_owned(), value: value.to_owned() });
    }
    match (s, s.strip_prefix("jsonpath=")) {
        ("create", _) => Ok(Goal::Create),
        ("delete", _) => Ok(Goal::Delete),
        (_, Some(path)) => field(path),
        _ => Err(format!(
            "\"{s}\" is unknown: condition=NAME[=VALUE], create, delete or jsonpath='{{.a.b}}'[=VALUE] would be right"
        )),
    }
}

/// The plain part of kubectl's jsonpath: fields and indices.
fn field(s: &str) -> Result<Goal, String> {
    let (path, value) = match s.rfind('}') {
        Some(end) => (&s[..=end], s[end + 1..].strip_prefix('=')),
        None => s.split_once('=').map_or((s, None), |(p, v)| (p, Some(v))),
    };
    let inner = path.strip_prefix('{').and_then(|p| p.strip_suffix('}')).unwrap_or(path);
    let fault = || {
        format!(
            "jsonpath \"{path}\": only fields and indices are known, {{.status.phase}} or {{.spec.ports[0].port}} would be right"
        )
    };
    let mut pointer = String::new();
    for part in inner.strip_prefix('.').ok_or_else(fault)?.split('.') {
        let (name, indices) = part.split_once('[').map_or((part, None), |(n, i)| (n, Some(i)));
        let plain =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !plain(name) {
            return Err(fault());
        }
        pointer.push('/');
        pointer.push_str(name);
        for index in indices.into_iter().flat_map(|i| i.split('[')) {
            let index = index.strip_suffix(']').filter(|i| i.parse::<u16>().is_ok()).ok_or_else(fault)?;
            pointer.push('/');
            pointer.push_str(index);
        }
    }
    Ok(Goal::Field { pointer, value: value.map(|v| v.trim_matches(['\'', '"']).to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_names() {
        assert_eq!(port_pair("80"), Ok(PortPair { port: 80, target: TargetPort::Number(80) }));
        assert_eq!(port_pair("80:8080"), Ok(PortPair { port: 80, target: TargetPort::Number(8080) }));
        assert_eq!(port_pair("80:http"), Ok(PortPair { port: 80, target: TargetPort::Name("http".into()) }));
        for bad in
            ["", ":", "80:", ":80", "0", "65536", "80:0", "80:a--b", "80:-a", "x", "80:way-too-long-name-x"]
        {
            assert!(port_pair(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_is_two_ports_in_order() {
        assert_eq!(port_range("30000-32767"), Ok((30_000, 32_767)));
        for bad in ["", "30000", "2-1", "0-9", "1-70000", "a-b"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_those_of_kubectl() {
        for (text, ms) in
            [("30s", 30_000), ("2m", 120_000), ("1h2m3s", 3_723_000), ("500ms", 500), ("7", 7_000), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "3x", "-1s", "1s2", "99999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn goals_are_read() {
        let condition = |kind: &str, value: &str| Goal::Condition { kind: kind.into(), value: value.into() };
        assert_eq!(goal("condition=Ready"), Ok(condition("Ready", "True")));
        assert_eq!(goal("condition=Ready=false"), Ok(condition("Ready", "false")));
        assert_eq!(goal("delete"), Ok(Goal::Delete));
        assert_eq!(
            goal("jsonpath={.status.conditions[0].type}=Ready"),
            Ok(Goal::Field { pointer: "/status/conditions/0/type".into(), value: Some("Ready".into()) })
        );
        assert_eq!(
            goal("jsonpath=.status.phase"),
            Ok(Goal::Field { pointer: "/status/phase".into(), value: None })
        );
        for bad in ["", "ready", "condition=", "jsonpath={.items[*].x}", "jsonpath={range .x}"] {
            assert!(goal(bad).is_err(), "{bad}");
        }
    }
}

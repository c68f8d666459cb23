//! From a Pod to what the runtime is told. Pure; what depends on the machine comes in as values.

mod resources;
mod volumes;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

pub use self::{resources::limits_not_enforced, volumes::volumes};
use self::{resources::resources, volumes::mounts};
use crate::runtime::{ContainerSpec, SHARED_BIN, User};

/// What the environment of a container depends on, beside the Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The node's name.
    pub node: String,
    /// The node's addresses, IPv4 first.
    pub node_ips: Vec<IpAddr>,
    /// `PATH` of every container.
    pub path: String,
    /// The user that runs the agent.
    pub own_uid: u32,
    /// The user ids that exist here: all of them on a real machine, few in a user namespace.
    pub uids: Vec<(u32, u32)>,
    /// Home directories and groups by user id, from /etc/passwd.
    pub users: BTreeMap<u32, (u32, String)>,
}

impl Machine {
    fn has(&self, uid: u32) -> bool {
        self.uids.iter().any(|(first, count)| uid >= *first && uid - first < *count)
    }
}

/// The ranges of /proc/self/uid_map.
pub fn parse_uid_map(text: &str) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace();
            Some((numbers.next()?.parse().ok()?, numbers.nth(1)?.parse().ok()?))
        })
        .collect()
}

/// Group and home by user id, of /etc/passwd.
pub fn parse_passwd(text: &str) -> BTreeMap<u32, (u32, String)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((uid, (gid, fields.nth(1)?.to_owned())))
        })
        .collect()
}

/// How to start a container; `services` are variables that the container may set otherwise. The error is one line for the user.
pub fn container_spec(
    pod: &Pod,
    container: &Container,
    ips: &[IpAddr],
    attempt: u32,
    (machine, services): (&Machine, Vec<(String, String)>),
) -> Result<ContainerSpec, String> {
    let user = user(pod, container, machine)?;
    let home = user.and_then(|u| machine.users.get(&u.uid).map(|(_, home)| home.as_str())).unwrap_or("/");
    let name = pod.metadata.name.clone().unwrap_or_default();
    let path = match user {
        Some(user) if user.uid != machine.own_uid => format!("{SHARED_BIN}:{}", machine.path),
        _ => machine.path.clone(),
    };
    let mut env: Vec<(String, String)> = [
        ("PATH", path),
        ("HOSTNAME", hostname(pod)),
        ("HOME", home.to_owned()),
        ("MINISVC_POD", name),
        ("MINISVC_NAMESPACE", pod.metadata.namespace.clone().unwrap_or_default()),
        ("MINISVC_NODE", machine.node.clone()),
        ("MINISVC_POD_IP", list(ips.get(..1).unwrap_or_default())),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into();
    env.extend(services);
    for variable in container.env.iter().flatten() {
        let value = value(variable, pod, ips, machine, &env)?;
        env.retain(|(k, _)| *k != variable.name);
        env.push((variable.name.clone(), value));
    }
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let argv: Vec<String> = words.map(|w| expand(w, &env)).collect();
    if argv.is_empty() {
        return Err("command: required, as there is no image that could bring one".into());
    }
    let cwd = container.working_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or("/");
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        argv,
        env,
        cwd: PathBuf::from("/").join(cwd),
        user,
        mounts: mounts(container),
        termination_path: container
            .termination_message_path
            .as_deref()
            .filter(|p| !p.is_empty())
            .map(PathBuf::from),
        termination_from_log: container.termination_message_policy.as_deref()
            == Some("FallbackToLogsOnError"),
        resources: resources(container),
    })
}

/// Whether the pod names the user that any of its containers runs as.
pub fn has_other_user(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let pod_wide = spec.and_then(|s| s.security_context.as_ref()).and_then(|c| c.run_as_user);
    let containers = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let mut own = containers.filter_map(|c| c.security_context.as_ref()?.run_as_user);
    pod_wide.is_some() || own.next().is_some()
}

/// `spec.hostname`, else the pod's name, cut to what a host name may be.
pub fn hostname(pod: &Pod) -> String {
    let wanted = pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let mut name = wanted.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

fn user(pod: &Pod, container: &Container, machine: &Machine) -> Result<Option<User>, String> {
    let pod_wide = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let uid = own.and_then(|c| c.run_as_user).or_else(|| pod_wide.and_then(|c| c.run_as_user));
    let gid = own.and_then(|c| c.run_as_group).or_else(|| pod_wide.and_then(|c| c.run_as_group));
    let non_root = own.and_then(|c| c.run_as_non_root).or_else(|| pod_wide.and_then(|c| c.run_as_non_root));
    let number = |field: &str, n: i64| {
        u32::try_from(n)
            .map_err(|_| format!("securityContext.{field}: {n} is no id, 0 to 4294967295 would be right"))
    };
    let uid = uid.map(|n| number("runAsUser", n)).transpose()?;
    let gid = gid.map(|n| number("runAsGroup", n)).transpose()?;
    if non_root == Some(true) && uid.unwrap_or(machine.own_uid) == 0 {
        return Err("securityContext.runAsNonRoot: the container would run as root, set runAsUser".into());
    }
    let ids = [("runAsUser", uid), ("runAsGroup", gid)];
    for (field, id) in ids.into_iter().filter_map(|(f, id)| Some((f, id?))) {
        if !machine.has(id) {
            return Err(format!(
                "securityContext.{field}: {id} does not exist in the agent's user namespace, as a cluster started \
                 without root has one user only: leave it out, or run the agent as root"
            ));
        }
    }
    let uid = match (uid, gid) {
        (None, None) => return Ok(None),
        (uid, _) => uid.unwrap_or(machine.own_uid),
    };
    let own_group = machine.users.get(&uid).map_or(0, |(gid, _)| *gid);
    Ok(Some(User { uid, gid: gid.unwrap_or(own_group) }))
}

fn value(
    variable: &EnvVar,
    pod: &Pod,
    ips: &[IpAddr],
    machine: &Machine,
    known: &[(String, String)],
) -> Result<String, String> {
    let field = |what: &str| format!("env {}: {what}", variable.name);
    let Some(from) = &variable.value_from else {
        return Ok(expand(variable.value.as_deref().unwrap_or(""), known));
    };
    let Some(reference) = &from.field_ref else {
        return Err(field("valueFrom: only fieldRef can be had"));
    };
    let path = reference.field_path.as_str();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(field(&format!("fieldRef.fieldPath: \"{path}\" cannot be had"))),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => pod.metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => pod.metadata.uid.clone().unwrap_or_default(),
        "spec.nodeName" => machine.node.clone(),
        "spec.serviceAccountName" => {
            pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" => list(ips.get(..1).unwrap_or_default()),
        "status.podIPs" => list(ips),
        "status.hostIP" => list(machine.node_ips.get(..1).unwrap_or_default()),
        "status.hostIPs" => list(&machine.node_ips),
        _ => return Err(field(&format!("fieldRef.fieldPath: \"{path}\" cannot be had"))),
    })
}

/// Addresses as a variable has them, separated by commas. [pkg/fieldpath, ExtractFieldPathAsString; KEP-563]
fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Replaces `$(NAME)` by the variable's value; an unknown name stays as it is, and `$$` is a plain dollar.
fn expand(text: &str, known: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match known.iter().find(|(k, _)| k == name) {
                Some((_, value)) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The pod's /etc/hosts.
pub fn hosts(pod: &Pod, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "# The pod's own, made by minisvc.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    );
    for ip in ips {
        text.extend([&ip.to_string(), "\t", &hostname(pod), "\n"]);
    }
    for alias in pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        text.extend([&alias.ip, "\t", &alias.hostnames.clone().unwrap_or_default().join(" "), "\n"]);
    }
    text
}

/// The pod's /etc/resolv.conf; `machine` is that of the node.
pub fn resolv_conf(pod: &Pod, dns_ip: Ipv4Addr, zone: &str, machine: &str) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let spec = pod.spec.as_ref();
    let config = spec.and_then(|s| s.dns_config.clone()).unwrap_or_default();
    let options: Vec<String> = config
        .options
        .into_iter()
        .flatten()
        .filter_map(|o| o.name.map(|n| o.value.map_or_else(|| n.clone(), |v| format!("{n}:{v}"))))
        .collect();
    let lines = |word: &str, values: &[String]| {
        if values.is_empty() { String::new() } else { format!("{word} {}\n", values.join(" ")) }
    };
    let mut servers = config.nameservers.unwrap_or_default();
    let mut searches = config.searches.unwrap_or_default();
    let mut own_options = options;
    let mut text = String::new();
    match spec.and_then(|s| s.dns_policy.as_deref()) {
        Some("None") => {}
        Some("Default") => {
            text.push_str(machine);
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        }
        _ => {
            servers.insert(0, dns_ip.to_string());
            let own = [format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone.to_owned()];
            searches = own.into_iter().chain(searches).collect();
            if !own_options.iter().any(|o| o.starts_with("ndots")) {
                own_options.insert(0, "ndots:5".into());
            }
        }
    }
    for server in servers {
        text.extend(["nameserver ", &server, "\n"]);
    }
    text + &lines("search", &searches) + &lines("options", &own_options)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use serde_json::json;

    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
    const IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 1, 0, 0, 0, 7);

    fn machine() -> Machine {
        Machine {
            node: "node-1".into(),
            node_ips: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
            path: "/run/bin:/bin".into(),
            own_uid: 0,
            uids: parse_uid_map("         0          0 4294967295\n"),
            users: parse_passwd("root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/var/www:/bin/false\nbad\n"),
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop", "uid": "u",
            "labels": {"app": "web"}}, "spec": spec}))
        .unwrap()
    }

    fn spec_of(pod: &Pod, machine: &Machine) -> Result<ContainerSpec, String> {
        let services =
            vec![("DB_SERVICE_HOST".to_owned(), "10.96.0.3".to_owned()), ("DB_PORT".into(), "x".into())];
        container_spec(
            pod,
            &pod.spec.as_ref().unwrap().containers[0],
            &[IP.into(), IP6.into()],
            2,
            (machine, services),
        )
    }

    #[test]
    fn the_environment_is_ours_and_the_pods() {
        let pod = pod(
            json!({"containers": [{"name": "c", "command": ["run", "$(GREETING)", "$(NOPE)", "$$(A)", "5$"],
            "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "GREETING", "value": "hello $(WHO) at $(IP)"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                    {"name": "PATH", "value": "/opt:$(PATH)"},
                    {"name": "DB_PORT", "value": "mine"},
                    {"name": "DB", "value": "$(DB_SERVICE_HOST):$(DB_PORT)"}]}]}),
        );
        let spec = spec_of(&pod, &machine()).unwrap();
        assert_eq!(spec.argv, ["run", "hello web at $(IP)", "$(NOPE)", "$(A)", "5$"]);
        let env: BTreeMap<_, _> = spec.env.iter().cloned().collect();
        assert_eq!(env["PATH"], "/opt:/run/bin:/bin");
        // A service's variable is known to the container's own, which win.
        assert_eq!((env["DB"].as_str(), env["DB_PORT"].as_str()), ("10.96.0.3:mine", "mine"));
        assert_eq!(
            (env["IP"].as_str(), env["HOSTNAME"].as_str(), env["HOME"].as_str()),
            ("10.244.1.7", "web-1", "/")
        );
        assert_eq!(env["IPS"], "10.244.1.7,fd00:1:0:1::7");
        assert_eq!((env["MINISVC_NODE"].as_str(), env["MINISVC_POD"].as_str()), ("node-1", "web-1"));
        assert_eq!((spec.attempt, spec.cwd, spec.user), (2, "/".into(), None));
    }

    #[test]
    fn users_are_looked_up_or_refused() {
        let with = |context: serde_json::Value| {
            pod(json!({"securityContext": context, "containers": [{"name": "c", "command": ["x"]}]}))
        };
        let spec = spec_of(&with(json!({"runAsUser": 33})), &machine()).unwrap();
        assert_eq!(spec.user, Some(User { uid: 33, gid: 44 }));
        assert!(spec.env.contains(&("HOME".into(), "/var/www".into())));
        let spec = spec_of(&with(json!({"runAsUser": 1234, "runAsGroup": 5})), &machine()).unwrap();
        assert_eq!(spec.user, Some(User { uid: 1234, gid: 5 }));
        assert!(
            spec_of(&with(json!({"runAsNonRoot": true})), &machine()).unwrap_err().contains("runAsNonRoot")
        );
        let rootless = Machine { uids: parse_uid_map("0 1000 1\n"), ..machine() };
        let why = spec_of(&with(json!({"runAsUser": 33})), &rootless).unwrap_err();
        assert!(why.starts_with("securityContext.runAsUser: 33 "), "{why}");
        assert!(spec_of(&with(json!({"runAsUser": 0})), &rootless).is_ok());
        assert!(spec_of(&with(json!({"runAsUser": -1})), &rootless).is_err());
    }

    #[test]
    fn any_container_may_have_a_user_of_its_own() {
        let with = |context: serde_json::Value| json!([{"name": "x", "securityContext": context}]);
        let spec = |init: serde_json::Value, main: serde_json::Value| {
            has_other_user(&pod(json!({"initContainers": with(init), "containers": with(main)})))
        };
        assert!(!spec(json!({}), json!({"runAsGroup": 3})));
        assert!(spec(json!({"runAsUser": 33}), json!({})));
        assert!(spec(json!({}), json!({"runAsUser": 33})));
        assert!(has_other_user(&pod(json!({"containers": [], "securityContext": {"runAsUser": 0}}))));
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let pod1 = pod(json!({"containers": [{"name": "c"}]}));
        assert!(spec_of(&pod1, &machine()).unwrap_err().starts_with("command: required"));
        let pod2 = pod(json!({"containers": [{"name": "c", "command": ["x"], "env": [{"name": "S",
            "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}));
        assert_eq!(spec_of(&pod2, &machine()).unwrap_err(), "env S: valueFrom: only fieldRef can be had");
    }

    #[test]
    fn names_are_found_through_the_clusters_dns() {
        let dns = Ipv4Addr::new(10, 96, 0, 10);
        let plain =
            resolv_conf(&pod(json!({"containers": []})), dns, "cluster.local", "nameserver 1.1.1.1\n");
        assert_eq!(
            plain,
            "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        let default =
            pod(json!({"containers": [], "dnsPolicy": "Default", "dnsConfig": {"searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
        assert_eq!(
            resolv_conf(&default, dns, "cluster.local", "nameserver 1.1.1.1"),
            "nameserver 1.1.1.1\nsearch a.b\noptions ndots:2 edns0\n"
        );
        let hosts = hosts(
            &pod(json!({"containers": [], "hostname": "own", "hostAliases": [{"ip": "192.0.2.9",
            "hostnames": ["a", "b"]}]})),
            &[IP.into(), IP6.into()],
        );
        assert!(hosts.ends_with("10.244.1.7\town\nfd00:1:0:1::7\town\n192.0.2.9\ta b\n"), "{hosts}");
    }
}

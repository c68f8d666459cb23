//! A pod's status, from what its containers do. Pure.

mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::{Map, Value, json};

pub use self::stored::{ended_with_machine, read_back, ready_starts, started_starts};
use super::decide::{Health, Kind, Member, RestartPolicy, backoff, has_begun, here, is_over};
use crate::runtime::{ContainerState, Exit};

/// All that the status depends on.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The Pod.
    pub pod: &'a Object,
    /// The containers, in the order to start them.
    pub members: &'a [Member],
    /// What follows an end.
    pub restart: RestartPolicy,
    /// What the containers do, or did last.
    pub containers: &'a BTreeMap<String, ContainerState>,
    /// Containers that have not been started in the namespaces that there are.
    pub earlier: &'a BTreeSet<String>,
    /// How the containers are.
    pub health: &'a BTreeMap<String, Health>,
    /// Ends in a row that followed a bad start.
    pub failures: &'a BTreeMap<String, u32>,
    /// Why a container waits, other than for its next try: reason and message.
    pub waiting: &'a BTreeMap<String, (&'static str, String)>,
    /// The pod's addresses, while it has any; IPv4 first.
    pub ips: &'a [IpAddr],
    /// The node's addresses, IPv4 first.
    pub node_ips: &'a [IpAddr],
}

/// How an end is called.
fn reason(exit: &Exit) -> &'static str {
    match exit {
        Exit { not_started: Some(_), .. } => "StartError",
        Exit { code: 0, .. } => "Completed",
        Exit { oom_killed: true, .. } => "OOMKilled",
        _ => "Error",
    }
}

/// Seconds, as Kubernetes writes times.
pub fn time(millis: i64) -> String {
    let at = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn terminated(exit: &Exit, id: &str) -> Value {
    let mut value = json!({
        "exitCode": exit.code,
        "reason": reason(exit),
        "startedAt": time(exit.started_at),
        "finishedAt": time(exit.finished_at),
        "containerID": id,
    });
    if let Some(signal) = exit.signal {
        value["signal"] = signal.into();
    }
    if let Some(message) = exit.not_started.as_ref().or(exit.message.as_ref()) {
        value["message"] = message.as_str().into();
    }
    value
}

impl Seen<'_> {
    fn health(&self, name: &str) -> Option<&Health> {
        let attempt = self.containers.get(name)?.attempt;
        self.health.get(name).filter(|h| h.attempt == attempt)
    }

    fn is_running(&self, member: &Member) -> bool {
        self.containers.get(&member.name).is_some_and(ContainerState::is_running)
    }

    fn is_started(&self, member: &Member) -> bool {
        let started = || self.health(&member.name).is_some_and(|h| h.started);
        self.is_running(member) && (member.kind == Kind::Init || started())
    }

    /// Nothing that follows has to wait for this init container. [pkg/kubelet/status, GeneratePodInitializedCondition]
    fn is_complete(&self, member: &Member) -> bool {
        let state = here(&member.name, self.containers, self.earlier);
        match member.kind {
            Kind::Init => state.and_then(|c| c.exit.as_ref()).is_some_and(|e| e.code == 0),
            Kind::Sidecar => state.is_some() && self.is_started(member),
            Kind::Main => true,
        }
    }

    fn is_ready(&self, member: &Member) -> bool {
        match member.kind {
            Kind::Init => self.is_complete(member),
            _ => self.is_started(member) && self.health(&member.name).is_some_and(|h| h.ready),
        }
    }

    /// The init containers that hold up the others.
    fn incomplete(&self) -> Vec<&str> {
        if has_begun(self.members, self.containers, self.earlier) {
            return Vec::new();
        }
        self.members.iter().filter(|m| !self.is_complete(m)).map(|m| m.name.as_str()).collect()
    }
}

/// Why the next start has not come yet. It names the whole wait, as Kubernetes does, and the moment of its end: what is left of
/// it changes, and a status does not.
fn crash_loop(seen: &Seen<'_>, name: &str, exit: &Exit) -> String {
    let why = exit.not_started.clone().unwrap_or_else(|| match exit.signal {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit code {}", exit.code),
    });
    let wait = backoff(seen.failures.get(name).copied().unwrap_or(1));
    let pod =
        format!("{}_{}({})", seen.pod.name(), seen.pod.namespace().unwrap_or("default"), seen.pod.uid());
    let next = time(exit.finished_at.saturating_add(wait));
    format!(
        "back-off {}s restarting failed container={name} pod={pod}: next start at {next}; last end: {why}",
        wait / 1000
    )
}

fn container_status(seen: &Seen<'_>, member: &Member, initialized: bool) -> Value {
    let name = member.name.as_str();
    let uid = seen.pod.uid();
    let id = |attempt: u32| format!("minisvc://{uid}/{name}/{attempt}");
    let state = seen.containers.get(name);
    let now;
    let mut last = json!({});
    let waiting = |reason: &str, message: Option<String>| match message {
        Some(message) => json!({"waiting": {"reason": reason, "message": message}}),
        None => json!({"waiting": {"reason": reason}}),
    };
    // Its turn has not come (again).
    let has_turn = initialized
        || match member.kind {
            Kind::Main => false,
            _ => here(name, seen.containers, seen.earlier).is_some(),
        };
    match state {
        Some(ContainerState { exit: None, started_at, attempt, previous }) => {
            now = json!({"running": {"startedAt": time(*started_at)}});
            if let Some(exit) = previous {
                last = json!({"terminated": terminated(exit, &id(attempt.saturating_sub(1)))});
            }
        }
        Some(ContainerState { exit: Some(exit), attempt, .. }) => {
            let end = json!({"terminated": terminated(exit, &id(*attempt))});
            let condemned = seen.health(name).is_some_and(|h| h.condemned.is_some());
            let over = is_over(seen.members, seen.restart, seen.containers, seen.health)
                || seen.pod.deletion_timestamp().is_some();
            if !over && (!has_turn || member.kind.restarts(seen.restart, exit, condemned)) {
                now = match seen.waiting.get(name) {
                    Some((reason, message)) => waiting(reason, Some(message.clone())),
                    None if !has_turn => waiting("PodInitializing", None),
                    None => waiting("CrashLoopBackOff", Some(crash_loop(seen, name, exit))),
                };
                last = end;
            } else {
                now = end;
            }
        }
        None => {
            let (reason, message) = match seen.waiting.get(name) {
                Some((reason, message)) => (*reason, Some(message.clone())),
                None if seen.members.iter().any(|m| m.kind != Kind::Main) => ("PodInitializing", None),
                None => ("ContainerCreating", None),
            };
            now = waiting(reason, message);
        }
    }
    let list = if member.kind == Kind::Main { "/spec/containers" } else { "/spec/initContainers" };
    let image = seen.pod.pointer(list).and_then(Value::as_array).into_iter().flatten();
    let image = image.filter(|c| c["name"] == name).find_map(|c| c["image"].as_str()).unwrap_or("");
    let mut status = json!({
        "name": name,
        "image": image,
        "imageID": "",
        "restartCount": state.map_or(0, |s| s.attempt),
        "ready": seen.is_ready(member),
        "started": seen.is_started(member),
        "state": now,
        "lastState": last,
    });
    if let Some(state) = state {
        status["containerID"] = id(state.attempt).into();
    }
    status
}

/// [pkg/kubelet, getPhase]
fn phase(seen: &Seen<'_>, initialized: bool) -> &'static str {
    let has_run = |m: &Member| seen.containers.contains_key(&m.name);
    let mut main = seen.members.iter().filter(|m| m.kind == Kind::Main);
    if is_over(seen.members, seen.restart, seen.containers, seen.health)
        && !seen.members.iter().any(|m| seen.is_running(m))
    {
        let failed = |m: &Member| {
            let exit = seen.containers.get(&m.name).and_then(|c| c.exit.as_ref());
            m.kind != Kind::Sidecar && exit.is_none_or(|e| e.code != 0)
        };
        return if seen.members.iter().any(failed) { "Failed" } else { "Succeeded" };
    }
    // Ended in the middle of a deletion: its object is about to go.
    if initialized && main.all(has_run) { "Running" } else { "Pending" }
}

fn condition(kind: &str, is: bool, reason: &str, message: &str) -> Value {
    let mut value = json!({"type": kind, "status": if is { "True" } else { "False" }});
    if !is {
        value["reason"] = reason.into();
        value["message"] = message.into();
    }
    value
}

/// The status that should stand on the server, without the times of [`merge`].
pub fn render(seen: &Seen<'_>) -> Value {
    let incomplete = seen.incomplete();
    let initialized = incomplete.is_empty();
    let (main, init): (Vec<&Member>, Vec<&Member>) = seen.members.iter().partition(|m| m.kind == Kind::Main);
    let statuses =
        |of: &[&Member]| of.iter().map(|m| container_status(seen, m, initialized)).collect::<Value>();
    let phase = phase(seen, initialized);
    let counts = |m: &&Member| m.kind != Kind::Init && !seen.is_ready(m);
    let unready: Vec<&str> = seen.members.iter().filter(counts).map(|m| m.name.as_str()).collect();
    let ready = unready.is_empty() && phase == "Running";
    let (reason, message) = match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
    };
    let not_complete = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    let mut status = json!({
        "phase": phase,
        "conditions": [
            condition("PodScheduled", true, "", ""),
            condition("Initialized", initialized, "ContainersNotInitialized", &not_complete),
            condition("ContainersReady", ready, reason, &message),
            condition("Ready", ready, reason, &message),
        ],
        "hostIP": seen.node_ips.first().map(ToString::to_string),
        "hostIPs": list(seen.node_ips),
        "containerStatuses": statuses(&main),
        "qosClass": qos_class(seen.pod),
    });
    if !init.is_empty() {
        status["initContainerStatuses"] = statuses(&init);
    }
    if let Some(ip) = seen.ips.first() {
        status["podIP"] = ip.to_string().into();
        status["podIPs"] = list(seen.ips);
    }
    status
}

/// Whether a status says that the pod serves.
pub fn is_ready(status: &Value) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// `podIPs` and `hostIPs`.
fn list(ips: &[IpAddr]) -> Value {
    ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect()
}

/// Guaranteed, Burstable or BestEffort, by what the containers ask for.
fn qos_class(pod: &Object) -> &'static str {
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let containers = list("/spec/containers").chain(list("/spec/initContainers"));
    let (mut any, mut all) = (false, true);
    for container in containers {
        let part = |part: &str| {
            let of = |resource: &str| container.pointer(&format!("/resources/{part}/{resource}")).cloned();
            [of("cpu"), of("memory")]
        };
        let (requests, limits) = (part("requests"), part("limits"));
        any |= requests.iter().chain(&limits).any(Option::is_some);
        all &= limits.iter().all(Option::is_some)
            && requests.iter().zip(&limits).all(|(r, l)| r.is_none() || r == l);
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What to write so that the stored status says what it should; `None` if it does. Times of conditions that stay as they are
/// stay too, and so do conditions of others.
pub fn merge(stored: Option<&Value>, want: &Value, now: &str) -> Option<Value> {
    let old = |field: &str| stored.and_then(|s| s.get(field));
    let no_conditions = Vec::new();
    let old_conditions = old("conditions").and_then(Value::as_array).unwrap_or(&no_conditions);
    let wanted = want["conditions"].as_array().unwrap_or(&no_conditions);
    let mut conditions = Vec::new();
    for condition in wanted {
        let mut condition = condition.clone();
        let before = old_conditions.iter().find(|c| c["type"] == condition["type"]);
        let since = before.filter(|c| c["status"] == condition["status"]);
        condition["lastTransitionTime"] = since
            .map(|c| c["lastTransitionTime"].clone())
            .filter(Value::is_string)
            .unwrap_or_else(|| now.into());
        condition["lastProbeTime"] = Value::Null;
        conditions.push(condition);
    }
    let others = old_conditions.iter().filter(|c| !wanted.iter().any(|w| w["type"] == c["type"]));
    conditions.extend(others.cloned());
    let mut new: Map<String, Value> = want.as_object().cloned().unwrap_or_default();
    let same_conditions = bare(&conditions) == bare(old_conditions);
    new.insert(
        "conditions".into(),
        if same_conditions { old_conditions.clone().into() } else { conditions.into() },
    );
    new.insert(
        "startTime".into(),
        old("startTime").filter(|t| t.is_string()).cloned().unwrap_or_else(|| now.into()),
    );
    // A pod that has lost its address: an absent field would leave it in place.
    for field in ["podIP", "podIPs", "reason", "message"] {
        if !new.contains_key(field) && old(field).is_some() {
            new.insert(field.into(), Value::Null);
        }
    }
    let stands = |(field, value): (&String, &Value)| old(field).unwrap_or(&Value::Null) == value;
    (!new.iter().all(stands)).then_some(Value::Object(new))
}

/// Conditions without what says nothing.
fn bare(conditions: &[Value]) -> Vec<Value> {
    let mut bare = conditions.to_vec();
    for condition in &mut bare {
        if let Some(map) = condition.as_object_mut() {
            map.retain(|_, v| !v.is_null());
        }
    }
    bare.sort_by_key(|c| c["type"].to_string());
    bare
}

#[cfg(test)]
mod tests;

//! What an agent needs from a watch event, or from its start, to the kernel's acknowledgement.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use minisvc_agent::{
    dataplane::Dataplane,
    dns::{SharedZone, Zone, ZoneConfig},
    sync::world::World,
};
use minisvc_proto::{Object, Revision, watch::WatchEvent};
use minisvc_tests::netns::Namespace;
use serde_json::{Value, json};

use super::{
    figure::{Figure, Target, Unit, median, quantile, thousands},
    objects::{self, ENDPOINTS, MANY_SERVICES, POD_PORT, SERVICES, pod_ip},
    program::Effort,
    topology::dataplane_config,
};

/// Between two events of a node that is not busy: caches have cooled and threads sleep.
const PAUSE: Duration = Duration::from_millis(1);

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A list as the server sends it.
fn list(kind: &str, items: impl Iterator<Item = Value>) -> Vec<u8> {
    let list = json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "1"},
        "items": items.collect::<Vec<_>>()});
    list.to_string().into_bytes()
}

/// As the agent's client reads it.
fn parse(list: &[u8]) -> anyhow::Result<Vec<Arc<Object>>> {
    let mut list: Object = serde_json::from_slice(list)?;
    let Some(Value::Array(items)) = list.0.remove("items") else { bail!("a list without items") };
    let object = |item| match item {
        Value::Object(map) => Ok(Arc::new(Object(map))),
        other => bail!("an item that is no object: {other}"),
    };
    items.into_iter().map(object).collect()
}

/// The two lists that an agent gets first.
struct Lists {
    services: Vec<u8>,
    slices: Vec<u8>,
}

impl Lists {
    fn new(count: u16) -> Self {
        let services = list("ServiceList", (0..count).map(objects::service));
        let slices = list("EndpointSliceList", (0..count).map(objects::idle_slice));
        Lists { services, slices }
    }

    fn world(&self) -> anyhow::Result<World> {
        // Each list has an informer, with a task of its own.
        let (services, slices) = thread::scope(|informers| {
            let services = informers.spawn(|| parse(&self.services));
            (services.join(), parse(&self.slices))
        });
        let services = services.map_err(|_| anyhow!("the list of services: a panic"))?;
        let mut world = World::default();
        world.reset_services(Revision(1), services?);
        world.reset_slices(Revision(1), slices?);
        Ok(world)
    }
}

fn zone(
    world: &World,
    touched: &[(minisvc_agent::plan::ServiceKey, Option<minisvc_agent::plan::ServicePlan>)],
    zone: &SharedZone,
) {
    for (key, _) in touched {
        let state = world.service(key);
        let slices: Vec<_> = state.iter().flat_map(|(_, slices)| slices).map(|slice| &**slice).collect();
        zone.put(key, state.as_ref().map(|(service, _)| (*service, &slices[..])));
    }
}

fn empty_zone() -> SharedZone {
    SharedZone::new(Zone::new(&ZoneConfig { domain: "cluster.local".into(), ..ZoneConfig::default() }))
}

/// What a start takes.
struct Start {
    whole: Duration,
    /// Comparing with the kernel, rendering, and one transaction.
    kernel: Duration,
}

/// From both lists as the server sends them to the kernel's acknowledgement.
async fn start(lists: &Lists) -> anyhow::Result<Start> {
    let began = Instant::now();
    let dataplane = Dataplane::start(dataplane_config(1)?)?;
    let mut world = lists.world()?;
    let touched = objects::touched(&mut world);
    let planned = Instant::now();
    dataplane.apply(touched.clone()).await?;
    let kernel = planned.elapsed();
    zone(&world, &touched, &empty_zone());
    Ok(Start { whole: began.elapsed(), kernel })
}

/// An agent's start on a new node, and on one where an earlier agent left all of it in the kernel.
pub fn cold_start(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    starts(effort, SERVICES, Target::AtMost(300.0))
}

/// The same in a very big cluster.
pub fn cold_start_of_many(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    starts(effort, MANY_SERVICES, Target::AtMost(1000.0))
}

fn starts(effort: Effort, count: u16, target: Target) -> anyhow::Result<Vec<Figure>> {
    let lists = Lists::new(count);
    let (mut cold, mut again) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let node = Namespace::new("node")?;
        node.block_on(async || {
            cold.push(start(&lists).await?);
            again.push(start(&lists).await?);
            Ok(())
        })?;
    }
    let figure = |name: &str, starts: &[Start], target| {
        let of = |part: fn(&Start) -> Duration| starts.iter().map(part).map(milliseconds).collect::<Vec<_>>();
        let note = format!("of it the kernel's part {:.0} ms", median(&of(|s| s.kernel)));
        Figure::of_rounds(name, Unit::Milliseconds, &of(|s| s.whole), target, note)
    };
    Ok(vec![
        figure(&format!("agent cold start, {} services x 10", thousands(count.into())), &cold, target),
        figure("the same over the rules of an earlier agent", &again, Target::Informative),
    ])
}

/// One endpoint of one of many services turns ready or not: from the watch's line to the kernel's acknowledgement.
pub fn watch_event(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    events(effort, SERVICES)
}

/// The same in a very big cluster.
pub fn watch_event_of_many(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    events(effort, MANY_SERVICES)
}

fn events(effort: Effort, count: u16) -> anyhow::Result<Vec<Figure>> {
    let lists = Lists::new(count);
    let node = Namespace::new("node")?;
    let rounds = node.block_on(async || {
        let dataplane = Dataplane::start(dataplane_config(1)?)?;
        let mut world = lists.world()?;
        let first = objects::touched(&mut world);
        dataplane.apply(first.clone()).await?;
        let names = empty_zone();
        zone(&world, &first, &names);
        let mut rounds = Vec::new();
        let mut number = 0u16;
        for _ in 0..effort.rounds {
            let mut times = Vec::new();
            for _ in 0..effort.events {
                let line = event(number, count);
                number += 1;
                tokio::time::sleep(PAUSE).await;
                let began = Instant::now();
                let event: WatchEvent = serde_json::from_str(&line)?;
                world.slice_event(event.kind, &event.object);
                let touched = objects::touched(&mut world);
                anyhow::ensure!(touched.len() == 1, "the event touched {} services", touched.len());
                dataplane.apply(touched.clone()).await?;
                times.push(milliseconds(began.elapsed()));
                zone(&world, &touched, &names);
            }
            rounds.push(times);
        }
        Ok(rounds)
    })?;
    let p99: Vec<f64> = rounds.iter().map(|times| quantile(times, 0.99)).collect();
    let all = rounds.concat();
    let name = format!("watch event to netlink's acknowledgement, {} services, p99", thousands(count.into()));
    let note = format!("p50 {:.2} ms, of {} events", median(&all), all.len());
    Ok(vec![Figure::of_rounds(&name, Unit::Milliseconds, &p99, Target::AtMost(2.0), note)])
}

/// The services lose their last endpoint one after the other, and get it back in the next turn.
fn event(number: u16, count: u16) -> String {
    let service = number % count;
    let ready = (number / count) % 2 == 1;
    let endpoints: Vec<(Ipv4Addr, bool)> =
        (0..ENDPOINTS).map(|n| (pod_ip(service, n), ready || n + 1 < ENDPOINTS)).collect();
    let slice = objects::slice(service, u64::from(number) + 2, POD_PORT, &endpoints);
    json!({"type": "MODIFIED", "object": slice}).to_string()
}

//! `up` and `down` as the user sees them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use minisvc_proto::{
    Object,
    client::{Client, Kubeconfig, ListParams},
    path::Target,
    resource::{NODES, SERVICES},
};
use nix::sys::signal::{SigSet, Signal, kill};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{
    api::{connect, ready_node},
    args::{DownArgs, Stage, UpArgs},
    demo,
    hints::{Found, Hints, may_write},
    keeper, lan,
    paths::{Paths, create_private},
    relay,
    report::{self, Line},
    room,
    state::{State, try_lock, write_private},
};
use crate::{config, output};

const READY: Duration = Duration::from_mins(1);
const GONE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

/// Starts a cluster; or, in the processes that it starts, is one of them. `config` is where its configuration is asked to be.
pub fn up(mut args: UpArgs, config: Option<PathBuf>) -> anyhow::Result<()> {
    let mut paths = Paths::of(&args.name, args.data_dir.as_deref())?;
    if let (Some(run), Some(log)) = (&args.run_dir, &args.log_dir) {
        (paths.run, paths.log) = (run.clone(), log.clone());
    }
    let Some(stage) = args.stage else {
        paths.create()?;
        // Its services and nodes have addresses of both families, for good.
        args.ipv6 |= paths.dual_stack().exists();
        return start(&args, &paths, config.as_deref());
    };
    // The mask of the process that started us is not ours.
    SigSet::empty().thread_set_mask()?;
    let result = match stage {
        Stage::Probe => match args.room_pid {
            None => probe_room(&args, &paths),
            Some(_) => room::probe(),
        },
        Stage::Keeper => keeper::run(&args, &paths),
        Stage::Room => room::run(&args, &paths),
        Stage::Relay => relay::run(&args, &paths),
    };
    if let Err(e) = &result {
        report::send(&Line::Failed(format!("{e:#}")));
    }
    result
}

/// Tries the whole chain in two processes that are thrown away.
fn probe_room(args: &UpArgs, paths: &Paths) -> anyhow::Result<()> {
    keeper::isolate()?;
    // The first process of the new process-id namespace.
    let status = keeper::stage(args, paths, Stage::Probe, &["--room-pid", "1"])?.status()?;
    if status.success() { Ok(()) } else { bail!("see above") }
}

fn probe(args: &UpArgs, paths: &Paths) -> anyhow::Result<()> {
    let output = keeper::stage(args, paths, Stage::Probe, &[])?.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let why =
        text.lines().find_map(|l| l.strip_prefix("failed ")).unwrap_or("the probe ended without a word");
    let read = |file: &str| fs::read_to_string(file).map(|s| s.trim().to_owned()).unwrap_or_default();
    let advice = if nix::unistd::geteuid().is_root() {
        "give this container or service CAP_SYS_ADMIN and CAP_NET_ADMIN, or run on the machine itself"
    } else if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "allow it with `sysctl kernel.unprivileged_userns_clone=1`, or run as root"
    } else if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "allow it with `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run as root"
    } else if read("/proc/sys/user/max_user_namespaces") == "0" {
        "allow it with `sysctl user.max_user_namespaces=10000`, or run as root"
    } else {
        "run as root, or on a machine or in a container that allows user namespaces"
    };
    bail!("this machine refuses what a cluster needs ({why}): {advice}")
}

fn start(args: &UpArgs, paths: &Paths, config: Option<&Path>) -> anyhow::Result<()> {
    if try_lock(paths)?.is_some() {
        // Nobody runs, so it is worth trying; the keeper takes the lock for good.
        probe(args, paths).inspect_err(|_| paths.remove_empty())?;
    }
    let began = Instant::now();
    let mut command = keeper::stage(args, paths, Stage::Keeper, &[])?;
    command.stdout(Stdio::piped());
    command.stdin(Stdio::piped());
    let mut keeper = command.spawn().context("cannot start the keeper")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(watch(args, paths, config, &mut keeper, began));
    if let Ok(Outcome::Leave(fault)) = result {
        let mut stdin = keeper.stdin.take().context("the keeper has no input")?;
        stdin.write_all(keeper::LEAVE).context("the keeper is gone")?;
        return fault.map_or(Ok(()), |e| Err(e.context("the demonstration failed, the cluster runs")));
    }
    // The end of its standard input, or this signal, ends the keeper and with it everything.
    drop(keeper.stdin.take());
    if let Ok(pid) = i32::try_from(keeper.id()) {
        let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
    }
    keeper.wait()?;
    result?;
    let name = if args.name == "default" { String::new() } else { format!(" --name {}", args.name) };
    let down = format!(
        "cluster \"{}\" is down; `minisvc up{name}` brings its objects back, `minisvc down --purge{name}` forgets them",
        args.name
    );
    if args.detach {
        bail!("interrupted before it was ready: {down}");
    }
    print(&down)
}

/// How watching a start ends.
enum Outcome {
    /// The cluster runs on by itself. A demonstration that failed is no reason to end it: it is looked into best while it runs.
    Leave(Option<anyhow::Error>),
    /// A signal asked for the end.
    End,
}

/// Until the cluster is ready (detached) or asked to end.
async fn watch(
    args: &UpArgs,
    paths: &Paths,
    config: Option<&Path>,
    keeper: &mut Child,
    began: Instant,
) -> anyhow::Result<Outcome> {
    let out = keeper.stdout.take().context("the keeper has no output")?;
    let out = tokio::net::unix::pipe::Receiver::from_owned_fd(out.into())?;
    let mut lines = BufReader::new(out).lines();
    let told = |text: &str| print(&format!("{:>6.2}s  {text}", began.elapsed().as_secs_f64()));
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut next = async || match lines.next_line().await? {
        Some(line) => Ok(report::parse(&line)),
        None => bail!("the keeper ended; logs are in {}", paths.log.display()),
    };
    loop {
        tokio::select! {
            line = next() => match line? {
                Line::Say(text) => told(&text)?,
                Line::Failed(text) => bail!("{text}"),
                Line::Started => break,
            },
            _ = interrupt.recv() => return Ok(Outcome::End),
            _ = terminate.recv() => return Ok(Outcome::End),
        }
    }
    let mut fault = None;
    let work = async {
        all_ready(args, paths, &told).await?;
        let found = place(args, paths, config)?;
        let client = connect(&paths.admin_config())?;
        if args.demo {
            match demo::run(&client, &told, print).await {
                Ok(()) => {}
                Err(e) if args.detach => fault = Some(e),
                Err(e) => told(&format!("the demonstration failed: {e:#}"))?,
            }
        }
        let service = match demo::known(&client).await {
            Some(known) => Ok(known),
            None => Err(free_port_for_hints(&client).await),
        };
        hints(args, paths, found.as_deref(), service.as_ref().map_err(|port| *port))
    };
    {
        tokio::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => { result?; break }
                line = next() => match line? {
                    Line::Say(text) => told(&text)?,
                    Line::Failed(text) => bail!("{text}"),
                    Line::Started => {}
                },
                _ = interrupt.recv() => return Ok(Outcome::End),
                _ = terminate.recv() => return Ok(Outcome::End),
            }
        }
    }
    if args.detach {
        return Ok(Outcome::Leave(fault));
    }
    print("Ctrl-C ends the cluster.")?;
    loop {
        tokio::select! {
            line = next() => match line? {
                Line::Say(text) => told(&text)?,
                Line::Failed(text) => bail!("{text}"),
                Line::Started => {}
            },
            _ = interrupt.recv() => return Ok(Outcome::End),
            _ = terminate.recv() => return Ok(Outcome::End),
        }
    }
}

/// Puts the administrator's configuration where every command looks for it, unless another cluster's is there. What comes back is
/// the path that commands must be told, if they must.
fn place(args: &UpArgs, paths: &Paths, asked: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let own = fs::read(paths.admin_config())
        .with_context(|| format!("cannot read {}", paths.admin_config().display()))?;
    let Ok(path) = config::path(asked) else { return Ok(Some(paths.admin_config())) };
    let existing = Kubeconfig::load(&path);
    let found = match &existing {
        _ if asked.is_some() || !path.exists() => Found::Nothing,
        Ok(config) => config.server().map_or(Found::Unreadable, Found::Server),
        Err(_) => Found::Unreadable,
    };
    if !may_write(&args.name, &format!("https://127.0.0.1:{}", args.api_port), found) {
        print(&format!(
            "{} stays as it is, it is the configuration of another cluster: give --config as below",
            path.display()
        ))?;
        return Ok(Some(paths.admin_config()));
    }
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty());
    let written =
        dir.map_or(Ok(()), create_private).map_err(Into::into).and_then(|()| write_private(&path, &own));
    match (written, asked) {
        (Ok(()), None) => Ok(None),
        (Ok(()), Some(asked)) => Ok(Some(std::path::absolute(asked)?)),
        // A home that cannot be written to is no reason to end a cluster.
        (Err(e), None) => {
            print(&format!("{} cannot be written ({e:#}): give --config as below", path.display()))?;
            Ok(Some(paths.admin_config()))
        }
        (Err(e), Some(_)) => Err(e.context(format!("--config {}", path.display()))),
    }
}

/// Waits until every node is Ready, and names each as it comes.
async fn all_ready(
    args: &UpArgs,
    paths: &Paths,
    told: &impl Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let api = connect(&paths.admin_config())?;
    let all = Target::collection(&NODES, None);
    let mut seen = std::collections::BTreeSet::new();
    let wait = async {
        loop {
            // The relay may be a moment behind the server.
            if let Ok((_, nodes)) = api.list(&all, &ListParams::default()).await {
                for (name, ip) in nodes.iter().filter(|n| is_of_this_run(n, paths)).filter_map(ready_node) {
                    if seen.insert(name.clone()) {
                        told(&format!("{name} Ready ({ip})"))?;
                    }
                }
            }
            if seen.len() >= usize::from(args.nodes) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    if let Ok(result) = tokio::time::timeout(READY, wait).await {
        return result;
    }
    let late: Vec<_> = (1..=args.nodes).map(|i| format!("node-{i}")).filter(|n| !seen.contains(n)).collect();
    bail!("not Ready within {READY:?}: {}; logs are in {}", late.join(", "), paths.log.display())
}

/// Whether a node's status was written by an agent of this run: what an earlier run left may still say Ready.
fn is_of_this_run(node: &Object, paths: &Paths) -> bool {
    let boot = fs::read_to_string(paths.run.join(node.name()).join("boot-id"));
    boot.is_ok_and(|id| node.str_at("/status/nodeInfo/bootID") == Some(id.trim()))
}

/// The end of a start: what can be done now.
fn hints(
    args: &UpArgs,
    paths: &Paths,
    config: Option<&Path>,
    service: Result<&super::hints::Known, u16>,
) -> anyhow::Result<()> {
    // One node asks another, where there is another.
    let from = format!("node-{}", args.nodes.min(2));
    let hints = Hints {
        binary: &super::own_binary()?,
        config,
        name: &args.name,
        nodes: (&from, lan::node_ip(args.nodes)),
        service,
    };
    print(&format!(
        "\nCluster \"{}\" is ready: {} node{}, API https://127.0.0.1:{}, logs in {}. Try:",
        args.name,
        args.nodes,
        if args.nodes == 1 { "" } else { "s" },
        args.api_port,
        paths.log.display()
    ))?;
    for line in hints.lines() {
        print(&format!("  {line}"))?;
    }
    Ok(())
}

/// A nodePort that the next `create service` can have.
async fn free_port_for_hints(api: &Client) -> u16 {
    let services = api.list(&Target::collection(&SERVICES, None), &ListParams::default()).await;
    let services = services.map(|(_, services)| services).unwrap_or_default();
    let ports = services.iter().filter_map(|s| s.pointer("/spec/ports")?.as_array()).flatten();
    let allocated: Vec<u16> =
        ports.filter_map(|p| u16::try_from(p.get("nodePort")?.as_u64()?).ok()).collect();
    let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    super::hints::free_node_port(&allocated, is_free).unwrap_or(30_080)
}

/// Stops a cluster and waits until nothing of it is left.
pub fn down(args: DownArgs) -> anyhow::Result<()> {
    let mut paths = Paths::of(&args.name, args.data_dir.as_deref())?;
    // A cluster that ran knows best where its data lies.
    if let (Some(dir), None) = (State::read(&paths).and_then(|s| s.data), &args.data_dir) {
        paths.data = dir;
    }
    let known = paths.run.is_dir();
    if known {
        stop(&args.name, &paths)?;
    } else {
        print(&format!("cluster \"{}\" does not run", args.name))?;
    }
    if args.purge {
        forget_config(&paths)?;
        let had_data = paths.purge()?;
        let (name, dir) = (&args.name, paths.data.display());
        print(&if had_data {
            format!("the data of cluster \"{name}\" in {dir} is removed")
        } else {
            format!("there is no data of cluster \"{name}\" in {dir}")
        })?;
    }
    Ok(())
}

/// Removes the configuration that [`place`] put where every command looks, if it is this cluster's still.
fn forget_config(paths: &Paths) -> anyhow::Result<()> {
    let Ok(path) = config::path(None) else { return Ok(()) };
    match (fs::read(&path), fs::read(paths.admin_config())) {
        (Ok(there), Ok(own)) if there == own => {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn stop(name: &str, paths: &Paths) -> anyhow::Result<()> {
    let end = Instant::now() + GONE;
    let (mut ran, mut asked) = (false, false);
    loop {
        let lock = try_lock(paths)?;
        // A keeper drops the lock before it is gone itself, and a room outlives a keeper that was killed by a moment.
        let state = State::read(paths).filter(State::alive);
        // Also a room that outlived its keeper ran.
        ran |= lock.is_none() || state.is_some();
        if lock.is_some() && state.is_none() {
            let how = if ran { "is down" } else { "does not run" };
            return print(&format!("cluster \"{name}\" {how}"));
        }
        // Asked once; between the lock and the state file there is a moment without an answer.
        if let (None, Some(State { keeper, .. }), false) = (lock, state, asked) {
            kill(nix::unistd::Pid::from_raw(keeper.pid), Signal::SIGTERM)
                .with_context(|| format!("process {} cannot be asked to end", keeper.pid))?;
            asked = true;
        }
        if Instant::now() > end {
            bail!("cluster \"{name}\" did not end within {GONE:?}; logs are in {}", paths.log.display());
        }
        std::thread::sleep(POLL);
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    match output::line(text) {
        // Nobody reads any more: that is no reason to end a cluster.
        Ok(()) | Err(output::PrintError::ReaderGone(_)) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

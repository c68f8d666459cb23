//! The room: one process-id, mount, network, IPC and UTS namespace that holds the whole cluster. When its first process ends,
//! the kernel ends everything in it.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use minisvc_agent::{nft::Nft, plan::Family};
use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
};

use super::{
    args::UpArgs,
    lan::{self, Machine},
    paths::{Paths, create_private},
    report::{Line, say, send},
    state::write_private,
    supervise::{Service, Supervisor, Turn, last_line},
};

const SERVER_START: Duration = Duration::from_secs(20);
/// The second family's ranges, unique local. They do not overlap the LAN's, see [`lan::second`].
const PODS6: &str = "fd69:6d69:6e6a::/48";
const SERVICES6: &str = "fd69:6d69:6e69:ffff::/112";
const STOP: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(10);

/// The first process of the room: makes the namespaces, the LAN and the processes, and keeps them until standard input closes.
pub fn run(args: &UpArgs, paths: &Paths) -> anyhow::Result<()> {
    // The keeper's death is ours, and with ours the death of everything in the room.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if hung_up(std::io::stdin())? {
        // It died before we could ask to be told.
        return Ok(());
    }
    enter(&args.name)?;
    let mut places = vec![("server".to_owned(), lan::SERVER)];
    places.extend((1..=args.nodes).map(|i| (format!("node-{i}"), lan::node_ip(i))));
    let lan = lan::lay(&places, args.ipv6)?;
    let [server, nodes @ ..] = lan.machines.as_slice() else { bail!("a LAN without a server") };
    let machine = if args.no_host_access { None } else { open_gateway() };
    // The relay is started by the keeper, on the other side of the wall, once this file says that there is a LAN to open sockets in.
    fs::write(paths.resolv_conf(), format!("nameserver {}\n", lan::ROOM))?;
    say("room ready");

    let mut supervisor = Supervisor::new()?;
    let keeper = std::io::stdin();
    supervisor.add(server_service(server, args.ipv6, paths)?)?;
    let target = SocketAddr::new(lan::SERVER.into(), super::SERVER_PORT);
    let end = Instant::now() + SERVER_START;
    // It writes its administrator's file when it listens, and the token is asked for with that.
    let admin_file = paths.data.join("server/admin.kubeconfig");
    while TcpStream::connect_timeout(&target, CONNECT).is_err() || !admin_file.exists() {
        if supervisor.turn(&keeper, Some(RETRY))? == Turn::Closed {
            return supervisor.stop(STOP);
        }
        let log = paths.log.join("server.log");
        if supervisor.has_ended("server") {
            bail!("the server ended at its start: {}", last_line(&log));
        }
        if Instant::now() > end {
            bail!("the server did not answer within {SERVER_START:?}: {}", last_line(&log));
        }
    }
    let api = format!("https://127.0.0.1:{}", args.api_port);
    let data = paths.data.join("server");
    let arg = OsStr::new;
    let admin = ["server", "credentials", "--admin", "--server", &api, "--data-dir"].map(arg);
    keep_printed(server, &[&admin[..], &[data.as_os_str()]].concat(), &paths.admin_config())?;
    let token = ["token", "create", "--ttl", TOKEN_LIFE, "--config"].map(arg);
    keep_printed(server, &[&token[..], &[admin_file.as_os_str()]].concat(), &token_file(paths))?;
    say("server up");
    for node in nodes {
        supervisor.add(agent_service(node, server, machine, paths)?)?;
    }
    send(&Line::Started);
    while supervisor.turn(&keeper, None)? == Turn::Again {}
    supervisor.stop(STOP)
}

/// Makes the namespaces that this process and all its children live in.
fn enter(name: &str) -> anyhow::Result<()> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("the kernel refuses a mount, network, IPC or UTS namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mounting /proc")?;
    nix::unistd::sethostname(format!("minisvc-{name}")).context("setting the room's host name")?;
    Ok(())
}

/// Whether nobody holds the other end of a pipe any more.
fn hung_up(pipe: impl AsFd) -> nix::Result<bool> {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP)))
}

fn server_service<'m>(machine: &'m Machine, ipv6: bool, paths: &Paths) -> anyhow::Result<Service<'m>> {
    let data = paths.data.join("server");
    create_private(&data)?;
    if ipv6 {
        fs::write(paths.dual_stack(), "").context("cannot keep in mind that the cluster has IPv6")?;
    }
    let ip = machine.ip;
    let mut args = vec!["server".to_owned(), "--data-dir".to_owned(), data.display().to_string()];
    args.extend(["--listen".to_owned(), format!("{ip}:{}", super::SERVER_PORT)]);
    args.extend(["--advertise".to_owned(), ip.to_string()]);
    for san in ["127.0.0.1", "::1", "localhost"] {
        args.extend(["--tls-san".to_owned(), san.to_owned()]);
    }
    if ipv6 {
        args.extend(["--pod-cidr".to_owned(), format!("10.244.0.0/16,{PODS6}")]);
        args.extend(["--service-cidr".to_owned(), format!("10.96.0.0/16,{SERVICES6}")]);
    }
    Ok(Service::new(machine, args, paths.log.join("server.log")))
}

/// The address by which pods reach this machine. A kernel that cannot do it is no reason to have no cluster.
fn open_gateway() -> Option<Ipv4Addr> {
    match lan::open_gateway() {
        Ok(()) => Some(lan::MACHINE),
        Err(e) => {
            say(&format!("warning: pods cannot reach this machine, nor what it reaches: {e:#}"));
            None
        }
    }
}

fn agent_service<'m>(
    machine: &'m Machine,
    server: &Machine,
    host: Option<Ipv4Addr>,
    paths: &Paths,
) -> anyhow::Result<Service<'m>> {
    let name = &machine.name;
    let (data, run, log) = (paths.data.join(name), paths.run.join(name), paths.log.join(name));
    for dir in [&data, &run, &log] {
        create_private(dir).with_context(|| dir.display().to_string())?;
    }
    let url = format!("https://{}:{}", server.ip, super::SERVER_PORT);
    let mut args = vec!["agent".to_owned()];
    for (flag, value) in [
        ("--server", url),
        ("--token-file", token_file(paths).display().to_string()),
        ("--node-name", name.clone()),
        ("--node-ip", machine.ip.to_string()),
        ("--data-dir", data.display().to_string()),
        ("--run-dir", run.display().to_string()),
        ("--log-dir", log.display().to_string()),
        ("--host-address", host.map_or_else(|| "none".to_owned(), |ip| ip.to_string())),
        ("--resolv-conf", paths.resolv_conf().display().to_string()),
    ] {
        args.extend([flag.to_owned(), value]);
    }
    Ok(Service::new(machine, args, paths.log.join(format!("{name}.log"))))
}

/// A token for the nodes of this start: those that have joined before do not need it.
const TOKEN_LIFE: &str = "10m";

fn token_file(paths: &Paths) -> PathBuf {
    paths.run.join("join-token")
}

/// Has a command of `minisvc` print a secret on the server's machine, and keeps it in a file of mode 0600.
fn keep_printed(server: &Machine, args: &[&OsStr], to: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(super::own_binary()?);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = server.enter(|| {
        SigSet::empty().thread_set_mask()?;
        command.output()
    })?;
    let what = args.iter().take(2).map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = output.with_context(|| format!("cannot start `minisvc {what}`"))?;
    if !output.status.success() {
        bail!("`minisvc {what}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    write_private(to, &output.stdout)
}

/// Tries what a room needs, in a process that is thrown away: called as the first process of a new process-id namespace.
pub fn probe() -> anyhow::Result<()> {
    enter("probe")?;
    let lan = lan::lay(&[("probe".to_owned(), lan::SERVER)], false)?;
    let [machine] = lan.machines.as_slice() else { bail!("a LAN without a machine") };
    machine.enter(|| Nft::open()?.probe(Family::V4))?.context("nf_tables")?;
    std::io::stdout().flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_hangs_up_with_its_last_writer() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!hung_up(&reader).unwrap());
        drop(writer);
        assert!(hung_up(&reader).unwrap());
    }
}

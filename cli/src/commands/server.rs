//! `minisvc server`: runs the server, and gives credentials.

mod backup;
mod restore;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
};

use anyhow::{Context, bail};
use minisvc_server::{
    pki::Pki,
    run::{self, ServerConfig, pki_dir},
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Credentials, RunServer, Server, ServerWhat},
    logging,
    notify::Manager,
    output,
};

/// More threads would only cost memory: the work is small and waits for the disk and the network.
const MAX_THREADS: usize = 4;

/// Runs the command to its end.
pub fn run(args: Server) -> anyhow::Result<()> {
    match args.what {
        Some(ServerWhat::Credentials(args)) => credentials(args),
        Some(ServerWhat::Backup(args)) => backup::run(&args.file, &data_dir(args.data_dir)?),
        Some(ServerWhat::Restore(args)) => restore::run(&args.file, &data_dir(args.data_dir)?, args.force),
        Some(ServerWhat::Salvage(args)) => {
            let report = minisvc_server::backup::salvage(&data_dir(args.data_dir)?)?;
            Ok(output::bytes(format!("{report}\n").as_bytes())?)
        }
        None => serve(args.run),
    }
}

fn serve(args: RunServer) -> anyhow::Result<()> {
    logging::start();
    let config = ServerConfig {
        data_dir: data_dir(args.data_dir)?,
        advertise: args.advertise.map_or_else(|| own_address(args.listen), Ok)?,
        listen: args.listen,
        tls_sans: args.tls_san,
        service_cidr: args.service_cidr,
        pod_cidr: args.pod_cidr,
        node_port_range: args.node_port_range,
        vxlan_port: args.vxlan_port,
        node_certificate_ttl: args.node_certificate_ttl,
        pod_eviction_timeout: args.pod_eviction_timeout,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        super::cancel_on_signal(stop.clone())?;
        let manager = Manager::of_this_process();
        let server = run::Server::open(config).await?;
        manager.ready(&format!("serving https://{}", server.address()));
        Ok(manager.while_running(&stop, server.serve(stop.clone())).await?)
    })
}

fn credentials(args: Credentials) -> anyhow::Result<()> {
    if !args.server.starts_with("https://") {
        bail!("--server: \"{}\" is no https:// URL", args.server);
    }
    let pki = Pki::load(&pki_dir(&data_dir(args.data_dir)?))?;
    let text = pki.kubeconfig(&pki.issue_admin()?, args.server.trim_end_matches('/'))?;
    Ok(output::bytes(text.as_bytes())?)
}

fn data_dir(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        return std::path::absolute(&dir).with_context(|| format!("--data-dir {}", dir.display()));
    }
    let env = |key: &str| std::env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute());
    let parent = env("XDG_DATA_HOME")
        .or_else(|| is_root().then(|| PathBuf::from("/var/lib")))
        .or_else(|| env("HOME").map(|home| home.join(".local/share")));
    match parent {
        Some(parent) => Ok(parent.join("minisvc").join("server")),
        None => bail!("neither $XDG_DATA_HOME nor $HOME is set: set one of them, or --data-dir"),
    }
}

#[cfg(target_os = "linux")]
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(not(target_os = "linux"))]
fn is_root() -> bool {
    false
}

/// The address at which others reach this machine: the one listened on, or the one that leads to the default route.
fn own_address(listen: SocketAddr) -> anyhow::Result<IpAddr> {
    if !listen.ip().is_unspecified() {
        return Ok(listen.ip());
    }
    // Connecting a UDP socket sends nothing: it only makes the kernel choose a source address. TEST-NET-1 is nobody's.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let chosen = socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr());
    match chosen {
        Ok(address) => Ok(address.ip()),
        Err(error) => bail!(
            "this machine's address is not known ({error}): name it with --advertise, as nodes reach it"
        ),
    }
}

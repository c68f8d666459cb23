//! The pod's view of the machine: its own /proc, /tmp, /dev/shm, host name, /etc/hosts and /etc/resolv.conf.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{
    super::{
        model::{PodSetup, SHARED_BIN},
        name_service::{NAME_SERVICES, target},
    },
    ShimError, system, volumes,
};

const NONE: Option<&str> = None;

/// Called in the first process of the new namespaces.
pub fn isolate(dir: &Path, setup: &PodSetup) -> Result<(), ShimError> {
    // A slave gets what the machine unmounts later, and gives nothing back.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).map_err(at("/"))?;
    volumes::prepare(setup)?;
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), closed | MsFlags::MS_NOEXEC, NONE).map_err(at("/proc"))?;
    nix::unistd::sethostname(&setup.hostname).map_err(system("setting the host name"))?;
    for place in NAME_SERVICES.map(Path::new) {
        // A directory, not the socket in it: the service makes a new socket when it restarts.
        if place.is_dir() {
            tmpfs(place, "mode=755,size=64k", closed | MsFlags::MS_NOEXEC)?;
        }
    }
    private_tmp(&setup.keep, closed)?;
    if setup.shared_bin {
        show_program()?;
    }
    if Path::new("/dev/shm").is_dir() {
        tmpfs(Path::new("/dev/shm"), "mode=1777", closed)?;
    }
    for name in ["hosts", "resolv.conf"] {
        lay_over(&dir.join(name), &Path::new("/etc").join(name))?;
    }
    Ok(())
}

fn at(path: impl AsRef<Path>) -> impl FnOnce(Errno) -> ShimError {
    let path = path.as_ref().to_path_buf();
    move |why| ShimError::Mount { path, why }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> ShimError {
    let path = path.to_path_buf();
    move |why| ShimError::File { path, why: why.to_string() }
}

fn tmpfs(path: &Path, options: &str, flags: MsFlags) -> Result<(), ShimError> {
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).map_err(at(path))
}

fn bind(from: &Path, to: &Path) -> Result<(), ShimError> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(at(to))
}

/// Covers /tmp. What minisvc itself needs below it is brought back to its place.
fn private_tmp(keep: &[PathBuf], flags: MsFlags) -> Result<(), ShimError> {
    let tmp = Path::new("/tmp");
    let mut kept: Vec<(PathBuf, File)> = Vec::new();
    for path in keep.iter().filter_map(|p| p.canonicalize().ok()).filter(|p| p.starts_with(tmp)) {
        let open = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path);
        kept.push((path.clone(), open.map_err(file(&path))?));
    }
    // Outer directories first; what lies in one that was brought back is there already.
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    tmpfs(tmp, "mode=1777", flags)?;
    for (path, opened) in kept {
        if !path.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(file(&path))?;
            bind(Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd())), &path)?;
        }
    }
    Ok(())
}

/// Shows this very program where every user may reach it.
fn show_program() -> Result<(), ShimError> {
    let dir = Path::new(SHARED_BIN);
    fs::DirBuilder::new().mode(0o755).create(dir).map_err(file(dir))?;
    let place = dir.join("minisvc");
    OpenOptions::new().create(true).append(true).mode(0o755).open(&place).map_err(file(&place))?;
    // By its path: the open program itself belongs to the mounts that were left.
    let program = fs::read_link("/proc/self/exe").map_err(file(&place))?;
    bind(&program, &place)
}

/// Lays a file of the pod over one of the machine, wherever symbolic links lead.
fn lay_over(from: &Path, to: &Path) -> Result<(), ShimError> {
    let place = target(to);
    if !place.exists() {
        // Room for it is where a name service was covered just now; elsewhere the machine's files are not ours to add to.
        if NAME_SERVICES.iter().any(|d| place.starts_with(d)) {
            OpenOptions::new().create(true).append(true).mode(0o644).open(&place).map_err(file(&place))?;
        } else {
            return Err(ShimError::File {
                path: to.to_path_buf(),
                why: format!(
                    "{} does not exist, so the pod's own cannot be laid over it: create an empty file there",
                    place.display()
                ),
            });
        }
    }
    bind(from, &place)
}

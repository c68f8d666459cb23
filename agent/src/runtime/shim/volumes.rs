//! Volumes: brought into the pod once, and shown to each container in a mount namespace of its own.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::{Mode, fstat, mkdirat, umask},
        statvfs::{FsFlags, statvfs},
    },
};

use super::{
    super::{
        model::PodSetup,
        volume::{HostPathType, Mount, Volume, VolumeSource},
    },
    ShimError,
};

const NONE: Option<&str> = None;
/// What a pod has of its own, so that places for mounts can be made there.
const OWN: [&str; 2] = ["/tmp", "/dev/shm"];

/// Brings the volumes to `volume_dir/NAME`. Called while the machine's files are still all to be seen, and when nothing that is
/// mounted gets out of the pod any more.
pub fn prepare(setup: &PodSetup) -> Result<(), ShimError> {
    setup.volumes.iter().try_for_each(|volume| {
        let place = setup.volume_dir.join(&volume.name);
        bring(volume, &place).map_err(|why| ShimError::First(format!("volume \"{}\": {why}", volume.name)))
    })
}

fn bring(volume: &Volume, place: &Path) -> Result<(), String> {
    let made = |done: io::Result<()>| done.map_err(|e| format!("{}: {e}", place.display()));
    match &volume.source {
        VolumeSource::Empty => made(open_dir(place)),
        VolumeSource::Memory { limit } => {
            made(open_dir(place))?;
            let size = limit.map_or_else(String::new, |bytes| format!(",size={bytes}"));
            let options = format!("mode=777{size}");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|e| format!("memory cannot be mounted: {}", e.desc()))
        }
        VolumeSource::Host { path, kind } => {
            let is_dir = find(path, *kind)?;
            made(if is_dir { open_dir(place) } else { touch(place) })?;
            bind(path, place).map_err(|e| format!("hostPath {}: {}", path.display(), e.desc()))
        }
    }
}

/// For every user.
fn open_dir(place: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(place)?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o777))
}

fn touch(place: &Path) -> io::Result<()> {
    if let Some(dir) = place.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o644).open(place).map(drop)
}

/// Looks whether a path of the node is what the pod says; whether it is a directory. [pkg/volume/hostpath, checkTypeInternal]
fn find(path: &Path, kind: HostPathType) -> Result<bool, String> {
    let said = |e: io::Error| format!("hostPath {}: {e}", path.display());
    let missing = matches!(fs::metadata(path), Err(e) if e.kind() == ErrorKind::NotFound);
    match kind {
        HostPathType::DirectoryOrCreate if missing => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(said)?;
        }
        HostPathType::FileOrCreate if missing => {
            OpenOptions::new().create_new(true).write(true).mode(0o644).open(path).map_err(said)?;
        }
        _ => {}
    }
    let is = fs::metadata(path).map_err(said)?;
    let wrong = match kind {
        HostPathType::Directory | HostPathType::DirectoryOrCreate if !is.is_dir() => "is no directory",
        HostPathType::File | HostPathType::FileOrCreate if !is.is_file() => "is no file",
        _ => return Ok(is.is_dir()),
    };
    Err(format!("hostPath {} {wrong}, but type says so", path.display()))
}

fn bind(from: &Path, to: &Path) -> Result<(), Errno> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
}

/// The files as one container sees them: a mount namespace.
#[derive(Debug)]
pub struct View(File);

impl View {
    /// The pod's own view with these volumes in their places, and a file for the last message in its place. The error is one line for the user.
    pub fn make(
        volume_dir: &Path,
        mounts: &[Mount],
        termination: Option<(&Path, &Path)>,
    ) -> Result<Self, String> {
        let pod = here()?;
        let mut mounts: Vec<_> = mounts.iter().collect();
        // What is mounted inside of another one comes after it.
        mounts.sort_by(|a, b| a.path.cmp(&b.path));
        let made = unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|e| format!("the kernel refuses a mount namespace: {}", e.desc()))
            .and_then(|()| {
                mounts.iter().enumerate().try_for_each(|(i, m)| show(volume_dir, m, &mounts[..i]))?;
                if let Some((file, place)) = termination {
                    let said = |why: &str| format!("terminationMessagePath {}: {why}", place.display());
                    make_place(place, false, &mounts).map_err(|why| said(&why))?;
                    bind(file, place).map_err(|e| said(e.desc()))?;
                }
                here()
            });
        enter(&pod)?;
        made.map(View)
    }

    /// Does something with the files seen in this way.
    pub fn run<T>(&self, act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let pod = here()?;
        enter(&self.0)?;
        let done = act();
        enter(&pod)?;
        done
    }
}

fn here() -> Result<File, String> {
    File::open("/proc/self/ns/mnt").map_err(|e| format!("/proc/self/ns/mnt: {e}"))
}

fn enter(namespace: &File) -> Result<(), String> {
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(|e| format!("entering a mount namespace: {}", e.desc()))
}

/// Mounts one volume; `before` are there already.
fn show(volume_dir: &Path, wanted: &Mount, before: &[&Mount]) -> Result<(), String> {
    let said = |what: &str| format!("volumeMount \"{}\" at {}: {what}", wanted.volume, wanted.path.display());
    let from = part(&volume_dir.join(&wanted.volume), &wanted.sub_path)
        .map_err(|e| said(&format!("subPath \"{}\": {}", wanted.sub_path.display(), e.desc())))?;
    let is_dir = fstat(&from).map_err(|e| said(e.desc()))?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    make_place(&wanted.path, is_dir, before).map_err(|why| said(&why))?;
    let from = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
    bind(&from, &wanted.path).map_err(|e| said(e.desc()))?;
    if wanted.read_only {
        close(&wanted.path).map_err(|e| said(e.desc()))?;
    }
    Ok(())
}

/// What is beneath a volume; no link in it leads out of it. Missing directories are made, as open as the volume.
fn part(volume: &Path, sub_path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root: OwnedFd = nix::fcntl::open(volume, flags, Mode::empty())?;
    let mode = Mode::from_bits_truncate(fstat(&root)?.st_mode);
    let open = |path: &Path| {
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root, path, how)
    };
    let (mut at, mut path): (Option<OwnedFd>, _) = (None, PathBuf::new());
    for name in sub_path {
        path.push(name);
        at = Some(match open(&path) {
            Err(Errno::ENOENT) => {
                let before = umask(Mode::empty());
                let made = mkdirat(at.as_ref().unwrap_or(&root), name, mode);
                umask(before);
                made?;
                open(&path)?
            }
            other => other?,
        });
    }
    Ok(at.unwrap_or(root))
}

/// The place that a volume covers has to be there. It is made where that changes nothing of the machine: in what the pod has of
/// its own, and in volumes.
fn make_place(path: &Path, is_dir: bool, before: &[&Mount]) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() == is_dir => return Ok(()),
        Ok(_) if is_dir => return Err("the volume is a directory, and a file is there".into()),
        Ok(_) => return Err("the volume is a file, and a directory is there".into()),
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.to_string()),
        Err(_) => {}
    }
    let parent = path.ancestors().skip(1).find_map(|p| p.canonicalize().ok()).unwrap_or_default();
    let ours =
        OWN.iter().any(|own| parent.starts_with(own)) || before.iter().any(|m| parent.starts_with(&m.path));
    if !ours {
        return Err(
            "the path does not exist on this node, whose files a container sees: create it there, or mount \
                    below /tmp, which is the pod's own"
                .into(),
        );
    }
    let make = || {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        if is_dir {
            return builder.create(path);
        }
        builder.create(path.parent().unwrap_or(Path::new("/")))?;
        OpenOptions::new().create(true).append(true).mode(0o644).open(path).map(drop)
    };
    make().map_err(|e| format!("its place cannot be made: {e}"))
}

/// Makes a mount read-only. Other flags of it stay: in a user namespace none may be taken away.
fn close(path: &Path) -> Result<(), Errno> {
    let there = statvfs(path)?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let flags = kept.into_iter().filter(|(flag, _)| there.contains(*flag)).map(|(_, kept)| kept);
    let flags =
        flags.fold(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, |all, flag| all | flag);
    mount(NONE, path, NONE, flags, NONE)
}

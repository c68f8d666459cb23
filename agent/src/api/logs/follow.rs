//! Reads a log to its end, and on as it grows: over renames of the file and new starts of the container.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
};

use super::{LogReader, Options, lines::Lines, read_all};
use crate::sync::pods::Containers;

/// Where the kernel does not tell of changes (too many watches), they are looked for this often.
const LOOK: Duration = Duration::from_millis(250);

/// Whose log.
pub struct Place {
    /// Holds `ATTEMPT.log`.
    pub dir: PathBuf,
    /// The container's name.
    pub container: String,
    /// What the pod's containers do.
    pub states: watch::Receiver<Containers>,
}

/// Sends what the options ask for.
pub async fn run(
    mut place: Place,
    mut attempt: u32,
    options: Options,
    out: mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut lines = Lines::new(&options);
    // Before the first look, so that nothing falls between.
    let changes = if options.follow { Changes::of(&place.dir) } else { None };
    let (mut before, mut reader) = LogReader::open(&place.dir, attempt)?;
    loop {
        // What is seen now of the containers was written to the log before.
        let (seen, last) = {
            let states = place.states.borrow_and_update();
            let state = states.states.get(&place.container);
            let seen = state.map(|s| (s.attempt, s.exit.is_some()));
            (seen, states.over.contains(&place.container))
        };
        let closed = place.states.has_changed().is_err();
        read_all(before.take(), &mut reader, &mut lines)?;
        lines.caught_up();
        if let Some(bytes) = lines.take()
            && out.send(Ok(bytes)).await.is_err()
        {
            return Ok(());
        }
        if !options.follow || lines.is_full() {
            return Ok(());
        }
        match seen {
            Some((newer, _)) if newer > attempt && !options.previous => {
                attempt += 1;
                lines.next_start();
                (before, reader) = LogReader::open(&place.dir, attempt)?;
                continue;
            }
            // A start that is over has a log that is whole.
            Some((newer, _)) if newer > attempt => return Ok(()),
            Some((_, true)) if last => return Ok(()),
            None => return Ok(()),
            _ if closed => return Ok(()),
            Some(_) => {}
        }
        tokio::select! {
            // An end of the states is seen above.
            _ = place.states.changed() => {}
            () = more(changes.as_ref()) => {}
        }
    }
}

async fn more(changes: Option<&Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => tokio::time::sleep(LOOK).await,
    }
}

/// The kernel's word that something in a directory changed.
struct Changes {
    inotify: Inotify,
    readable: AsyncFd<OwnedFd>,
}

impl Changes {
    fn of(dir: &Path) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, what | AddWatchFlags::IN_DELETE_SELF).ok()?;
        let copy = inotify.as_fd().try_clone_to_owned().ok()?;
        Some(Changes { readable: crate::sys::register(copy).ok()?, inotify })
    }

    /// Waits for a change, and takes all there are.
    async fn next(&self) {
        let read = |_: &OwnedFd| Ok(self.inotify.read_events().map(drop)?);
        if self.readable.async_io(Interest::READABLE, read).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

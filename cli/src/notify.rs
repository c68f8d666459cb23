//! What the service manager that started us is told: systemd's `sd_notify` protocol, one datagram of `NAME=VALUE` lines each.
//!
//! Pods inherit none of it: their processes start with an environment of their own.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    io,
    os::unix::{
        ffi::OsStrExt,
        net::{SocketAddr, UnixDatagram},
    },
    pin::pin,
    sync::Arc,
    time::Duration,
};

use minisvc_proto::report::NodeReport;
use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// The service manager, or nobody. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    /// It ends us when it has heard nothing for this long.
    watchdog: Option<Duration>,
}

impl Manager {
    /// As `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` name it. What cannot be read is logged, and told nobody.
    pub fn of_this_process() -> Self {
        Self::of(|name| env::var_os(name), std::process::id()).unwrap_or_else(|error| {
            tracing::warn!(%error, "NOTIFY_SOCKET: the service manager cannot be told anything");
            Self::default()
        })
    }

    fn of(env: impl Fn(&str) -> Option<OsString>, pid: u32) -> io::Result<Self> {
        let Some(name) = env("NOTIFY_SOCKET").filter(|n| !n.is_empty()) else { return Ok(Self::default()) };
        let address = address(name.as_bytes())?;
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold us.
        socket.set_nonblocking(true)?;
        let number = |name| env(name).and_then(|v| v.to_str()?.parse::<u64>().ok());
        // sd_watchdog_enabled(3): the variables may be those of a parent.
        let ours = number("WATCHDOG_PID").is_none_or(|p| p == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Ok(Manager { socket: Some(Arc::new((socket, address))), watchdog })
    }

    /// We do what we were started for.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\n{}", status_line(status)));
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.tell(&status_line(status));
    }

    /// Runs `work` to its end, says when that begins, and feeds the watchdog meanwhile.
    pub async fn while_running<T>(&self, stop: &CancellationToken, work: impl Future<Output = T>) -> T {
        let beat = self.watchdog.map(|limit| tokio::spawn(self.clone().beat(limit)));
        let mut work = pin!(work);
        let ended = tokio::select! {
            // What ends because it was asked to is stopping, however fast it is.
            biased;
            () = stop.cancelled() => {
                self.tell("STOPPING=1\nSTATUS=stopping");
                work.await
            }
            ended = work.as_mut() => {
                self.tell("STOPPING=1\nSTATUS=ended");
                ended
            }
        };
        if let Some(beat) = beat {
            beat.abort();
        }
        ended
    }

    /// A task like any other: it beats as long as the runtime's threads come round to their timers and tasks.
    async fn beat(self, limit: Duration) {
        // Half of it, as sd_watchdog_enabled(3) recommends.
        let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell("WATCHDOG=1");
        }
    }

    /// Says what a node says of itself: that it is ready at the first Ready, and its state whenever that changes.
    pub async fn follow_node(&self, node: oneshot::Receiver<watch::Receiver<NodeReport>>) -> Infallible {
        let Ok(mut reports) = node.await else { return std::future::pending().await };
        let (mut was_ready, mut told) = (false, String::new());
        loop {
            let (ready, state) = {
                let report = reports.borrow_and_update();
                (
                    report.ready,
                    if report.ready { "Ready".into() } else { format!("not Ready: {}", report.message) },
                )
            };
            match () {
                () if ready && !was_ready => self.ready(&state),
                () if state != told => self.status(&state),
                () => {}
            }
            was_ready |= ready;
            told = state;
            if reports.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn tell(&self, lines: &str) {
        let Some((socket, address)) = self.socket.as_deref() else { return };
        if let Err(error) = socket.send_to_addr(lines.as_bytes(), address) {
            tracing::debug!(%error, "the service manager was not told: {lines}");
        }
    }
}

fn status_line(status: &str) -> String {
    format!("STATUS={}", status.replace(['\n', '\r'], " "))
}

/// A path, or `@NAME` for a socket that has none.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name {
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("\"{}\" is neither a path nor @NAME", String::from_utf8_lossy(name)),
        )),
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::linux::net::SocketAddrExt;

    use super::*;

    /// A manager's end, which waits for what it is told, but not for ever.
    fn listen(socket: UnixDatagram) -> impl Fn() -> String {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        move || {
            let mut buffer = [0; 1024];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }
    }

    fn manager(vars: &[(&str, &str)]) -> io::Result<Manager> {
        Manager::of(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)), 7)
    }

    #[test]
    fn a_path_and_an_abstract_name_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let heard = listen(UnixDatagram::bind(&path).unwrap());
        manager(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap().ready("serving\nhttps://s");
        assert_eq!(heard(), "READY=1\nSTATUS=serving https://s");

        let name = format!("minisvc-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let heard = listen(UnixDatagram::bind_addr(&address).unwrap());
        manager(&[("NOTIFY_SOCKET", &format!("@{name}"))]).unwrap().status("waits");
        assert_eq!(heard(), "STATUS=waits");
    }

    #[test]
    fn who_was_not_started_by_a_manager_tells_nobody_and_a_bad_name_is_told() {
        for vars in [&[][..], &[("NOTIFY_SOCKET", "")], &[("WATCHDOG_USEC", "1000")]] {
            let manager = manager(vars).unwrap();
            assert!(manager.socket.is_none() && manager.watchdog.is_none(), "{vars:?}");
            manager.ready("nobody hears this");
        }
        let error = manager(&[("NOTIFY_SOCKET", "vsock:2:1")]).unwrap_err().to_string();
        assert_eq!(error, "\"vsock:2:1\" is neither a path nor @NAME");
    }

    #[test]
    fn the_watchdog_is_ours_only_where_it_names_us() {
        for (vars, expected) in [
            (&[("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "3000000")][..], Some(3)),
            (&[("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "7")], Some(3)),
            (&[("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "8")], None),
            (&[("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "0")], None),
            (&[("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "soon")], None),
            (&[("NOTIFY_SOCKET", "@x")], None),
        ] {
            assert_eq!(manager(vars).unwrap().watchdog, expected.map(Duration::from_secs), "{vars:?}");
        }
    }

    #[tokio::test]
    async fn the_watchdog_is_fed_until_the_end_and_the_end_is_told() {
        let name = format!("minisvc-watchdog-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let heard = listen(socket);
        let manager = manager(&[("NOTIFY_SOCKET", &format!("@{name}")), ("WATCHDOG_USEC", "20000")]).unwrap();
        let stop = CancellationToken::new();
        let heard = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || {
                let beats = [heard(), heard(), heard()];
                stop.cancel();
                let last = std::iter::repeat_with(&heard).find(|m| m != "WATCHDOG=1").unwrap();
                (beats, last)
            }
        });
        manager.while_running(&stop, stop.cancelled()).await;
        let (beats, last) = heard.await.unwrap();
        assert_eq!(beats, ["WATCHDOG=1"; 3]);
        assert_eq!(last, "STOPPING=1\nSTATUS=stopping");
    }

    #[tokio::test]
    async fn a_node_is_ready_once_and_says_how_it_goes_on() {
        let name = format!("minisvc-node-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let heard = listen(socket);
        let manager = manager(&[("NOTIFY_SOCKET", &format!("@{name}"))]).unwrap();
        let (told, node) = oneshot::channel();
        let (reports, reader) =
            watch::channel(NodeReport { message: "pods: not ready yet".into(), ..NodeReport::default() });
        told.send(reader).unwrap();
        let following = tokio::spawn(async move { manager.follow_node(node).await });
        let heard = tokio::task::spawn_blocking(move || {
            let set = |ready, message: &str| {
                reports.send_modify(|r| (r.ready, r.message) = (ready, message.to_owned()));
            };
            let mut all = vec![heard()];
            for (ready, message) in [(true, ""), (false, "routes: gone"), (true, "")] {
                set(ready, message);
                all.push(heard());
            }
            all
        });
        assert_eq!(
            heard.await.unwrap(),
            [
                "STATUS=not Ready: pods: not ready yet",
                "READY=1\nSTATUS=Ready",
                "STATUS=not Ready: routes: gone",
                "STATUS=Ready"
            ]
        );
        following.abort();
    }
}

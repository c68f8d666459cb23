//! TCP through the wall: accepted here, connected there, copied both ways.

use std::{io, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{RoomSockets, Targets, no_target};

const CONNECT: Duration = Duration::from_secs(3);
/// After a failed accept (no file descriptors left): trying at once again would only burn the processor.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until it is dropped; connections end with it.
pub async fn serve(listener: TcpListener, room: RoomSockets, targets: Targets) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let (room, targets) = (room.clone(), targets.clone());
                    // A connection that breaks is the business of its two ends; both see it close.
                    connections.spawn(async move { let _ = carry(client, &room, &targets).await; });
                }
                Err(e) => {
                    tracing::warn!("accepting a connection: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, room: &RoomSockets, targets: &Targets) -> io::Result<()> {
    let mut inside = reach(room, targets).await?;
    // What one side sends at once, the other gets at once.
    client.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut inside).await.map(|_| ())
}

async fn reach(room: &RoomSockets, targets: &Targets) -> io::Result<TcpStream> {
    let mut last = no_target();
    for target in targets.in_random_order() {
        match timeout(CONNECT, room.connect(target)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => last = e,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

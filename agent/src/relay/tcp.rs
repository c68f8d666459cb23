//! TCP: accepted here, connected there, copied both ways.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::Dial;

/// After a failed accept (no file descriptors left): trying at once again would only burn the processor.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections of one door; more wait in the listener's queue.
const MOST_CONNECTIONS: usize = 4096;

/// Accepts until it is dropped; connections end with it.
pub(super) async fn serve(listener: TcpListener, dial: impl Dial) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = accepted => match accepted {
                Ok((client, _)) => {
                    let dial = dial.clone();
                    connections.spawn(async move {
                        let _place = place;
                        // A connection that breaks is the business of its two ends; both see it close.
                        let _ = carry(client, &dial).await;
                    });
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

/// An end of one side's stream is passed on while the other still flows; a slow side slows the other down.
async fn carry(mut client: TcpStream, dial: &impl Dial) -> io::Result<()> {
    let mut inside = dial.tcp().await?;
    // What one side sends at once, the other gets at once.
    client.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut inside).await.map(|_| ())
}

//! UDP: one socket on the other side for every sender, as long as something flows.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::{Id, JoinSet},
    time::timeout,
};

use super::Dial;

/// A flow is forgotten after this long without a datagram either way.
const IDLE: Duration = Duration::from_mins(1);
const LARGEST: usize = 65_535;
/// Datagrams that wait for their flow; more are dropped, as UDP does.
const QUEUE: usize = 64;
/// Flows of one door.
const MOST_FLOWS: usize = 4096;

/// Relays until it is dropped.
pub(super) async fn serve(socket: UdpSocket, dial: impl Dial) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, (Id, mpsc::Sender<Vec<u8>>)> = HashMap::new();
    let mut tasks: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error here is an ICMP answer to an earlier datagram: nothing to do about it.
                let Ok((length, from)) = received else { continue };
                let known = flows.get(&from).is_some_and(|(_, queue)| !queue.is_closed());
                if !known {
                    if flows.len() >= MOST_FLOWS { continue; }
                    let (queue, datagrams) = mpsc::channel(QUEUE);
                    let (socket, dial) = (socket.clone(), dial.clone());
                    let id = tasks.spawn(async move {
                        let _ = carry(&socket, from, datagrams, &dial).await;
                        from
                    }).id();
                    flows.insert(from, (id, queue));
                }
                if let Some((_, queue)) = flows.get(&from) {
                    let _ = queue.try_send(buffer[..length].to_vec());
                }
            }
            Some(ended) = tasks.join_next_with_id() => {
                if let Ok((id, from)) = ended && flows.get(&from).is_some_and(|(flow, _)| *flow == id) {
                    flows.remove(&from);
                }
            }
        }
    }
}

async fn carry(
    outside: &UdpSocket,
    client: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    dial: &impl Dial,
) -> io::Result<()> {
    let inside = dial.udp().await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let step = async {
            tokio::select! {
                datagram = datagrams.recv() => match datagram {
                    Some(datagram) => inside.send(&datagram).await.map(|_| true),
                    None => Ok(false),
                },
                length = inside.recv(&mut buffer) => outside.send_to(&buffer[..length?], client).await.map(|_| true),
            }
        };
        match timeout(IDLE, step).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(()),
            Ok(Err(e)) => return Err(e),
        }
    }
}

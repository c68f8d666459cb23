//! A server that sends back what it gets, whatever the size.

use std::{net::Ipv4Addr, thread};

use minisvc_tests::netns::Namespace;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    sync::oneshot,
    task::JoinSet,
};

/// Ends when dropped.
pub struct Echo {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<anyhow::Result<anyhow::Result<()>>>>,
}

impl Echo {
    /// TCP, once the client has said all, and UDP.
    pub fn start(at: &Namespace, port: u16) -> anyhow::Result<Self> {
        let (ready, listening) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = at.spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
                let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
                ready.send(())?;
                tokio::select! {
                    result = serve(&tcp, &udp) => result,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        listening.recv()?;
        Ok(Echo { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(tcp: &TcpListener, udp: &UdpSocket) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    let mut datagram = vec![0; 65_536];
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                let (mut stream, _) = accepted?;
                connections.spawn(async move {
                    let mut all = Vec::new();
                    if stream.read_to_end(&mut all).await.is_ok() {
                        let _ = stream.write_all(&all).await;
                    }
                });
            }
            received = udp.recv_from(&mut datagram) => {
                // Errors are the ICMP answers to earlier datagrams.
                if let Ok((n, client)) = received {
                    let _ = udp.send_to(&datagram[..n], client).await;
                }
            }
        }
    }
}

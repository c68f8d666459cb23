//! What a pod needs of the node's network.

use std::{future::Future, net::Ipv4Addr, os::fd::OwnedFd};

use crate::{
    net::{LinkName, Net},
    source,
};

/// Connects pods.
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the pod's namespace a link with this address; doing it twice is fine. An error is one line.
    fn attach(
        &self,
        uid: &str,
        ip: Ipv4Addr,
        netns: OwnedFd,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Takes the pod's link away, if there is one.
    fn detach(&self, uid: &str) -> impl Future<Output = Result<(), String>> + Send;

    /// Takes away the links of all pods but these.
    fn clean(&self, known: &[String]) -> impl Future<Output = ()> + Send;
}

impl PodNetwork for Net {
    async fn attach(&self, uid: &str, ip: Ipv4Addr, netns: OwnedFd) -> Result<(), String> {
        Net::attach(self, LinkName::of_pod(uid), ip, netns).await.map_err(|e| e.to_string())
    }

    async fn detach(&self, uid: &str) -> Result<(), String> {
        Net::detach(self, LinkName::of_pod(uid)).await.map_err(|e| e.to_string())
    }

    async fn clean(&self, known: &[String]) {
        let known = known.iter().map(String::as_str).chain([source::socket::UID]);
        let known: Vec<LinkName> = known.map(LinkName::of_pod).collect();
        let links = match self.links().await {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "links of gone pods are not removed"),
        };
        for link in links.into_iter().filter(|l| !known.contains(l)) {
            if let Err(error) = Net::detach(self, link).await {
                tracing::warn!(%error, "a link of a gone pod is not removed");
            }
        }
    }
}

/// Connects nothing, for tests: where pods have addresses of loopback, a test may stand in for them.
#[derive(Clone, Copy, Debug)]
pub struct NoNetwork;

impl PodNetwork for NoNetwork {
    async fn attach(&self, _uid: &str, _ip: Ipv4Addr, _netns: OwnedFd) -> Result<(), String> {
        Ok(())
    }

    async fn detach(&self, _uid: &str) -> Result<(), String> {
        Ok(())
    }

    async fn clean(&self, _known: &[String]) {}
}

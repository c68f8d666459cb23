//! Which machine speaks for a node: the connections of one whose certificate was revoked end at once, with everything that goes on
//! in them. What it asks afterwards is refused in `http`, with a look-up in memory.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use minisvc_proto::resource::NODE_CREDENTIALS;
use tokio_util::sync::CancellationToken;

use crate::{cache::Item, http::User, registry::Registry};

/// The identity that spoke for a node last, and what ends with it.
struct Life {
    identity: String,
    end: CancellationToken,
}

/// See the module.
pub struct Identities {
    registry: Registry,
    lives: Mutex<HashMap<String, Life>>,
}

impl Identities {
    /// Over this registry.
    pub fn new(registry: Registry) -> Self {
        Identities { registry, lives: Mutex::default() }
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<String, Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancelled when the certificate with which this user came is revoked. Of one that is revoked already, and of whoever is no
    /// node, it is never cancelled.
    pub fn until_revoked(&self, user: &User) -> CancellationToken {
        let (Some(node), Some(identity)) = (user.node(), &user.identity) else {
            return CancellationToken::new();
        };
        // Under the lock, as in `sweep`: a revocation is seen here, or the sweep after it sees what was put here.
        let mut lives = self.lives();
        if self.registry.identity(node).as_ref() != Some(identity) {
            return CancellationToken::new();
        }
        if let Some(life) = lives.get(node).filter(|life| life.identity == *identity) {
            return life.end.child_token();
        }
        let life = Life { identity: identity.clone(), end: CancellationToken::new() };
        let token = life.end.child_token();
        if let Some(before) = lives.insert(node.to_owned(), life) {
            before.end.cancel();
        }
        token
    }

    fn sweep(&self) {
        self.lives().retain(|node, life| {
            let stays = self.registry.identity(node).as_ref() == Some(&life.identity);
            if !stays {
                tracing::info!(
                    node,
                    identity = life.identity,
                    "a certificate was revoked: its connections end"
                );
                life.end.cancel();
            }
            stays
        });
    }

    /// Ends what is revoked, until shutdown.
    pub async fn follow(&self, shutdown: CancellationToken) {
        loop {
            let mut changes = match self.registry.watch(&NODE_CREDENTIALS, self.registry.revision()) {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::debug!(%error, "the watch of credentials starts anew");
                    continue;
                }
            };
            self.sweep();
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    change = changes.next() => match change {
                        Ok(Item::Event(_)) => self.sweep(),
                        Ok(Item::Bookmark(_)) => {}
                        // The history went on without us; the sweep looks at what is.
                        Err(_) => break,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        pki::{NODE_PREFIX, NODES},
        registry::{node_credential::Grant, testing},
    };

    fn user(node: &str, identity: &str) -> User {
        User {
            name: format!("{NODE_PREFIX}{node}"),
            groups: vec![NODES.into()],
            identity: Some(identity.into()),
            until: None,
        }
    }

    async fn join(registry: &Registry, node: &str, identity: &str) {
        let grant = Grant {
            node: node.parse().unwrap(),
            identity: identity.into(),
            key_hash: String::new(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires: Timestamp::UNIX_EPOCH,
        };
        registry.join("0123456789", &grant, |_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn only_what_was_revoked_ends() {
        let registry = testing::registry();
        let identities = std::sync::Arc::new(Identities::new(registry.clone()));
        let stop = CancellationToken::new();
        let following = tokio::spawn({
            let (identities, stop) = (identities.clone(), stop.clone());
            async move { identities.follow(stop).await }
        });
        join(&registry, "n1", "a").await;
        join(&registry, "n2", "a").await;
        let (first, again) =
            (identities.until_revoked(&user("n1", "a")), identities.until_revoked(&user("n1", "a")));
        let other = identities.until_revoked(&user("n2", "a"));
        let late = identities.until_revoked(&user("n1", "z"));
        let nobody = identities.until_revoked(&User::anonymous());

        // A connection that goes takes nothing with it.
        drop(again);
        join(&registry, "n1", "b").await;
        first.cancelled().await;
        let second = identities.until_revoked(&user("n1", "b"));
        assert!(![&other, &late, &nobody, &second].iter().any(|t| t.is_cancelled()));
        stop.cancel();
        following.await.unwrap();
    }
}

//! The writes that make a machine a node: a token's use and the credential that it gives are one transaction.

use minisvc_proto::{
    ApiError, NodeName, Object, ObjectKey, Reason,
    resource::{JOIN_TOKENS, NODE_CREDENTIALS},
};

use super::{
    MAX_TRIES, Part, Registry, join_token,
    node_credential::{self, Grant},
    rules,
};
use crate::{cache::object_key, store::Expect};

impl Registry {
    /// The identity that speaks for a node, from memory.
    pub fn identity(&self, node: &str) -> Option<String> {
        let credential = self.get(&ObjectKey::cluster(&NODE_CREDENTIALS, node)).ok()?;
        Some(node_credential::identity(&credential).to_owned())
    }

    /// Counts a use of the token and makes the grant's identity the one that speaks for the node. `judge` is asked with the
    /// token as it is at that moment (`None`: there is none). A grant that stands already, whose answer was lost, costs no use.
    pub async fn join(
        &self,
        token: &str,
        grant: &Grant,
        judge: impl Fn(Option<&Object>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let token_key = ObjectKey::cluster(&JOIN_TOKENS, token);
        let key = ObjectKey::cluster(&NODE_CREDENTIALS, grant.node.as_str());
        for _ in 0..MAX_TRIES {
            let known = self.cache.get(&token_key);
            let old = self.cache.get(&key);
            let repeated =
                old.as_ref().is_some_and(|o| node_credential::identity(&o.object) == grant.identity);
            if !repeated {
                judge(known.as_ref().map(|entry| &*entry.object))?;
            }
            let before = old.as_ref().map(|o| &*o.object);
            let mut credential = before.cloned().unwrap_or_else(|| grant.to_credential(token));
            if let Some(before) = before {
                grant.write(&mut credential, Some(token));
                rules::bump_generation(before, &mut credential);
            } else {
                rules::stamp_new(&mut credential);
            }
            self.prepare(&key, before, &mut credential)?;
            let mut txn = Self::transaction(&key, before, &credential)?;
            txn.expect
                .insert(object_key(&key), old.as_ref().map_or(Expect::Absent, |o| Expect::At(o.revision)));
            if let Some(known) = known.filter(|_| !repeated) {
                let mut used = (*known.object).clone();
                let uses = join_token::uses(&used) + 1;
                used.status_mut().insert("uses".into(), uses.into());
                let use_of_it = Self::transaction(&token_key, Some(&known.object), &used)?;
                txn.writes.extend(use_of_it.writes);
                txn.expect.extend(use_of_it.expect);
                txn.expect.insert(object_key(&token_key), Expect::At(known.revision));
            }
            if self.commit(txn).await?.is_some() {
                return Ok(());
            }
        }
        Err(ApiError::modified(&token_key))
    }

    /// Notes that a node got a newer certificate for the identity that it has; 401 if it has another by now.
    pub async fn renew(&self, grant: &Grant) -> Result<(), ApiError> {
        let key = ObjectKey::cluster(&NODE_CREDENTIALS, grant.node.as_str());
        let renewed = self
            .modify(&key, Part::Main, |credential| {
                if node_credential::identity(credential) != grant.identity {
                    return Err(revoked(&grant.node));
                }
                grant.write(credential, None);
                Ok(true)
            })
            .await;
        match renewed {
            Err(e) if e.is_not_found() => Err(revoked(&grant.node)),
            other => other.map(drop),
        }
    }
}

/// 401: the certificate is good, but its identity does not speak for the node any more.
pub fn revoked(node: &NodeName) -> ApiError {
    ApiError::new(
        Reason::Unauthorized,
        format!(
            "the certificate of node {node} was revoked: the node was removed, or another machine joined under its name; \
             this machine can join again with a token (`minisvc token create`)"
        ),
    )
}

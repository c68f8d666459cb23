//! Read, change, write: again on a fresh read where somebody else was quicker.

use minisvc_proto::{Object, ObjectKey, client::ClientError, path::Target};

use super::Session;

/// So often a write that lost a race is tried again.
const ATTEMPTS: usize = 10;

/// Changes an object. `change` answers what is to be said, and nothing is written where it changed nothing.
pub(super) async fn edit<T>(
    session: &Session,
    key: &ObjectKey,
    change: impl Fn(&mut Object) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let target = Target::object(key);
    let mut attempt = 1;
    loop {
        let old = session.client.get(&target).await?;
        let mut new = old.clone();
        let said = change(&mut new)?;
        if new == old {
            return Ok(said);
        }
        match session.client.update(&target, &new).await {
            Err(ClientError::Api(e)) if e.is_conflict() && attempt < ATTEMPTS => attempt += 1,
            other => return other.map(|_| said).map_err(Into::into),
        }
    }
}

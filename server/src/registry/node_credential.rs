//! NodeCredential: which identity speaks for a node's name.

use jiff::Timestamp;
use minisvc_proto::{Cause, NodeName, Object, resource::NODE_CREDENTIALS};
use serde_json::json;

use super::field::Field;

/// What a certificate that is given to a node says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which node.
    pub node: NodeName,
    /// The identity, which stands in the certificate too.
    pub identity: String,
    /// SHA-256 of the certified key, in hex digits.
    pub key_hash: String,
    /// When it was given.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

impl Grant {
    /// Writes the grant into a credential. `joined_with`: the id of the token, where there was one.
    pub fn write(&self, credential: &mut Object, joined_with: Option<&str>) {
        let time = |t: Timestamp| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let spec = credential.spec_mut();
        for (field, value) in [
            ("identity", self.identity.clone()),
            ("keyHash", self.key_hash.clone()),
            ("issuedAt", time(self.issued_at)),
            ("expires", time(self.expires)),
        ] {
            spec.insert(field.into(), json!(value));
        }
        if let Some(id) = joined_with {
            spec.insert("joinedWith".into(), json!(id));
        }
    }

    /// A node's first credential.
    pub fn to_credential(&self, joined_with: &str) -> Object {
        let mut credential = Object::new(&NODE_CREDENTIALS, None, self.node.as_str());
        self.write(&mut credential, Some(joined_with));
        credential
    }
}

/// The identity that speaks for the node.
pub fn identity(credential: &Object) -> &str {
    Field::of(credential, "spec").child("identity").text()
}

/// Every fault of a credential's own fields.
pub fn validate(new: &Object) -> Vec<Cause> {
    let spec = Field::of(new, "spec");
    let mut faults = Vec::new();
    if spec.child("identity").text().is_empty() {
        faults.push(spec.child("identity").required("who speaks for the node"));
    }
    for field in ["issuedAt", "expires"] {
        let field = spec.child(field);
        if field.value.is_some() && field.text().parse::<Timestamp>().is_err() {
            faults.push(field.invalid("must be a time, 2026-01-31T12:00:00Z would be right"));
        }
    }
    faults
}

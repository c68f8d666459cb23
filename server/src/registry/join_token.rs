//! JoinToken: made for whoever asks for one, judged when a machine shows one. Pure: secret and time come in.

use jiff::{SignedDuration, Timestamp};
use minisvc_proto::{ApiError, Cause, Object, Reason};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::field::Field;
use minisvc_proto::digest::sha256_hex;

/// How long a token is good for that names no time.
pub const DEFAULT_TTL: i64 = 24 * 3600;
/// Ten years: what is to last longer should not expire at all.
const MAX_TTL: i64 = 10 * 365 * 24 * 3600;
/// How long an expired token is still shown.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
const MAX_DESCRIPTION: usize = 200;

/// What is stored of a secret: the SHA-256 of its text, in hex digits. The secret has 256 random bits, so that nothing slower is needed.
pub fn hash(secret: &str) -> String {
    sha256_hex(secret.as_bytes())
}

/// The object that is stored for what somebody asks for, `spec.ttlSeconds` (0: no end), `spec.uses` and `spec.description`.
pub fn issue(asked: &Object, id: &str, secret: &str, now: Timestamp) -> Result<Object, Vec<Cause>> {
    let spec = Field::of(asked, "spec");
    let mut faults = Vec::new();
    for (field, why) in [
        ("secretHash", "the server makes the secret"),
        ("expirationTimestamp", "ttlSeconds says how long the token is good for"),
    ] {
        let field = spec.child(field);
        if field.is_set() {
            faults.push(field.forbidden(why));
        }
    }
    for name in ["name", "generateName"] {
        let name = Field::of(asked, "metadata").child(name);
        if name.is_set() {
            faults.push(name.forbidden("the server names tokens"));
        }
    }
    let ttl = spec.child("ttlSeconds");
    let seconds = if ttl.value.is_some() { ttl.number() } else { Some(DEFAULT_TTL) };
    let Some(seconds) = seconds.filter(|s| (0..=MAX_TTL).contains(s)) else {
        faults.push(
            ttl.invalid("must be a number of seconds of at most ten years, or 0 for a token without an end"),
        );
        return Err(faults);
    };
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut token = asked.clone();
    token.0.remove("status");
    token.metadata_mut().insert("name".into(), id.into());
    let mut kept = json!({"secretHash": hash(secret)});
    if seconds > 0 {
        let end = now + SignedDuration::from_secs(seconds);
        kept["expirationTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    for field in ["uses", "description"] {
        if let Some(value) = spec.child(field).value {
            kept[field] = value.clone();
        }
    }
    token.0.insert("spec".into(), kept);
    Ok(token)
}

/// A write that leaves the hash out keeps it.
pub fn inherit(old: &Object, new: &mut Object) {
    if !Field::of(new, "spec").child("secretHash").is_set()
        && let Some(hash) = old.pointer("/spec/secretHash").cloned()
    {
        new.spec_mut().insert("secretHash".into(), hash);
    }
}

/// Every fault of a token's own fields.
pub fn validate(old: Option<&Object>, new: &Object) -> Vec<Cause> {
    let spec = Field::of(new, "spec");
    let mut faults = Vec::new();
    let hash = spec.child("secretHash");
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit());
    if !is_hash(hash.text()) {
        faults.push(hash.invalid("must be a SHA-256 in hex digits"));
    } else if old.is_some_and(|old| Field::of(old, "spec").child("secretHash").value != hash.value) {
        faults.push(hash.forbidden("may not change: make another token"));
    }
    faults.extend(spec.child("uses").at_least(1));
    let end = spec.child("expirationTimestamp");
    if end.value.is_some() && end.text().parse::<Timestamp>().is_err() {
        faults.push(end.invalid("must be a time, 2026-01-31T12:00:00Z would be right"));
    }
    let description = spec.child("description");
    let is_line = description.text().len() <= MAX_DESCRIPTION
        && !description.text().chars().any(char::is_control)
        && description.value.is_none_or(Value::is_string);
    if !is_line {
        faults.push(description.invalid("must be one line of at most 200 bytes"));
    }
    faults
}

/// How often the token was used.
pub fn uses(token: &Object) -> i64 {
    token.pointer("/status/uses").and_then(Value::as_i64).unwrap_or(0)
}

/// How often it may be used; `None`: without a limit.
pub fn limit(token: &Object) -> Option<i64> {
    Field::of(token, "spec").child("uses").number()
}

/// When it ends; `None`: never.
pub fn end(token: &Object) -> Option<Timestamp> {
    Field::of(token, "spec").child("expirationTimestamp").text().parse().ok()
}

/// Whether the token has ended.
pub fn is_expired(token: &Object, now: Timestamp) -> bool {
    end(token).is_some_and(|end| end <= now)
}

/// Whether it ended so long ago that nobody wonders about it any more.
pub fn is_forgotten(token: &Object, now: Timestamp) -> bool {
    end(token).is_some_and(|end| now.duration_since(end) > KEPT)
}

/// Whether this is the token's secret, in a time that does not depend on where it differs.
pub fn is_secret(token: &Object, secret: &str) -> bool {
    let kept = Field::of(token, "spec").child("secretHash").text().to_ascii_lowercase();
    bool::from(kept.as_bytes().ct_eq(hash(secret).as_bytes()))
}

fn refused(why: String) -> Result<(), ApiError> {
    Err(ApiError::new(Reason::Unauthorized, why))
}

/// 401 unless there is this token, and this is its secret.
pub fn authenticate(id: &str, token: Option<&Object>, secret: &str) -> Result<(), ApiError> {
    match token {
        None => refused(format!(
            "join token {id} is unknown: it was revoked, ended long ago, or is of another cluster; \
             `minisvc token create` makes a new one"
        )),
        Some(token) if !is_secret(token, secret) => {
            refused(format!("the secret of join token {id} is wrong: was the token copied as a whole?"))
        }
        Some(_) => Ok(()),
    }
}

/// 401 unless a machine may join with this token and secret now. Only who has the secret hears more of the token than that it is
/// there.
pub fn judge(id: &str, token: Option<&Object>, secret: &str, now: Timestamp) -> Result<(), ApiError> {
    authenticate(id, token, secret)?;
    let Some(token) = token else { return Ok(()) };
    if let Some(end) = end(token).filter(|end| *end <= now) {
        return refused(format!(
            "join token {id} expired at {}: `minisvc token create` makes a new one",
            end.strftime("%Y-%m-%dT%H:%M:%SZ")
        ));
    }
    match limit(token) {
        Some(limit) if uses(token) >= limit => refused(format!(
            "join token {id} is used up: it was for {limit} {}; `minisvc token create` makes a new one",
            if limit == 1 { "machine" } else { "machines" }
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::JOIN_TOKENS;

    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn asked(spec: Value) -> Object {
        let mut object = Object::new(&JOIN_TOKENS, None, "");
        object.metadata_mut().remove("name");
        object.0.insert("spec".into(), spec);
        object
    }

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    #[test]
    fn a_token_keeps_the_hash_of_its_secret_alone() {
        let token = issue(&asked(json!({"uses": 2, "description": "rack 3"})), "0123456789", "s3cret", now())
            .unwrap();
        let text = serde_json::to_string(&token).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(token.name(), "0123456789");
        assert_eq!(token.str_at("/spec/expirationTimestamp"), Some("2026-01-02T00:00:00Z"));
        assert_eq!(limit(&token), Some(2));
        assert!(validate(None, &token).is_empty());
        // The value of `printf s3cret | sha256sum`.
        assert_eq!(
            token.str_at("/spec/secretHash"),
            Some("1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0")
        );
        let endless = issue(&asked(json!({"ttlSeconds": 0})), "0123456789", "s", now()).unwrap();
        assert_eq!((end(&endless), is_expired(&endless, now())), (None, false));
    }

    #[test]
    fn what_the_server_decides_cannot_be_asked_for() {
        for (spec, fault) in [
            (json!({"secretHash": "ab"}), "spec.secretHash: Forbidden"),
            (json!({"expirationTimestamp": NOW}), "spec.expirationTimestamp: Forbidden"),
            (json!({"ttlSeconds": -1}), "spec.ttlSeconds: Invalid value: -1"),
            (json!({"ttlSeconds": "1h"}), "spec.ttlSeconds: Invalid value: \"1h\""),
            (json!({"ttlSeconds": i64::MAX}), "spec.ttlSeconds: Invalid value"),
        ] {
            let faults = issue(&asked(spec.clone()), "0123456789", "s", now()).unwrap_err();
            assert!(faults[0].to_string().starts_with(fault), "{spec}: {}", faults[0]);
        }
        let mut named = asked(json!({}));
        named.metadata_mut().insert("name".into(), "mine".into());
        assert_eq!(issue(&named, "0123456789", "s", now()).unwrap_err()[0].field, "metadata.name");
    }

    #[test]
    fn a_stored_token_is_sound_and_its_hash_stays() {
        let good = issue(&asked(json!({})), "0123456789", "s", now()).unwrap();
        for (field, value, fault) in [
            ("uses", json!(0), "spec.uses: Invalid value: 0"),
            ("uses", json!("2"), "spec.uses: Invalid value: \"2\""),
            ("description", json!("a\nb"), "spec.description: Invalid value"),
            ("description", json!(7), "spec.description: Invalid value: 7"),
            ("expirationTimestamp", json!("soon"), "spec.expirationTimestamp: Invalid value: \"soon\""),
            ("secretHash", json!(hash("other")), "spec.secretHash: Forbidden: may not change"),
            ("secretHash", json!("xyz"), "spec.secretHash: Invalid value: \"xyz\""),
        ] {
            let mut bad = good.clone();
            bad.spec_mut().insert(field.into(), value);
            let faults = validate(Some(&good), &bad);
            assert!(faults.len() == 1 && faults[0].to_string().starts_with(fault), "{field}: {faults:?}");
        }
        let mut bare = good.clone();
        bare.spec_mut().remove("secretHash");
        inherit(&good, &mut bare);
        assert_eq!(bare, good);
    }

    #[test]
    fn each_refusal_says_why_and_what_would_be_right() {
        let mut token =
            issue(&asked(json!({"ttlSeconds": 60, "uses": 1})), "0123456789", "s", now()).unwrap();
        let second = SignedDuration::from_secs(1);
        let said = |token: Option<&Object>, secret: &str, after: i32| {
            judge("0123456789", token, secret, now() + second * after).map_or_else(
                |e| {
                    assert_eq!(e.code, 401);
                    e.message
                },
                |()| String::new(),
            )
        };
        assert_eq!(said(Some(&token), "s", 59), "");
        assert!(said(None, "s", 0).starts_with("join token 0123456789 is unknown: it was revoked"));
        // Who has not the secret does not learn that it has ended.
        for (secret, after) in [("S", 0), ("", 0), ("s ", 61)] {
            assert!(
                said(Some(&token), secret, after).starts_with("the secret of join token 0123456789 is wrong")
            );
        }
        assert!(
            said(Some(&token), "s", 60).starts_with("join token 0123456789 expired at 2026-01-01T00:01:00Z")
        );
        token.status_mut().insert("uses".into(), 1.into());
        assert!(
            said(Some(&token), "s", 0).starts_with("join token 0123456789 is used up: it was for 1 machine;")
        );
        let kept = now() + second * 60 + KEPT;
        assert_eq!((is_forgotten(&token, kept), is_forgotten(&token, kept + second)), (false, true));
    }
}

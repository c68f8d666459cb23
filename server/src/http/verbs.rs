//! The verbs, each as one call of the registry.

use std::{sync::Arc, time::Instant};

use axum::{extract::Request, response::Response};
use http::StatusCode;
use ipnet::IpNet;
use jiff::Timestamp;
use minisvc_proto::{
    ApiError, Object, ObjectKey, Reason, Resource,
    path::Target,
    report::NODE_SILENCE_LIMIT,
    resource::{JOIN_TOKENS, NODES},
};
use serde_json::Value;

use super::{
    Edge, User,
    accept::Form,
    access::{self, Question, writes},
    answer, body,
    call::Verb,
    field_validation, join, proxy,
    query::{Query, Selection},
    watch,
};
use crate::{
    patch::Patch,
    registry::{DeleteOptions, Part, Propagation, WriteOptions, columns::table},
};

/// How often a patch that names no version is applied to a newer one before the conflict is told.
const MAX_PATCH_TRIES: usize = 16;

/// Does it. The user's rights have been checked, except on a create.
pub async fn run(
    edge: &Arc<Edge>,
    user: &User,
    verb: Verb,
    target: Target,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    match verb {
        Verb::Get => {
            let form = Form::parse(request.headers(), &query)?;
            let object = read(edge, &target)?;
            match form {
                Form::Table(include) if !is_sub(&target, "scale") => {
                    let rows = table(target.resource, [&*object], include, true, Timestamp::now());
                    Ok(answer::table(rows, object.revision()))
                }
                _ => Ok(answer::json(&*object)),
            }
        }
        Verb::List => list(edge, &target, &query, Form::parse(request.headers(), &query)?),
        Verb::Watch => {
            let form = Form::parse(request.headers(), &query)?;
            watch::answer(&edge.registry, edge.shutdown.clone(), &target, &query, form)
        }
        Verb::Create => create(edge, user, target, &query, request).await,
        Verb::Update => {
            let object = fit(body::object(request).await?, &target)?;
            let options = WriteOptions { dry_run: query.dry_run()? };
            let warnings = look_at_fields(user, &target, &query, None, &object)?;
            if user.node().is_some() {
                check_write(edge, user, Some(&*read(edge, &target)?), &object, target.resource)?;
            }
            let written = write(edge, &target, object, options).await?;
            Ok(field_validation::warn(answer::json(&*written), &warnings))
        }
        Verb::Patch => patch(edge, user, &target, &query, request).await,
        Verb::Delete => delete(edge, &target, &query, request).await,
        Verb::Connect => proxy::pod(edge, &target, &query, request).await,
    }
}

fn key(target: &Target) -> Result<ObjectKey, ApiError> {
    target.key().ok_or_else(ApiError::no_such_path)
}

fn is_sub(target: &Target, name: &str) -> bool {
    target.subresource.as_deref() == Some(name)
}

/// What stands at an object's path, or at that of its status or scale.
fn read(edge: &Edge, target: &Target) -> Result<Arc<Object>, ApiError> {
    let key = key(target)?;
    if is_sub(target, "scale") { edge.registry.scale(&key).map(Arc::new) } else { edge.registry.get(&key) }
}

async fn write(
    edge: &Edge,
    target: &Target,
    object: Object,
    options: WriteOptions,
) -> Result<Arc<Object>, ApiError> {
    if is_sub(target, "scale") {
        return edge.registry.update_scale(&key(target)?, object, options).await.map(Arc::new);
    }
    let part = if is_sub(target, "status") { Part::Status } else { Part::Main };
    edge.registry.update(part, object, options).await
}

fn list(edge: &Edge, target: &Target, query: &Query, form: Form) -> Result<Response, ApiError> {
    let selection = Selection::parse(query, target.resource)?;
    let (revision, objects) = edge.registry.list(target.resource, target.namespace.as_deref());
    let chosen = objects.iter().map(AsRef::as_ref).filter(|o| selection.matches(o));
    match form {
        Form::Objects => answer::list(target.resource, revision, chosen),
        Form::Table(include) => {
            let rows = table(target.resource, chosen, include, true, Timestamp::now());
            Ok(answer::table(rows, Some(revision)))
        }
    }
}

async fn create(
    edge: &Edge,
    user: &User,
    target: Target,
    query: &Query,
    request: Request,
) -> Result<Response, ApiError> {
    let object = body::object(request).await?;
    let mut made = target.clone();
    made.name = made.name.or_else(|| Some(object.name().to_owned()));
    access::check(user, &Question::of(Verb::Create, &made, query), |pod| edge.node_of(pod))?;
    if is_sub(&target, "binding") {
        if query.dry_run()? {
            return Err(ApiError::bad_request("dryRun: a binding cannot be tried"));
        }
        edge.registry.bind(&key(&target)?, &object).await?;
        return Ok(answer::created());
    }
    check_write(edge, user, None, &object, target.resource)?;
    let options = WriteOptions { dry_run: query.dry_run()? };
    if target.resource == &JOIN_TOKENS {
        let token = join::create_token(edge, &target, object, options).await?;
        return Ok(answer::json_with(StatusCode::CREATED, &token));
    }
    let warnings = look_at_fields(user, &target, query, None, &with_kind(object.clone(), &target))?;
    let object = edge.registry.create(&target, object, options).await?;
    Ok(field_validation::warn(answer::json_with(StatusCode::CREATED, &*object), &warnings))
}

/// What to say of unknown fields. Nodes speak with the server in words of their own, and so does a status.
fn look_at_fields(
    user: &User,
    target: &Target,
    query: &Query,
    old: Option<&Object>,
    new: &Object,
) -> Result<Vec<String>, ApiError> {
    if user.node().is_some() || target.subresource.is_some() {
        return Ok(Vec::new());
    }
    field_validation::check(query, old, new)
}

/// A new object may leave out what its path says.
fn with_kind(mut object: Object, target: &Target) -> Object {
    object.0.entry("apiVersion").or_insert_with(|| target.resource.api_version().into());
    object.0.entry("kind").or_insert_with(|| target.resource.kind.into());
    object
}

/// The object as one that stands at the target: what it leaves out of its identity is filled in, what differs is refused.
fn fit(mut object: Object, target: &Target) -> Result<Object, ApiError> {
    let key = key(target)?;
    let (version, kind) = if is_sub(target, "scale") {
        ("autoscaling/v1".to_owned(), "Scale")
    } else {
        (key.resource.api_version(), key.resource.kind)
    };
    for (field, want) in [("apiVersion", version), ("kind", kind.to_owned())] {
        match object.0.get(field).and_then(Value::as_str).unwrap_or("") {
            "" => drop(object.0.insert(field.into(), want.into())),
            have if have == want => {}
            have => {
                let message = format!("{field} is {have:?}, but this path takes {want:?}");
                return Err(ApiError::bad_request(message));
            }
        }
    }
    let identity = [("name", Some(&key.name)), ("namespace", key.namespace.as_ref())];
    for (field, want) in identity.into_iter().filter_map(|(field, want)| Some((field, want?))) {
        let have = object.metadata_mut().entry(field).or_insert_with(|| want.as_str().into()).clone();
        if have != want.as_str() {
            let message =
                format!("the {field} of the object ({have}) does not match the {field} on the URL ({want})");
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(object)
}

/// 403 or 422 if the user is a node, and may not make this of what is there. Others were judged by kind and verb.
fn check_write(
    edge: &Edge,
    user: &User,
    old: Option<&Object>,
    new: &Object,
    resource: &'static Resource,
) -> Result<(), ApiError> {
    let Some(me) = user.node() else { return Ok(()) };
    let (now, mut taken) = (Instant::now(), Vec::new());
    if resource == &NODES {
        for node in edge.registry.list(&NODES, None).1.iter().filter(|n| n.name() != me) {
            // One that was long not heard may have left its address to this one.
            let heard = node.name().parse().ok().and_then(|name| edge.progress.last_seen(&name));
            if heard.is_some_and(|at| now.saturating_duration_since(at) <= NODE_SILENCE_LIMIT) {
                taken.extend(writes::addresses(node).map(|(_, ip)| (ip, node.name().to_owned())));
            }
        }
    }
    let cluster = &edge.joining.cluster;
    let own = edge.registry.get(&ObjectKey::cluster(&NODES, me)).ok();
    let pods = own.map(|node| writes::pod_ranges(&node)).unwrap_or_default();
    let first = [cluster.pod_cidr, cluster.service_cidr].map(IpNet::V4);
    let second = [cluster.pod_cidr6, cluster.service_cidr6].into_iter().flatten().map(IpNet::V6);
    let facts = writes::Facts { me, taken: &taken, pods, ranges: first.into_iter().chain(second).collect() };
    writes::check(&facts, resource, old, new)
}

async fn patch(
    edge: &Edge,
    user: &User,
    target: &Target,
    query: &Query,
    request: Request,
) -> Result<Response, ApiError> {
    let media_type = body::media_type(&request);
    let options = WriteOptions { dry_run: query.dry_run()? };
    let patch = Patch::parse(&media_type, &body::read(request).await?)?;
    let key = key(target)?;
    let mut tries = 0;
    loop {
        let old = read(edge, target)?;
        let new = fit(patch.apply(&old)?, target)?;
        let warnings = look_at_fields(user, target, query, Some(&old), &new)?;
        check_write(edge, user, Some(&*old), &new, target.resource)?;
        // A patch that sets another version than the stored one asks for exactly that version.
        if new.str_at("/metadata/resourceVersion").is_some_and(|v| !v.is_empty())
            && new.revision() != old.revision()
        {
            return Err(ApiError::modified(&key));
        }
        match write(edge, target, new, options).await {
            Err(error) if error.reason == Reason::Conflict && tries < MAX_PATCH_TRIES => tries += 1,
            done => return done.map(|object| field_validation::warn(answer::json(&*object), &warnings)),
        }
    }
}

async fn delete(edge: &Edge, target: &Target, query: &Query, request: Request) -> Result<Response, ApiError> {
    let key = key(target)?;
    let options = delete_options(body::optional_json(request).await?, query)?;
    let dry_run = options.dry_run;
    let object = edge.registry.delete(&key, options).await?;
    // Still there: somebody has yet to finish something.
    let stays = object.deletion_timestamp().is_some()
        && (dry_run || edge.registry.get(&key).is_ok_and(|now| now.uid() == object.uid()));
    Ok(if stays { answer::json(&*object) } else { answer::deleted(target.resource, &object) })
}

/// DeleteOptions of the body, or of the query where the body says nothing.
fn delete_options(body: Option<Value>, query: &Query) -> Result<DeleteOptions, ApiError> {
    let body = body.unwrap_or(Value::Null);
    if !body.is_null() && !body.is_object() {
        return Err(ApiError::bad_request("the body is no DeleteOptions object"));
    }
    let wrong =
        |field: &str, want: &str| ApiError::bad_request(format!("DeleteOptions.{field}: must be {want}"));
    let text = |pointer: &str, field: &str| match body.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong(field, "a string")),
    };
    let grace_seconds = match body.get("gracePeriodSeconds") {
        None | Some(Value::Null) => query.number("gracePeriodSeconds")?,
        Some(value) => Some(value.as_i64().ok_or_else(|| wrong("gracePeriodSeconds", "a whole number"))?),
    };
    if grace_seconds.is_some_and(|s| s < 0) {
        return Err(wrong("gracePeriodSeconds", "0 or more"));
    }
    let policy = text("/propagationPolicy", "propagationPolicy")?;
    let propagation = match policy.as_deref().or(query.get("propagationPolicy")) {
        None | Some("Background") => Propagation::Background,
        Some("Foreground") => Propagation::Foreground,
        Some("Orphan") => Propagation::Orphan,
        Some(_) => return Err(wrong("propagationPolicy", "Background, Foreground or Orphan")),
    };
    let mut dry_run = query.dry_run()?;
    match body.get("dryRun") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) if list.iter().all(|v| v == "All") => dry_run |= !list.is_empty(),
        Some(_) => return Err(wrong("dryRun", "[\"All\"] or left out")),
    }
    Ok(DeleteOptions {
        uid: text("/preconditions/uid", "preconditions.uid")?,
        resource_version: text("/preconditions/resourceVersion", "preconditions.resourceVersion")?,
        grace_seconds,
        propagation,
        dry_run,
    })
}

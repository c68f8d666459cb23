//! Errors as kubectl words them, on one line each.

use minisvc_proto::{ApiError, Reason, client::ClientError};

/// Said where there is no configuration at all.
pub const NO_CLUSTER: &str = "no cluster is configured: start one with \"minisvc up\", or give --config";

/// The line for an error.
pub fn line(e: &anyhow::Error) -> String {
    let text = match e.chain().find_map(|c| c.downcast_ref::<ClientError>()) {
        // What was said about it before the server was asked stands in front of the server's own words.
        Some(ClientError::Api(status)) => from_server(
            status,
            e.chain().next().filter(|c| !c.is::<ClientError>()).map(ToString::to_string).as_deref(),
        ),
        Some(ClientError::Unreachable { .. }) => {
            format!(
                "error: {e:#}: start a cluster with \"minisvc up\", or give the --config of one that runs"
            )
        }
        _ => format!("error: {e:#}"),
    };
    one_line(&text)
}

/// A refusal of the server. Validation reads `The Service "x" is invalid: …`, all else `Error from server (Reason): …`.
fn from_server(status: &ApiError, context: Option<&str>) -> String {
    let message = status.message.trim();
    let message = match context {
        Some(context) => format!("{context}: {message}"),
        None => message.to_owned(),
    };
    match (status.reason, context) {
        (Reason::Invalid, None) if status.details.is_some() => format!("The {message}"),
        (Reason::Unauthorized, _) => {
            format!("error: the server does not know these credentials (Unauthorized): {message}")
        }
        (Reason::Unknown, _) => format!("Error from server: {message}"),
        (reason, _) => format!("Error from server ({reason:?}): {message}"),
    }
}

/// On one line, and without the system's numbers, which its words say already.
fn one_line(text: &str) -> String {
    without_numbers(text)
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => out.push_str(rest),
            _ => {
                out.push_str(" (os error ");
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};
    use minisvc_proto::{
        Cause,
        resource::{DEPLOYMENTS, PODS, SERVICES},
    };

    use super::*;

    fn api(e: ApiError) -> anyhow::Error {
        ClientError::Api(e).into()
    }

    #[test]
    fn refusals_read_as_kubectl_prints_them() {
        let range = Cause::invalid("spec.ports[0].nodePort", 80, "provided port is not in the valid range");
        let invalid = || ApiError::invalid(&SERVICES, "x", vec![range.clone()]);
        for (error, expected) in [
            (api(ApiError::not_found(&PODS, "x")), "Error from server (NotFound): pods \"x\" not found"),
            (
                api(ApiError::already_exists(&DEPLOYMENTS, "x")),
                "Error from server (AlreadyExists): deployments.apps \"x\" already exists",
            ),
            (
                api(invalid()),
                "The Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range",
            ),
            (
                Err::<(), _>(ClientError::Api(invalid()))
                    .context("error when creating \"a.yaml\"")
                    .unwrap_err(),
                "Error from server (Invalid): error when creating \"a.yaml\": Service \"x\" is invalid: \
                 spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range",
            ),
            (anyhow!("first\n  second\n"), "error: first second"),
            (
                anyhow!("a: No such file (os error 2): b (os error x)"),
                "error: a: No such file: b (os error x)",
            ),
            (
                anyhow!(NO_CLUSTER),
                "error: no cluster is configured: start one with \"minisvc up\", or give --config",
            ),
            (
                ClientError::Unreachable {
                    server: "https://127.0.0.1:7443".into(),
                    cause: "Connection refused".into(),
                }
                .into(),
                "error: the server https://127.0.0.1:7443 does not answer: Connection refused: start a cluster with \
                 \"minisvc up\", or give the --config of one that runs",
            ),
        ] {
            assert_eq!(line(&error), expected);
        }
    }
}

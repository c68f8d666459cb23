//! Query parameters, and what they select.

use axum::extract::Query as Pairs;
use minisvc_proto::{
    ApiError, Object, Resource,
    selector::{FieldSelector, LabelSelector},
};

/// The parameters of a request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let uri = http::Uri::builder()
            .path_and_query(format!("/?{text}"))
            .build()
            .map_err(|e| ApiError::bad_request(format!("the query cannot be read: {e}")))?;
        Pairs::<Vec<(String, String)>>::try_from_uri(&uri)
            .map(|Pairs(pairs)| Query(pairs))
            .map_err(|e| ApiError::bad_request(format!("the query cannot be read: {e}")))
    }

    /// The first value of a parameter; empty is as good as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// A boolean; absent is false.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("{name}: {other:?} is neither true nor false"))),
        }
    }

    /// A number of this type.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|text| {
                let wrong =
                    |_| ApiError::bad_request(format!("{name}: {text:?} is no number that fits here"));
                text.parse().map_err(wrong)
            })
            .transpose()
    }

    /// The node that the field selector restricts pods to, if it does.
    pub fn selected_node(&self) -> Option<String> {
        let fields: FieldSelector = self.get("fieldSelector")?.parse().ok()?;
        let on = fields.0.into_iter().find(|r| r.equal && r.path == "spec.nodeName");
        on.map(|r| r.value)
    }

    /// `dryRun=All` or nothing.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("dryRun: {other:?} is not supported, All is"))),
        }
    }
}

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`; 400 for one that cannot be read or is not supported for this kind.
    pub fn parse(query: &Query, resource: &Resource) -> Result<Self, ApiError> {
        let bad = |name: &str, e: &dyn std::fmt::Display| ApiError::bad_request(format!("{name}: {e}"));
        let labels =
            query.get("labelSelector").unwrap_or("").parse().map_err(|e| bad("labelSelector", &e))?;
        let fields: FieldSelector =
            query.get("fieldSelector").unwrap_or("").parse().map_err(|e| bad("fieldSelector", &e))?;
        let known = selectable(resource);
        if let Some(other) = fields.0.iter().find(|r| !known.contains(&r.path.as_str())) {
            let message = format!(
                "fieldSelector: field label not supported: {:?}; for {} there are {}",
                other.path,
                resource.plural,
                known.join(", ")
            );
            return Err(ApiError::bad_request(message));
        }
        Ok(Selection { labels, fields })
    }

    /// Restricts the selection to one name.
    pub fn named(mut self, name: &str) -> Self {
        self.fields.0.push(minisvc_proto::selector::FieldRequirement {
            path: "metadata.name".into(),
            equal: true,
            value: name.to_owned(),
        });
        self
    }

    /// Whether the object is meant.
    pub fn matches(&self, object: &Object) -> bool {
        (self.labels.is_empty() || self.labels.matches(&object.labels()))
            && (self.fields.is_empty() || self.fields.matches(object))
    }
}

/// The fields that Kubernetes selects by, of those kinds that are here.
fn selectable(resource: &Resource) -> Vec<&'static str> {
    let own: &[&'static str] = match resource.kind {
        "Pod" => &["spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP"],
        "Event" => &[
            "involvedObject.apiVersion",
            "involvedObject.fieldPath",
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.resourceVersion",
            "involvedObject.uid",
            "reason",
            "reportingComponent",
            "type",
        ],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Namespace" => &["status.phase"],
        "Node" => &["spec.unschedulable"],
        "ReplicaSet" => &["status.replicas"],
        _ => &[],
    };
    ["metadata.name", "metadata.namespace"].iter().chain(own).copied().collect()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{PODS, SERVICES};

    use super::*;

    #[test]
    fn what_cannot_be_selected_is_refused_with_its_name() {
        let select = |q: &str, r| Selection::parse(&Query::parse(q).unwrap(), r);
        let pod: Object = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "labels": {"app": "web"}}, "spec": {"nodeName": "n1"}
        }))
        .unwrap();
        for (query, expected) in [
            ("", true),
            ("labelSelector=app%3Dweb&fieldSelector=spec.nodeName%3Dn1", true),
            ("labelSelector=app+in+(db)", false),
            ("fieldSelector=spec.nodeName!%3Dn1", false),
        ] {
            assert_eq!(select(query, &PODS).unwrap().matches(&pod), expected, "{query}");
        }
        let error = select("fieldSelector=spec.nodeName%3Dn1", &SERVICES).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (
                400,
                "fieldSelector: field label not supported: \"spec.nodeName\"; for services there are metadata.name, metadata.namespace, spec.clusterIP, spec.type"
            )
        );
        assert_eq!(select("labelSelector=a%3D(", &PODS).unwrap_err().code, 400);
        assert!(!select("", &PODS).unwrap().named("b").matches(&pod));
    }
}

//! The subresource `binding` of pods: the one write that gives a pod its node.

use std::sync::Arc;

use minisvc_proto::{ApiError, Cause, Object, ObjectKey, names::check_dns_subdomain, resource::PODS};

use super::{Part, Registry};
use crate::conditions::{self, Condition};

impl Registry {
    /// Binds a pod to the node that the Binding names as its target; 409 if the pod has a node already, or is ending.
    /// [pkg/registry/core/pod/storage/storage.go, `assignPod`]
    pub async fn bind(&self, pod: &ObjectKey, binding: &Object) -> Result<Arc<Object>, ApiError> {
        let kind = binding.str_at("/target/kind").filter(|k| !k.is_empty()).unwrap_or("Node");
        let node = binding.str_at("/target/name").unwrap_or("");
        let mut causes = Vec::new();
        if kind != "Node" {
            causes.push(Cause::not_supported("target.kind", kind, &["Node"]));
        }
        if node.is_empty() {
            causes.push(Cause::required("target.name", "the node that the pod is bound to"));
        } else if let Err(rule) = check_dns_subdomain(node) {
            causes.push(Cause::invalid("target.name", node, rule.0));
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid(&PODS, &pod.name, causes));
        }
        let conflict = |why: &str| ApiError::conflict(&PODS, &pod.name, why);
        self.modify(pod, Part::Binding, |p| {
            if !binding.uid().is_empty() && binding.uid() != p.uid() {
                return Err(conflict(&format!(
                    "the uid is {}, but the binding is for {}",
                    p.uid(),
                    binding.uid()
                )));
            }
            if p.deletion_timestamp().is_some() {
                return Err(conflict("the pod is being deleted, cannot be assigned to a host"));
            }
            if let Some(has) = p.str_at("/spec/nodeName").filter(|n| !n.is_empty()) {
                return Err(conflict(&format!("the pod is already assigned to node {has:?}")));
            }
            p.spec_mut().insert("nodeName".into(), node.into());
            let scheduled = Condition {
                kind: "PodScheduled",
                status: "True",
                reason: "Scheduled",
                message: format!("The pod is bound to {node}"),
            };
            conditions::set(p, &scheduled, &conditions::now());
            Ok(true)
        })
        .await
    }
}

//! What a pod would like to cost its ReplicaSet. [KEP-2255; pkg/apis/core/validation, ValidatePodSpecificAnnotations]

use minisvc_proto::Cause;

use super::super::field::Field;

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The fault of a cost among these annotations that is no number, or is written with a plus sign or leading zeros.
pub fn validate(annotations: &Field<'_>) -> Option<Cause> {
    let value = annotations.entries().find(|(name, _)| *name == COST)?.1.as_str()?;
    let is_plain = value.parse::<i32>().is_ok_and(|cost| cost.to_string() == value);
    (!is_plain)
        .then(|| Cause::invalid(format!("{}[{COST}]", annotations.path), value, "must be a 32bit integer"))
}

#[cfg(test)]
mod tests {
    use minisvc_proto::{Object, resource::PODS};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cost_is_a_whole_number_written_plainly() {
        for (cost, good) in [
            ("0", true),
            ("-7", true),
            ("2147483647", true),
            ("2147483648", false),
            ("+1", false),
            ("01", false),
            ("", false),
            ("much", false),
        ] {
            let mut pod = Object::new(&PODS, Some("default"), "a");
            pod.metadata_mut().insert("annotations".into(), json!({COST: cost}));
            let fault = validate(&Field::of(&pod, "metadata").child("annotations"));
            assert_eq!(fault.is_none(), good, "{cost}: {fault:?}");
        }
    }
}

//! `cordon` and `uncordon`

use minisvc_proto::{Object, ObjectKey, resource::NODES};
use serde_json::Value;

use super::{DONE, Outcome, Session, complain, editing::edit};
use crate::{args::Cordon, output};

pub(super) async fn run(session: &Session, args: Cordon, close: bool) -> Outcome {
    let mut code = DONE;
    for name in &args.nodes {
        let key = ObjectKey::cluster(&NODES, name.trim_start_matches("node/"));
        match edit(session, &key, |node| Ok(set(node, close))).await {
            Ok(said) => output::line(&format!("node/{} {said}", key.name))?,
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

fn set(node: &mut Object, close: bool) -> &'static str {
    let is_closed = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    match (is_closed, close) {
        (true, true) => return "already cordoned",
        (false, false) => return "already uncordoned",
        (false, true) => drop(node.spec_mut().insert("unschedulable".into(), true.into())),
        (true, false) => drop(node.spec_mut().remove("unschedulable")),
    }
    if close { "cordoned" } else { "uncordoned" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_closed_and_opened_once() {
        let mut node = Object::new(&NODES, None, "n1");
        for (close, said) in [
            (false, "already uncordoned"),
            (true, "cordoned"),
            (true, "already cordoned"),
            (false, "uncordoned"),
            (false, "already uncordoned"),
        ] {
            assert_eq!(set(&mut node, close), said);
        }
    }
}

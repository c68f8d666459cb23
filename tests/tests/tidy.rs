//! The house rules that no compiler knows: who may import whom, where `unsafe` lives, how files are named.

#![allow(
    clippy::unwrap_used,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "a test walking its own sources"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust source file of the workspace as (path from the top, text).
fn sources() -> Vec<(String, String)> {
    let mut out = Vec::new();
    for room in ["proto", "server", "agent", "cli", "tests"] {
        collect(&root().join(room), room, &mut out);
    }
    assert!(out.len() > 10, "found {} files: the walk is broken", out.len());
    out
}

fn collect(dir: &Path, shown: &str, out: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let shown = format!("{shown}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            if entry.file_name() != "target" {
                collect(&entry.path(), &shown, out);
            }
        } else if shown.ends_with(".rs") {
            out.push((shown, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// Lines of code (no comments) in files under `prefix` that hold one of `words`, as `file:line: text`.
fn offences(prefix: &str, except: &[&str], words: &[&str]) -> Vec<String> {
    sources()
        .iter()
        .filter(|(path, _)| path.starts_with(prefix) && !except.iter().any(|e| path.starts_with(e)))
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| {
                    let code = line.split("//").next().unwrap_or("");
                    words.iter().any(|w| code.contains(w))
                })
                .map(move |(n, line)| format!("{path}:{}: {}", n + 1, line.trim()))
        })
        .collect()
}

fn assert_none(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}\n{}", offences.join("\n"));
}

#[test]
fn the_planner_is_pure() {
    let words = [
        "tokio",
        "nix::",
        "libc::",
        "std::fs",
        "std::process",
        "std::time",
        "std::env",
        "crate::nft",
        "crate::net",
    ];
    assert_none("agent::plan takes values and returns values", &offences("agent/src/plan", &[], &words));
}

#[test]
fn a_pods_steps_and_status_are_decided_without_effects() {
    let words = ["tokio", "async fn", "std::fs", "std::time", "std::env", "now_millis()", "Timestamp::now"];
    for part in ["decide", "status"] {
        let found = offences(&format!("agent/src/sync/pods/{part}"), &[], &words);
        assert_none("facts in, plan or status out", &found);
    }
}

#[test]
fn controllers_decide_without_effects() {
    let decide = [
        "claim",
        "deployment",
        "endpointslice",
        "gc",
        "index",
        "nodes",
        "picture",
        "pod",
        "programmed",
        "replicaset",
    ];
    for file in decide
        .map(|f| format!("server/src/controllers/{f}"))
        .into_iter()
        .chain(["server/src/scheduler".into()])
    {
        let found = offences(&file, &[], &["tokio", "async fn", "crate::registry", "crate::cache", "now()"]);
        // The tests of a decision may ask what time it is.
        let found: Vec<_> = found.into_iter().filter(|f| !f.contains("Instant::now()")).collect();
        assert_none("a controller's decision takes values and returns values", &found);
    }
}

#[test]
fn each_engine_and_framework_has_its_room() {
    assert_none("only server::store knows sled", &offences("server/src", &["server/src/store"], &["sled::"]));
    let edge = ["server/src/http", "server/src/tls", "server/src/run"];
    let frameworks = ["axum::", "hyper::", "hyper_util::", "tower"];
    assert_none("only the HTTP edge knows axum and hyper", &offences("server/src", &edge, &frameworks));
    let engine = ["crate::store", "crate::alloc", "crate::controllers", "crate::scheduler"];
    assert_none("the edge calls the registry", &offences("server/src/http", &[], &engine));
    let impure = ["tokio", "std::time", "std::env", "std::fs", "Timestamp::now"];
    assert_none("columns are values of values", &offences("server/src/registry/columns", &[], &impure));
    let below = ["crate::http", "axum::"];
    assert_none("the registry does not know the edge", &offences("server/src/registry", &[], &below));
    let writer = ["crate::store", "crate::http"];
    assert_none("controllers write through the registry", &offences("server/src/controllers", &[], &writer));
}

#[test]
fn the_kernel_modules_do_not_know_the_planner_or_the_loops() {
    for room in ["net", "nft", "conntrack", "dataplane", "relay", "dns"] {
        let found = offences(&format!("agent/src/{room}"), &[], &["crate::sync", "crate::runtime"]);
        assert_none("kernel modules know their model and sys only", &found);
    }
}

#[test]
fn one_place_prints_and_one_ends_the_process() {
    let words = ["println!", "print!(", "dbg!("];
    assert_none("only cli::output prints", &offences("cli/src", &["cli/src/output"], &words));
    for room in ["proto/src", "server/src", "agent/src"] {
        assert_none("libraries print nothing", &offences(room, &["agent/src/runtime/shim"], &words));
    }
    assert_none(
        "only cli::main ends the process",
        &offences("cli/src", &["cli/src/main.rs"], &["process::exit"]),
    );
}

#[test]
fn files_have_telling_names_and_a_bearable_size() {
    for (path, text) in sources() {
        let stem = Path::new(&path).file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            !["utils", "helpers", "common", "misc", "mod"].contains(&stem.as_str()),
            "{path}: no file has that name"
        );
        let lines = text.lines().count();
        assert!(lines <= 800, "{path}: {lines} lines; split it (aim at 300)");
    }
}

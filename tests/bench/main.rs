//! Measures the figures that docs/benchmarks.md explains, and prints them as one table. `tests/bench/run` builds and runs it.

#[cfg(target_os = "linux")]
mod agent;
#[cfg(target_os = "linux")]
mod cluster;
#[cfg(target_os = "linux")]
mod dataplane;
#[cfg(target_os = "linux")]
mod dns;
#[cfg(target_os = "linux")]
mod figure;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod monitor;
#[cfg(target_os = "linux")]
mod objects;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod spread;
#[cfg(target_os = "linux")]
mod store;
#[cfg(target_os = "linux")]
mod topology;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    program::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("the figures are of Linux nodes: run this on Linux");
}

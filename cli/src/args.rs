//! The command line.

mod change;
mod create;
mod marks;
mod read;
mod rollout;
mod server;
mod service;
mod storage;
mod token;
pub mod values;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

pub use self::{
    change::{Cascade, Delete, Exec, NodeArgs, NodeCommand, NodeExec, NodeRemove, Scale, Streams},
    create::{Create, CreateDeployment, CreateWhat, DryRun, Expose, Produce, Run, ServiceWait},
    marks::{Cordon, Label, Taint},
    read::{Describe, Get, KubeconfigArgs, Logs, Version, VersionFormat, Wait},
    rollout::{RolloutArgs, RolloutCommand, Status, Undo, Which},
    server::{Credentials, RunServer, Server, ServerWhat},
    service::{CreateService, ExternalNameFlags, LoadBalancerFlags, NodePortFlags, ServiceFlags, Traffic},
    token::{TokenArgs, TokenCommand, TokenCreate, TokenList, TokenRevoke},
};
#[cfg(target_os = "linux")]
use crate::commands::{agent::AgentArgs, doctor::DoctorArgs};
use crate::local::{DownArgs, UpArgs};

/// Kubernetes-style Services for a handful of machines or one laptop, without Kubernetes.
#[derive(Parser)]
#[command(name = "minisvc", version, arg_required_else_help = true)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Default, ClapArgs)]
pub struct Global {
    /// Kubeconfig file; else $MINISVC_CONFIG, $XDG_CONFIG_HOME/minisvc/config, or this machine's server's admin.kubeconfig
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Namespace [default: the one of the configuration, else "default"]
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub namespace: Option<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Start a cluster on this machine
    Up(UpArgs),
    /// Stop a cluster that `up` started
    Down(DownArgs),
    #[command(flatten)]
    Cluster(ClusterCommand),
    /// Run the API server and the controllers
    Server(Server),
    /// Run this machine as a node
    #[cfg(target_os = "linux")]
    Agent(AgentArgs),
    /// Check whether this machine can be a node, and say what to do about what is in the way
    #[cfg(target_os = "linux")]
    Doctor(DoctorArgs),
    /// The first process of a pod: started by the agent
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    Shim(Shim),
    /// Run the demo workload: HTTP, raw TCP and UDP on one port
    Echo(Echo),
}

/// What speaks to the server.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Create objects
    Create(Box<Create>),
    /// Run CMD in a pod
    Run(Run),
    /// Make a service for a deployment, replica set, pod or service
    Expose(Box<Expose>),
    /// Show objects
    Get(Get),
    /// Show everything about objects, with their events
    Describe(Describe),
    /// Delete objects
    Delete(Delete),
    /// Set the number of replicas
    Scale(Scale),
    /// Follow and steer the rollouts of deployments
    Rollout(RolloutArgs),
    /// Let no more pods come to nodes
    Cordon(Cordon),
    /// Let pods come to nodes again
    Uncordon(Cordon),
    /// Change the taints of nodes
    Taint(Taint),
    /// Change the labels of objects
    Label(Label),
    /// Show a pod's log
    Logs(Logs),
    /// Run CMD in a pod that runs
    Exec(Exec),
    /// Work on a node
    Node(NodeArgs),
    /// Let machines join
    Token(TokenArgs),
    /// Wait for a condition
    Wait(Wait),
    /// Print the configuration that is used, in kubeconfig format
    Kubeconfig(KubeconfigArgs),
    /// Print the versions of client and server
    Version(Version),
}

#[cfg(target_os = "linux")]
#[derive(Debug, ClapArgs)]
pub struct Shim {
    /// The pod's directory
    #[arg(long)]
    pub dir: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct Echo {
    /// The port
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Instead of serving, ask another one and print its answer
    #[arg(long, hide = true, value_name = "HOST:PORT")]
    pub ask: Option<String>,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Wide,
    Yaml,
    Json,
    Name,
}

/// How a made object is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    Yaml,
    Json,
    Name,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_the_documentation_says_is_accepted() {
        for good in [
            "minisvc create deployment hello --replicas 4 -- minisvc echo --port 8080",
            "minisvc create deployment hello --image host --port 8080 --dry-run=client -o yaml -- true",
            "minisvc create service nodeport hello --tcp=80:8080 --wait=false",
            "minisvc create service nodeport hello --tcp=80:8080 --udp 53 --node-port=30080 --timeout=2m",
            "minisvc create service clusterip hello --tcp=80 --tcp=443:8443 --clusterip 10.96.0.9",
            "minisvc create service clusterip bare --clusterip=None",
            "minisvc create service clusterip db --tcp=5432 --no-selector",
            "minisvc create service clusterip hello --tcp=80 --selector app=x,tier=y --ip-family-policy=PreferDualStack",
            "minisvc create service clusterip hello --tcp=80 --cluster-ip fd00::9 --ip-families=IPv6,IPv4 --sctp 5060",
            "minisvc create service loadbalancer hello --tcp=80:8080 --load-balancer-source-range=10.0.0.0/8,fd00::/8",
            "minisvc create service lb hello --tcp=80 --no-node-ports --external-traffic-policy Local",
            "minisvc create service loadbalancer hello --tcp=80 --load-balancer-class=example.com/x --node-port 30080",
            "minisvc create service externalname db --external-name db.example.com",
            "minisvc create service nodeport hello --tcp=80 --session-affinity=ClientIP --session-affinity-timeout=10m",
            "minisvc create service clusterip hello --tcp=80 --external-ip=192.0.2.1 --internal-traffic-policy=Local",
            "minisvc create service clusterip hello --tcp=80 --traffic-distribution=PreferSameNode --publish-not-ready-addresses",
            "minisvc expose deployment hello --port 80 --type LoadBalancer --external-ip 192.0.2.1 --cluster-ip 10.96.0.9",
            "minisvc create namespace blue",
            "minisvc create -f - -n blue",
            "minisvc run job --restart=Never --env A=b --labels app=x,tier=y -- sleep 3",
            "minisvc expose deployment hello --type=NodePort --port=80 --target-port=8080",
            "minisvc expose deployment/hello --port 80 --session-affinity ClientIP",
            "minisvc get nodes,pods,services,endpointslices -o wide -A",
            "minisvc get pod/a svc/b -o name",
            "minisvc get pods -w -l app=hello --no-headers --show-labels",
            "minisvc describe pod hello-1",
            "minisvc delete pod a b --now --wait=false",
            "minisvc delete deploy,svc -l app=hello --cascade=orphan",
            "minisvc delete -f a.yaml -f b.yaml --ignore-not-found",
            "minisvc scale deployment hello --replicas=3 --current-replicas=2",
            "minisvc scale rs/a deploy/b --replicas 1",
            "minisvc rollout status deployment/hello --timeout=1m --watch=false --revision 2",
            "minisvc rollout history deploy hello --revision=3",
            "minisvc rollout undo deployment/a deployment/b --to-revision=2",
            "minisvc rollout restart deployment a b",
            "minisvc rollout pause deployment/hello",
            "minisvc rollout resume deployment hello -n blue",
            "minisvc cordon node-1 node-2",
            "minisvc uncordon node-1",
            "minisvc taint nodes node-1 dedicated=db:NoSchedule old- --overwrite",
            "minisvc label pods a b tier=web old- --overwrite",
            "minisvc label node/node-1 --list",
            "minisvc logs -f deployment/hello --tail 3 --since=5m -c hello",
            "minisvc exec -it hello-1 -- sh -c true",
            "minisvc exec hello-1 -n blue -- curl http://hello/",
            "minisvc node exec node-2 -- curl http://10.0.0.1:30080/",
            "minisvc node remove node-2",
            "minisvc token create --ttl 30m --uses 3 --description rack-3",
            "minisvc token create --ttl 0",
            "minisvc token list",
            "minisvc token revoke 0123456789 abcdef0123",
            "minisvc wait --for=condition=Ready pod/a --timeout=10s",
            "minisvc wait pods -l app=x --for=delete",
            "minisvc version --client -o json",
            "minisvc server --vxlan-port 4790 --node-certificate-ttl 10s --pod-eviction-timeout 5m",
            "minisvc server --listen 127.0.0.1:0 --tls-san a --tls-san ::1",
            "minisvc server credentials --admin --data-dir /d --server https://s:7443",
        ] {
            if let Err(e) = parse(good) {
                panic!("{good}: {e}");
            }
        }
    }

    #[test]
    fn usage_errors_are_2_and_name_the_fault() {
        for (bad, says) in [
            ("minisvc nope", "nope"),
            ("minisvc create service nodeport hello", "--tcp"),
            ("minisvc create service nodeport hello --tcp=0", "\"0\" is no port, 1-65535"),
            ("minisvc create service nodeport hello --tcp=80:x-", "\"x-\" is no port"),
            ("minisvc create service nodeport hello --tcp=80 --node-port=65536", "65536"),
            ("minisvc create service clusterip hello --tcp=80 --clusterip nope", "nope"),
            (
                "minisvc create service clusterip hello --tcp=80 --clusterip nope",
                "or None for a headless service",
            ),
            ("minisvc create service clusterip hello --tcp=80 --no-selector --selector a=b", "--no-selector"),
            ("minisvc create service externalname db", "--external-name"),
            (
                "minisvc create service loadbalancer x --tcp=80 --load-balancer-source-range 10.0.0.1",
                "is no network",
            ),
            (
                "minisvc create service loadbalancer x --tcp=80 --node-port=1 --no-node-ports",
                "--no-node-ports",
            ),
            (
                "minisvc create service clusterip x --tcp=80 --session-affinity-timeout=2d",
                "\"2d\" is no duration",
            ),
            (
                "minisvc create service clusterip x --tcp=80 --session-affinity-timeout=25h",
                "between 1s and 24h",
            ),
            ("minisvc create service clusterip x --tcp=80 --traffic-distribution=Near", "PreferSameZone"),
            ("minisvc create service clusterip x --tcp=80 --external-ip=a", "invalid"),
            ("minisvc create deployment x", "<CMD>"),
            ("minisvc create deployment x --replicas=-1 -- a", "-1"),
            ("minisvc scale deployment x", "--replicas"),
            ("minisvc rollout", "restart"),
            ("minisvc rollout undo", "<WHAT>"),
            ("minisvc rollout undo deployment/x --to-revision=-1", "-1"),
            ("minisvc expose deployment x --type=Nope", "NodePort"),
            ("minisvc get pods -o table", "wide"),
            ("minisvc wait pod/x", "--for"),
            ("minisvc wait pod/x --for=ready", "condition="),
            ("minisvc logs x --since=5parsecs", "5parsecs"),
            ("minisvc exec x", "<CMD>"),
            ("minisvc run x --env A -- b", "NAME=VALUE"),
            ("minisvc server --node-port-range 9-8", "30000-32767"),
            ("minisvc server --pod-cidr 10.0.0.0", "10.0.0.0"),
            ("minisvc server --vxlan-port 0", "\"0\" is no port"),
            ("minisvc server --node-certificate-ttl 0s", "720h would be right"),
            ("minisvc token", "create"),
            ("minisvc token create --uses 0", "--uses"),
            ("minisvc token create --ttl soon", "\"soon\" is no duration"),
            ("minisvc token create --ttl 500ms", "whole seconds"),
            ("minisvc token revoke", "<ID>"),
            ("minisvc node remove", "<NODE>"),
            ("minisvc server credentials", "--admin"),
            ("minisvc server credentials --node n", "--node"),
        ] {
            let Err(e) = parse(bad) else { panic!("{bad} is accepted") };
            assert_eq!(e.exit_code(), 2, "{bad}");
            assert!(e.to_string().contains(says), "{bad}: {e}");
        }
    }
}

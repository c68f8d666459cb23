//! Every flag of both commands, as clap lists them: a new one is tested as soon as it is there.

use std::{
    any::TypeId,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    sync::LazyLock,
    time::Duration,
};

use clap::ArgAction;
use ipnet::Ipv4Net;
use minisvc_agent::config::{ExternalSource, HostAddress};
use minisvc_proto::{NodeName, join::JoinToken};
use minisvc_server::run::Cidrs;

use super::*;
use crate::{commands::agent::NodeIps, settings::flags::Kind};

/// A directory for settings files, and an environment.
struct Machine {
    dir: tempfile::TempDir,
    env: BTreeMap<String, OsString>,
}

impl Machine {
    fn new() -> Self {
        Machine { dir: tempfile::tempdir().unwrap(), env: BTreeMap::new() }
    }

    fn set(mut self, variable: &str, value: &str) -> Self {
        self.env.insert(variable.to_owned(), value.into());
        self
    }

    fn with(self, file: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(file), text).unwrap();
        fs::set_permissions(self.dir.path().join(file), fs::Permissions::from_mode(0o600)).unwrap();
        self
    }

    fn parse(&self, line: &str) -> Result<(ArgMatches, Vec<String>), Fault> {
        let argv: Vec<OsString> =
            ["minisvc"].into_iter().chain(line.split_whitespace()).map(Into::into).collect();
        let env = |name: &str| self.env.get(name).cloned();
        matches(&argv, &Surroundings { env: &env, dir: self.dir.path() })
    }

    /// The values of a flag as text; of the innermost command.
    fn values(&self, line: &str, flag: &str) -> Vec<String> {
        let (matches, _) = self.parse(line).unwrap_or_else(|fault| panic!("{line}: {fault:?}"));
        let mut innermost = &matches;
        while let Some((_, inner)) = innermost.subcommand() {
            innermost = inner;
        }
        let raw = innermost.get_raw(&flag.replace('-', "_")).into_iter().flatten();
        raw.map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    /// The line that the user reads, with the directory left out.
    fn refused(&self, line: &str) -> String {
        match self.parse(line) {
            Err(Fault::Settings(e)) => {
                crate::output::errors::line(&e).replace(&format!("{}/", self.dir.path().display()), "")
            }
            Err(Fault::Usage(e)) => panic!("{line}: clap says {e}"),
            Ok(_) => panic!("{line} is accepted"),
        }
    }
}

/// Three values of a flag that differ; the first and the last are not the default.
fn samples(flag: &Flag) -> [&'static str; 3] {
    let takes = |id: TypeId| flag.arg.get_value_parser().type_id() == id;
    if takes(TypeId::of::<Ipv4Addr>())
        || takes(TypeId::of::<IpAddr>())
        || takes(TypeId::of::<NodeIps>())
        || takes(TypeId::of::<HostAddress>())
    {
        ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    } else if takes(TypeId::of::<SocketAddr>()) {
        ["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"]
    } else if takes(TypeId::of::<Ipv4Net>()) || takes(TypeId::of::<Cidrs>()) {
        ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]
    } else if takes(TypeId::of::<(u16, u16)>()) {
        ["30001-31000", "30002-31000", "30003-31000"]
    } else if takes(TypeId::of::<Duration>()) {
        ["11h", "12h", "13h"]
    } else if takes(TypeId::of::<NodeName>()) {
        ["one", "two", "three"]
    } else if takes(TypeId::of::<ExternalSource>()) {
        // There is no fourth: the default stands where it must win over another one.
        ["keep", "auto", "masquerade"]
    } else if takes(TypeId::of::<JoinToken>()) {
        tokens()
    } else if flag.kind() == Kind::Number {
        ["1001", "1002", "1003"]
    } else if takes(TypeId::of::<String>()) || takes(TypeId::of::<PathBuf>()) {
        ["/one", "/two", "/three"]
    } else {
        panic!("--{} has a type without samples: add some, and to Flag::example", flag.name())
    }
}

/// Three join tokens.
fn tokens() -> [&'static str; 3] {
    static TOKENS: LazyLock<[String; 3]> = LazyLock::new(|| {
        ["a", "b", "c"].map(|c| format!("minisvc1.{}.{}.{}", c.repeat(10), c.repeat(64), c.repeat(64)))
    });
    TOKENS.each_ref().map(String::as_str)
}

fn in_file(flag: &Flag, value: &str) -> String {
    match flag.kind() {
        Kind::Text => format!("{} = \"{value}\"\n", flag.name()),
        Kind::List => format!("{} = [\"{value}\", \"{value}-2\"]\n", flag.name()),
        Kind::Number | Kind::Switch => format!("{} = {value}\n", flag.name()),
    }
}

/// Each flag of `server` and `agent`.
fn every(test: impl Fn(&str, &Flag)) {
    let command = command();
    for name in COMMANDS {
        let flags = flags::of(command.find_subcommand(name).unwrap());
        assert!(flags.len() > 4, "{name}: the walk is broken");
        for flag in &flags {
            test(name, flag);
        }
    }
}

#[test]
fn every_flag_can_be_set_in_all_ways_and_the_nearer_one_wins() {
    every(|name, flag| {
        let (long, file) = (flag.name(), format!("{name}.toml"));
        if flag.kind() == Kind::Switch {
            let on = Machine::new().with(&file, &in_file(flag, "true"));
            assert_eq!(Machine::new().values(name, long), ["false"], "--{long}");
            assert_eq!(Machine::new().values(&format!("{name} --{long}"), long), ["true"]);
            assert_eq!(on.values(name, long), ["true"], "--{long}");
            let off = on.set(&flag.variable(), "0");
            assert_eq!(off.values(name, long), ["0"], "--{long}");
            assert_eq!(off.values(&format!("{name} --{long}"), long), ["true"], "--{long}");
            return;
        }
        let [typed, variable, filed] = samples(flag);
        let is_list = flag.kind() == Kind::List;
        let line = format!("{name} --{long}={typed}");
        assert_ne!(Machine::new().values(name, long), [typed], "--{long}: a sample is the default");
        assert_eq!(Machine::new().values(&line, long), [typed], "--{long}");
        let machine = Machine::new().with(&file, &in_file(flag, filed));
        let both = [filed.to_owned(), format!("{filed}-2")];
        assert_eq!(machine.values(name, long), both[..if is_list { 2 } else { 1 }], "--{long}");
        let machine = machine.set(&flag.variable(), variable);
        assert_eq!(machine.values(name, long), [variable], "--{long}");
        assert_eq!(machine.values(&line, long), [typed], "--{long}");
        if is_list {
            let machine = machine.set(&flag.variable(), &format!("{variable},{typed}"));
            assert_eq!(machine.values(name, long), [variable, typed], "--{long} needs value_delimiter = ','");
        }
    });
}

#[test]
fn every_flag_has_its_variable_and_help_says_so() {
    every(|name, flag| {
        assert_eq!(flag.arg.get_env().unwrap(), flag.variable().as_str());
        assert!(!matches!(flag.arg.get_action(), ArgAction::SetTrue | ArgAction::Count), "--{}", flag.name());
        let Err(Fault::Usage(help)) = Machine::new().parse(&format!("{name} --help")) else {
            panic!("no help")
        };
        let help = help.to_string();
        // Without the value where that is a secret.
        let end = if flag.is_secret() { ']' } else { '=' };
        assert!(help.contains(&format!("{}{end}", flag.variable())), "--{}: {help}", flag.name());
        assert!(help.contains("--settings <FILE>") && help.contains("MINISVC_SETTINGS"), "{help}");
    });
    // Other commands have none of it.
    let Err(Fault::Usage(help)) = Machine::new().parse("get --help") else { panic!("no help") };
    assert!(!help.to_string().contains("--settings"));
}

#[test]
fn the_derived_types_get_what_the_layers_give() {
    let machine = Machine::new()
        .with("server.toml", "tls-san = ['a.example', '::1']\npod-cidr = \"10.1.0.0/16\"\n")
        .set("MINISVC_LISTEN", "127.0.0.1:7")
        .set("MINISVC_ADVERTISE", "");
    let (matches, _) = machine.parse("server --data-dir /d").unwrap();
    let crate::args::Command::Server(server) = Args::from_arg_matches(&matches).unwrap().command else {
        panic!()
    };
    let run = server.run;
    assert_eq!(run.tls_san, ["a.example", "::1"]);
    assert_eq!(run.pod_cidr, "10.1.0.0/16".parse().unwrap());
    assert_eq!((run.listen, run.advertise), ("127.0.0.1:7".parse().unwrap(), None));
    assert_eq!(run.data_dir, Some("/d".into()));
}

#[test]
fn the_file_is_the_one_that_is_asked_for() {
    let machine = Machine::new()
        .with("server.toml", "data-dir = '/default'")
        .with("agent.toml", "data-dir = '/agent'")
        .with("by-variable", "data-dir = '/variable'")
        .with("by-flag", "data-dir = '/flag'");
    let at = |name: &str| machine.dir.path().join(name).display().to_string();
    let (by_variable, by_flag) = (at("by-variable"), at("by-flag"));
    assert_eq!(machine.values("server", "data-dir"), ["/default"]);
    assert_eq!(machine.values("agent", "data-dir"), ["/agent"]);
    // What else is known of a server's data counts for its subcommands, too.
    assert_eq!(machine.values("server credentials --admin", "data-dir"), ["/default"]);
    assert_eq!(
        machine.values(&format!("server credentials --admin --settings {by_flag}"), "data-dir"),
        ["/flag"]
    );
    let machine = machine.set("MINISVC_SETTINGS", &by_variable);
    assert_eq!(machine.values("server", "data-dir"), ["/variable"]);
    assert_eq!(machine.values(&format!("server --settings {by_flag}"), "data-dir"), ["/flag"]);
    assert_eq!(machine.values("server --settings /dev/null", "listen"), ["0.0.0.0:7443"]);
    let machine = machine.set("MINISVC_SETTINGS", "/nowhere/x.toml");
    assert_eq!(
        machine.refused("server"),
        "error: MINISVC_SETTINGS /nowhere/x.toml: No such file or directory"
    );
    assert_eq!(machine.refused("agent --settings /no"), "error: --settings /no: No such file or directory");
}

#[test]
fn what_a_file_has_wrong_is_one_line_with_its_place() {
    for (text, says) in [
        ("node-ip = \"x\"", "1: node-ip: \"x\": \"x\" is no IPv4 address, "),
        ("\n\nnode-ip = 5", "3: node-ip: node-ip = \"192.0.2.10\" would be right"),
        ("node-ip = 1.5", "1: node-ip: no setting is a float; node-ip = \"192.0.2.10\" would be right"),
        ("node_ip = \"x\"", "1: node_ip: unknown key; \"node-ip\" would be right"),
        ("run-dri = \"x\"", "1: run-dri: unknown key; \"run-dir\" would be right"),
        ("# x\nlisten = \"x\"", "2: listen: is a setting of `minisvc server`, not of `minisvc agent`"),
        ("settings = \"x\"", "1: settings: unknown key; known are "),
        ("zzz = 1", "1: zzz: unknown key; known are server, "),
        ("[agent]\nnode-ip = \"1.2.3.4\"", "1: agent: unknown key; "),
        ("node-ip =", "1: this is no TOML ("),
    ] {
        let told = Machine::new().with("agent.toml", text).refused("agent");
        assert!(told.starts_with(&format!("error: agent.toml:{says}")), "{text}: {told}");
    }
    for (text, says) in [
        ("tls-san = \"a\"", "1: tls-san: tls-san = [\"TEXT\", ...] would be right"),
        ("tls-san = [1]", "1: tls-san: tls-san = [\"TEXT\", ...] would be right"),
        ("pod-cidr = \"10.0.0.0\"", "1: pod-cidr: \"10.0.0.0\": "),
        ("node-port-range = \"9-8\"", "1: node-port-range: \"9-8\": \"9-8\" is no range"),
    ] {
        let told = Machine::new().with("server.toml", text).refused("server");
        assert!(told.starts_with(&format!("error: server.toml:{says}")), "{text}: {told}");
        // An error in the file is one for the server's subcommands, too.
        assert_eq!(Machine::new().with("server.toml", text).refused("server credentials --admin"), told);
    }
}

#[test]
fn what_a_variable_has_wrong_is_one_line_with_its_name() {
    let machine = Machine::new().set("MINISVC_NODE_IP", "x");
    assert_eq!(
        machine.refused("agent"),
        "error: MINISVC_NODE_IP=\"x\": \"x\" is no IPv4 address, with one of IPv6 after a comma or without; 192.0.2.10 or \
         192.0.2.10,2001:db8::10 would be right"
    );
    // The flag is nearer, and other commands do not look.
    assert_eq!(machine.values("agent --node-ip 192.0.2.9", "node-ip"), ["192.0.2.9"]);
    assert!(machine.parse("get pods").is_ok());
}

#[test]
fn usage_errors_are_those_of_clap() {
    let machine = Machine::new().set("MINISVC_LISTEN", "nonsense");
    for line in ["server --nope", "server --listen x", "nope", "server credentials"] {
        let Err(Fault::Usage(e)) = machine.parse(line) else { panic!("{line} is accepted") };
        assert_eq!(e.exit_code(), 2, "{line}");
    }
}

#[test]
fn a_secret_that_was_typed_wrongly_is_not_repeated() {
    let Err(Fault::Usage(e)) = Machine::new().parse("agent --token s3cret") else { panic!("it is accepted") };
    let told = e.to_string();
    assert!(told.contains("--token") && told.contains("no join token") && !told.contains("s3cret"), "{told}");
    let Err(Fault::Usage(e)) = Machine::new().parse("agent --node-ip s3cret") else {
        panic!("it is accepted")
    };
    assert!(e.to_string().contains("s3cret"), "what is no secret is shown: {e}");
}

/// A command whose flags exclude each other, and that has a secret.
fn joining() -> Command {
    use clap::{Arg, ArgGroup};
    let arg = |name: &'static str| Arg::new(name).long(name);
    let secret = arg("token").hide_env_values(true).conflicts_with("token-file");
    let on = arg("on").action(ArgAction::SetTrue);
    let agent = Command::new("agent")
        .args([secret, arg("token-file"), arg("left"), arg("right"), on])
        .group(ArgGroup::new("side").args(["left", "right"]).multiple(false));
    Command::new("minisvc").subcommand(flags::open(agent))
}

fn layered(machine: &Machine, typed: &[&str]) -> anyhow::Result<(String, Vec<String>)> {
    let argv = ["minisvc", "agent"].iter().chain(typed);
    let typed = bare(joining()).try_get_matches_from(argv).unwrap();
    let mut warnings = Vec::new();
    let env = |name: &str| machine.env.get(name).cloned();
    let around = Surroundings { env: &env, dir: machine.dir.path() };
    let typed = typed.subcommand().unwrap().1;
    let values = layers(&joining(), "agent", typed, &around, &mut warnings)?;
    let values: Vec<_> = values
        .into_iter()
        .map(|(k, v)| format!("{k}={}", v.join(std::ffi::OsStr::new(",")).display()))
        .collect();
    Ok((values.join(" "), warnings))
}

#[test]
fn what_a_nearer_layer_excludes_is_left_out_and_one_layer_must_agree_with_itself() {
    let file = |text: &str| Machine::new().with("agent.toml", text);
    let both = file("token = 'a'\nleft = 'l'\n").set("MINISVC_RIGHT", "r");
    assert_eq!(layered(&both, &["--token-file", "f"]).unwrap().0, "right=r");
    assert_eq!(layered(&both, &["--left", "f"]).unwrap().0, "token=a");
    let variable = file("token = 'a'").set("MINISVC_TOKEN_FILE", "f");
    assert_eq!(layered(&variable, &[]).unwrap().0, "token-file=f");
    assert_eq!(layered(&variable, &["--token", "t"]).unwrap().0, "");
    let line = |machine: &Machine| format!("{:#}", layered(machine, &[]).unwrap_err());
    let told = line(&file("token = 'a'\ntoken-file = 'f'\n"));
    assert!(
        told.ends_with("agent.toml:2: token-file: cannot stand beside token: one of both would be right"),
        "{told}"
    );
    let variables = Machine::new().set("MINISVC_LEFT", "l").set("MINISVC_RIGHT", "r");
    assert_eq!(
        line(&variables),
        "MINISVC_RIGHT: cannot stand beside MINISVC_LEFT: one of both would be right"
    );
    let told = line(&file("on = 'x'"));
    assert!(told.ends_with(":1: on: on = false would be right"), "{told}");
    assert_eq!(
        line(&Machine::new().set("MINISVC_ON", "2")),
        "MINISVC_ON=\"2\": true or false would be right"
    );
}

#[test]
fn a_secret_that_others_can_read_is_warned_of() {
    let machine = Machine::new().with("agent.toml", "token = 'a'");
    let path = machine.dir.path().join("agent.toml");
    assert_eq!(layered(&machine, &[]).unwrap().1, [""; 0]);
    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = layered(&machine, &[]).unwrap().1;
        assert!(warnings[0].ends_with(&format!("chmod 600 {}", path.display())), "{warnings:?}");
    }
    // Without a secret the file is nobody's worry.
    fs::write(&path, "left = 'l'").unwrap();
    assert_eq!(layered(&machine, &[]).unwrap().1, [""; 0]);
}

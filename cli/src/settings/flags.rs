//! What clap knows of a command's flags, and the values that they take.

use std::{
    any::TypeId,
    ffi::{OsStr, OsString},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{anyhow, bail};
use clap::{Arg, ArgAction, Command, builder::BoolishValueParser, error::ContextKind, error::ContextValue};

use super::file::Value;

/// The flag that names the file. No key of the file itself.
pub const SETTINGS: &str = "settings";
/// The variable of [`SETTINGS`].
pub const SETTINGS_VARIABLE: &str = "MINISVC_SETTINGS";

const PREFIX: &str = "MINISVC_";

/// One flag that can be set in all ways.
pub struct Flag {
    /// As clap knows it.
    pub arg: Arg,
}

/// What a flag takes, and how that is written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    Switch,
    List,
}

/// Opens a command to environment and file: `--settings`, a variable for each flag, and switches that can be taken back.
pub fn open(command: Command) -> Command {
    let name = command.get_name().to_owned();
    let settings = Arg::new(SETTINGS)
        .long(SETTINGS)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .env(SETTINGS_VARIABLE)
        .global(true)
        .help(format!(
            "TOML file whose keys are the long names of flags [default: /etc/minisvc/{name}.toml if it is there]"
        ));
    command
        .mut_args(|arg| {
            let Some(variable) = arg.get_long().map(variable) else { return arg };
            match arg.get_action() {
                ArgAction::SetTrue => switch(arg).env(variable),
                _ => arg.env(variable),
            }
        })
        .arg(settings)
        .after_help("A flag beats its variable, and a variable the file.")
}

/// `--x` and `--x=false`: what a file switches on can be switched off.
fn switch(arg: Arg) -> Arg {
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name("BOOL")
        .value_parser(BoolishValueParser::new())
        .default_missing_value("true")
        .default_value("false")
        .hide_default_value(true)
        .hide_possible_values(true)
}

/// The flags of a command that [`open`] opened.
pub fn of(command: &Command) -> Vec<Flag> {
    let own = |a: &&Arg| a.get_long().is_some_and(|l| l != SETTINGS) && !a.is_global_set();
    command.get_arguments().filter(own).map(|arg| Flag { arg: arg.clone() }).collect()
}

fn variable(long: &str) -> String {
    format!("{PREFIX}{}", long.replace('-', "_").to_uppercase())
}

/// Whether two flags of a command cannot be given together.
pub fn exclude(command: &Command, one: &Flag, other: &Flag) -> bool {
    let names = |a: &Flag, b: &Flag| {
        command.get_arg_conflicts_with(&a.arg).iter().any(|c| c.get_id() == b.arg.get_id())
    };
    let ids = [one.arg.get_id(), other.arg.get_id()];
    let in_group = command.get_groups().any(|group| {
        let members: Vec<_> = group.get_args().collect();
        !group.clone().is_multiple() && ids.iter().all(|id| members.contains(id))
    });
    one.name() != other.name() && (names(one, other) || names(other, one) || in_group)
}

impl Flag {
    /// The long name, which is the key in a file.
    pub fn name(&self) -> &str {
        self.arg.get_long().unwrap_or_default()
    }

    /// The variable.
    pub fn variable(&self) -> String {
        variable(self.name())
    }

    /// Whether its value is nobody else's business.
    pub fn is_secret(&self) -> bool {
        self.arg.is_hide_env_values_set()
    }

    /// What it takes.
    pub fn kind(&self) -> Kind {
        match self.arg.get_action() {
            ArgAction::Append => Kind::List,
            _ => self.one_kind(),
        }
    }

    fn takes<T: 'static>(&self) -> bool {
        self.arg.get_value_parser().type_id() == TypeId::of::<T>()
    }

    /// Of one value, where it takes many.
    fn one_kind(&self) -> Kind {
        if self.takes::<bool>() {
            return Kind::Switch;
        }
        let number = self.takes::<u8>()
            || self.takes::<u16>()
            || self.takes::<u32>()
            || self.takes::<u64>()
            || self.takes::<usize>();
        if number { Kind::Number } else { Kind::Text }
    }

    /// Whether its value is an address, or one of each family: that type is known to Linux alone, and so is the flag.
    fn takes_addresses(&self) -> bool {
        self.arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.starts_with("IP[")))
    }

    /// A value that would be right; nothing where that cannot be told.
    pub fn example(&self) -> Option<String> {
        if let Some(default) = self.arg.get_default_values().first() {
            return Some(default.to_string_lossy().into_owned());
        }
        let example = match () {
            () if self.takes::<Ipv4Addr>() || self.takes::<IpAddr>() || self.takes_addresses() => {
                "192.0.2.10"
            }
            () if self.takes::<SocketAddr>() => "0.0.0.0:7443",
            () if self.takes::<Duration>() => "24h",
            () if self.one_kind() == Kind::Number => "8080",
            () if self.one_kind() == Kind::Switch => "true",
            () => return None,
        };
        Some(example.to_owned())
    }

    /// The values that an entry of a file gives.
    pub fn of_entry(&self, command: &Command, value: &Value) -> anyhow::Result<Vec<OsString>> {
        let wrong = || anyhow!("{} would be right", self.form());
        let one = |value: &Value| {
            let text = match (self.one_kind(), value) {
                (Kind::Text, Value::Text(s)) | (Kind::Number, Value::Number(s)) => s.clone(),
                (Kind::Switch, Value::Switch(b)) => b.to_string(),
                (_, Value::Other(kind)) => bail!("no setting is a {kind}; {}", wrong()),
                _ => return Err(wrong()),
            };
            let said = |e: anyhow::Error| if self.is_secret() { e } else { e.context(format!("\"{text}\"")) };
            self.check(command, OsStr::new(&text)).map_err(said)?;
            Ok(OsString::from(text))
        };
        match (self.kind(), value) {
            (Kind::List, Value::List(all)) => all.iter().map(one).collect(),
            (Kind::List, _) => Err(wrong()),
            _ => Ok(vec![one(value)?]),
        }
    }

    /// How the key is written in a file.
    fn form(&self) -> String {
        let quoted = |text: String| format!("\"{text}\"");
        let one = match (self.one_kind(), self.example()) {
            (Kind::Text, example) => quoted(example.unwrap_or_else(|| "TEXT".into())),
            (_, example) => example.unwrap_or_default(),
        };
        match self.kind() {
            Kind::List => format!("{} = [{one}, ...]", self.name()),
            _ => format!("{} = {one}", self.name()),
        }
    }

    /// Has the command parse nothing but this flag with this value; an error says why it does not.
    pub fn check(&self, command: &Command, value: &OsStr) -> anyhow::Result<()> {
        let lone = command.clone().mut_args(|arg| arg.env(None).required(false));
        let mut flag = OsString::from(format!("--{}=", self.name()));
        flag.push(value);
        let Err(error) = lone.try_get_matches_from([OsStr::new("minisvc"), &flag]) else { return Ok(()) };
        if self.one_kind() == Kind::Switch {
            bail!("true or false would be right");
        }
        let why = match (std::error::Error::source(&error), error.get(ContextKind::ValidValue)) {
            (Some(why), _) => why.to_string(),
            (None, Some(ContextValue::Strings(valid))) if !valid.is_empty() => {
                bail!("one of {} would be right", valid.join(", "))
            }
            _ if value.is_empty() => "nothing stands there".to_owned(),
            _ => {
                error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
            }
        };
        match self.example().filter(|_| !why.contains("would be right")) {
            Some(example) => bail!("{why}; {example} would be right"),
            None => bail!("{why}"),
        }
    }
}

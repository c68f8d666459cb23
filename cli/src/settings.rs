//! Where the flags of `server` and `agent` get their values: the command line, else the environment, else a file, else the
//! default. All of it follows from what clap knows of the flags, so that a new flag needs nothing here.
//!
//! What a lower layer gives becomes the default of the command that is parsed in the end; what a higher layer excludes
//! (`--token` beside a `token-file` in the file) is left out.

mod file;
mod flags;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{
    ArgMatches, Command, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};

use self::flags::{Flag, SETTINGS, SETTINGS_VARIABLE};
use crate::args::Args;

/// The commands that can be set by environment and file.
const COMMANDS: [&str; 2] = ["server", "agent"];

/// What a process finds around it.
pub struct Surroundings<'s> {
    /// The value of a variable.
    pub env: &'s dyn Fn(&str) -> Option<OsString>,
    /// Holds `server.toml` and `agent.toml`.
    pub dir: &'s Path,
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Fault {
    /// A usage error, or a wish for help: clap has the words.
    Usage(clap::Error),
    /// Environment or file hold what cannot be used.
    Settings(anyhow::Error),
}

/// What is to run, and what should be said before.
pub struct Parsed {
    /// The whole command line.
    pub args: Args,
    /// Lines for the user.
    pub warnings: Vec<String>,
}

/// Parses a command line, program name included.
pub fn parse(argv: &[OsString], around: &Surroundings) -> Result<Parsed, Fault> {
    let (matches, warnings) = matches(argv, around)?;
    let args = Args::from_arg_matches(&matches).map_err(Fault::Usage)?;
    Ok(Parsed { args, warnings })
}

/// Without what was typed for a flag that takes a secret: most of it may be right, and what a command says ends up in logs.
fn without_secret(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    let name = flag.split(' ').next().unwrap_or_default().trim_start_matches("--");
    let command = command();
    let mut all = command.get_subcommands().flat_map(Command::get_arguments);
    if all.any(|arg| arg.get_long() == Some(name) && arg.is_hide_env_values_set()) {
        error.insert(ContextKind::InvalidValue, ContextValue::String("...".into()));
    }
    error
}

/// [`parse`], before the values have types.
fn matches(argv: &[OsString], around: &Surroundings) -> Result<(ArgMatches, Vec<String>), Fault> {
    layered_matches(argv, around).map_err(|fault| match fault {
        Fault::Usage(error) => Fault::Usage(without_secret(error)),
        Fault::Settings(error) => Fault::Settings(error),
    })
}

fn layered_matches(argv: &[OsString], around: &Surroundings) -> Result<(ArgMatches, Vec<String>), Fault> {
    let command = command();
    // What the user typed, and nothing else. If that does not pass, the errors of the command as it is are the ones to show.
    let Ok(typed) = bare(command.clone()).try_get_matches_from(argv) else {
        return command.try_get_matches_from(argv).map(|m| (m, Vec::new())).map_err(Fault::Usage);
    };
    let Some((name, typed)) = typed.subcommand().filter(|(name, _)| COMMANDS.contains(name)) else {
        return command.try_get_matches_from(argv).map(|m| (m, Vec::new())).map_err(Fault::Usage);
    };
    let mut warnings = Vec::new();
    let values = layers(&command, name, typed, around, &mut warnings).map_err(Fault::Settings)?;
    let fill = |c: Command| {
        c.mut_args(|arg| match values.get(arg.get_long().unwrap_or_default()) {
            Some(values) => arg.env(None).default_values(values),
            None => arg.env(None),
        })
    };
    let filled =
        command.mut_subcommands(|c| if c.get_name() == name { fill(c.mut_subcommands(fill)) } else { c });
    filled.try_get_matches_from(argv).map(|m| (m, warnings)).map_err(Fault::Usage)
}

/// The whole command line, with what `server` and `agent` have in common.
fn command() -> Command {
    Args::command().mut_subcommands(|c| if COMMANDS.contains(&c.get_name()) { flags::open(c) } else { c })
}

/// Without the environment, and without anything that must be there.
fn bare(command: Command) -> Command {
    let strip = |c: Command| c.mut_args(|arg| arg.env(None).required(false));
    command.mut_subcommands(|c| {
        if COMMANDS.contains(&c.get_name()) { strip(c.mut_subcommands(strip)) } else { c }
    })
}

/// What environment and file give to the flags of a command that the user did not give, by the flag's name.
fn layers(
    command: &Command,
    name: &str,
    typed: &ArgMatches,
    around: &Surroundings,
    warnings: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<String, Vec<OsString>>> {
    let all: Vec<_> = command.get_subcommands().filter(|c| COMMANDS.contains(&c.get_name())).collect();
    let this = all.iter().find(|c| c.get_name() == name).context("no such command")?;
    let flags = flags::of(this);
    // `server backup` and its like take the settings of the server that they know, too.
    let (leaf, typed) = match typed.subcommand() {
        Some((sub, typed)) => (this.find_subcommand(sub).context("no such command")?, typed),
        None => (*this, typed),
    };
    let by_user = |id: &str| {
        typed.try_contains_id(id).is_ok() && typed.value_source(id) == Some(ValueSource::CommandLine)
    };
    let taken = |flag: &Flag| leaf.get_arguments().any(|a| a.get_long() == Some(flag.name()));
    let mut given: Vec<(&Flag, String)> = flags
        .iter()
        .filter(|f| by_user(f.arg.get_id().as_str()))
        .map(|f| (f, format!("--{}", f.name())))
        .collect();
    let mut values = BTreeMap::new();

    let set = |name: &str| (around.env)(name).filter(|v| !v.is_empty());
    let higher = given.len();
    for flag in flags.iter().filter(|f| taken(f)) {
        let Some(value) = set(&flag.variable()).filter(|_| !excluded(this, flag, &given[..higher])) else {
            continue;
        };
        let variable = flag.variable();
        let shown =
            if flag.is_secret() { String::new() } else { format!("=\"{}\"", value.to_string_lossy()) };
        flag.check(this, &value).with_context(|| format!("{variable}{shown}"))?;
        alone(this, flag, &given[higher..]).with_context(|| variable.clone())?;
        given.push((flag, variable));
        values.insert(flag.name().to_owned(), vec![value]);
    }

    let Some((path, text)) = find(name, typed, &set, around.dir, warnings)? else { return Ok(values) };
    let higher = given.len();
    let mut holds_secrets = false;
    for entry in file::read(&text).map_err(|fault| anyhow!("{}:{fault}", path.display()))? {
        let place = || format!("{}:{}: {}", path.display(), entry.line, entry.key);
        let Some(flag) = flags.iter().find(|f| f.name() == entry.key) else {
            return Err(unknown(&entry.key, name, &flags, &all)).with_context(place);
        };
        holds_secrets |= flag.is_secret();
        let found = flag.of_entry(this, &entry.value).with_context(place)?;
        if !taken(flag) || excluded(this, flag, &given[..higher]) {
            continue;
        }
        alone(this, flag, &given[higher..]).with_context(place)?;
        given.push((flag, entry.key.clone()));
        values.insert(entry.key, found);
    }
    if holds_secrets && others_read(&path) {
        let path = path.display();
        warnings.push(format!("warning: {path} holds a secret and others can read it: chmod 600 {path}"));
    }
    Ok(values)
}

/// Whether a value of a higher layer stands in this flag's place, or in place of one that cannot be beside it.
fn excluded(command: &Command, flag: &Flag, higher: &[(&Flag, String)]) -> bool {
    higher.iter().any(|(other, _)| other.name() == flag.name() || flags::exclude(command, flag, other))
}

/// An error if the same layer has what cannot be beside this flag.
fn alone(command: &Command, flag: &Flag, same: &[(&Flag, String)]) -> anyhow::Result<()> {
    match same.iter().find(|(other, _)| flags::exclude(command, flag, other)) {
        Some((_, other)) => bail!("cannot stand beside {other}: one of both would be right"),
        None => Ok(()),
    }
}

/// The settings file and what is in it. One that was not asked for need not be there.
fn find(
    name: &str,
    typed: &ArgMatches,
    set: &dyn Fn(&str) -> Option<OsString>,
    dir: &Path,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Option<(PathBuf, String)>> {
    let flag = typed.get_one::<PathBuf>(SETTINGS).cloned();
    let asked = match flag {
        Some(path) => Some((path, format!("--{SETTINGS}"))),
        None => set(SETTINGS_VARIABLE).map(|v| (PathBuf::from(v), SETTINGS_VARIABLE.to_owned())),
    };
    let (path, from) = match asked {
        Some((path, from)) => (path, Some(from)),
        None => (dir.join(format!("{name}.toml")), None),
    };
    match (fs::read_to_string(&path), from) {
        (Ok(text), _) => Ok(Some((path, text))),
        (Err(e), None) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(e), None) if e.kind() == io::ErrorKind::PermissionDenied => {
            warnings.push(format!("warning: {} is left out: {e}", path.display()));
            Ok(None)
        }
        (Err(e), None) => Err(e).context(path.display().to_string()),
        (Err(e), Some(from)) => Err(e).context(format!("{from} {}", path.display())),
    }
}

/// Says which key was meant, where that can be told.
fn unknown(key: &str, name: &str, flags: &[Flag], all: &[&Command]) -> anyhow::Error {
    let other = all.iter().find(|c| c.get_name() != name && flags::of(c).iter().any(|f| f.name() == key));
    if let Some(other) = other {
        return anyhow!("is a setting of `minisvc {}`, not of `minisvc {name}`", other.get_name());
    }
    let near = |f: &&Flag| strsim::jaro_winkler(&key.replace('_', "-").to_lowercase(), f.name());
    let nearest = flags.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
    if let Some(flag) = nearest.filter(|f| near(f) > 0.8) {
        return anyhow!("unknown key; \"{}\" would be right", flag.name());
    }
    let known: Vec<_> = flags.iter().map(Flag::name).collect();
    anyhow!("unknown key; known are {}", known.join(", "))
}

fn others_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    // A pipe or a socket is read once, by us.
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o044 != 0)
}

#[cfg(test)]
mod tests;

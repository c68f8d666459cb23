//! Whether rules of others drop our traffic, and what helps: values in, values out.

use std::{collections::BTreeMap, fmt};

use super::{
    evaluate::{Fate, Place, fate, may_apply},
    packet::State,
    remedy::{DOCKER_USER, Remedy, passes},
    ruleset::{Base, Chain, Expr, Family, Hook, Rule, Ruleset, Table},
    traffic::{Ours, Step, Traffic},
};

/// A base chain of others that drops traffic of ours, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The base chain.
    pub chain: String,
    /// Its hook.
    pub hook: Hook,
    /// Where the first packet was dropped.
    pub place: Place,
    /// What of our traffic.
    pub traffic: Vec<Traffic>,
    /// The rules that let it through.
    pub remedy: Remedy,
    /// What to type for that.
    pub commands: Vec<String>,
}

/// What is to be said of a ruleset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Certainly dropped.
    pub blocked: Vec<Blocker>,
    /// Perhaps dropped: a rule depends on what cannot be seen in the rules.
    pub unclear: Vec<Blocker>,
    /// Tables of iptables-legacy, which cannot be looked into.
    pub legacy: Vec<String>,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocker { family, table, chain, .. } = self;
        let kinds: Vec<_> = self.traffic.iter().map(ToString::to_string).collect();
        write!(f, "table {} {table}, chain {chain}", family.name())?;
        match &self.place {
            Place::Policy => f.write_str(" (policy drop)")?,
            Place::Rule { chain, handle } if *chain == self.chain => write!(f, " (rule {handle})")?,
            Place::Rule { chain, handle } => write!(f, " (rule {handle} of {chain})")?,
        }
        write!(f, " drops {}; run: {}", kinds.join(", "), self.commands.join(" && "))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sentences: Vec<String> = self.blocked.iter().map(ToString::to_string).collect();
        sentences.extend(self.unclear.iter().map(|b| format!("it cannot be told whether {}", if_dropped(b))));
        if !self.legacy.is_empty() {
            sentences.push(format!(
                "rules of iptables-legacy (tables {}) cannot be looked into; see `iptables-legacy-save`",
                self.legacy.join(", ")
            ));
        }
        if sentences.is_empty() {
            return f.write_str("no rule of others drops this cluster's traffic");
        }
        f.write_str(&sentences.join(". "))
    }
}

fn if_dropped(blocker: &Blocker) -> String {
    blocker.to_string().replacen("; run: ", "; if it does, run: ", 1)
}

/// Sends our traffic through the rules of others.
pub fn judge(rules: &Ruleset, ours: &Ours) -> Judgement {
    let writers = mark_writers(rules);
    // What somebody may have marked may carry any mark.
    let may_be_marked = |step: &Step| writers.iter().any(|(t, r)| may_apply(t, r, &step.packet));
    let steps: Vec<(Step, bool)> = ours.steps().into_iter().map(|s| (s.clone(), may_be_marked(&s))).collect();
    let iptables = if rules.legacy.is_empty() { "iptables" } else { "iptables-nft" };
    let mut judgement = Judgement { legacy: rules.legacy.clone(), ..Judgement::default() };
    for table in &rules.tables {
        for chain in &table.chains {
            let Some(base) = &chain.base else { continue };
            let fates = fates(table, chain, base, &steps);
            let certain = fates.iter().any(|(_, f)| matches!(f, Fate::Dropped(_)));
            let mut traffic: BTreeMap<Traffic, Place> = BTreeMap::new();
            for (kind, fate) in fates {
                match fate {
                    Fate::Dropped(place) => drop(traffic.entry(kind).or_insert(place)),
                    Fate::Unclear(place) if !certain => drop(traffic.entry(kind).or_insert(place)),
                    _ => {}
                }
            }
            let Some(place) = traffic.values().next().cloned() else { continue };
            let kinds: Vec<Traffic> = traffic.into_keys().collect();
            let remedy = remedy(table, chain, base, ours, &kinds, &steps);
            let commands = remedy.commands(table, base.hook, ours, iptables);
            let blocker = Blocker {
                family: table.family,
                table: table.name.clone(),
                chain: chain.name.clone(),
                hook: base.hook,
                place,
                traffic: kinds,
                remedy,
                commands,
            };
            if certain { judgement.blocked.push(blocker) } else { judgement.unclear.push(blocker) }
        }
    }
    judgement
}

fn fates(table: &Table, chain: &Chain, base: &Base, steps: &[(Step, bool)]) -> Vec<(Traffic, Fate)> {
    let here = steps.iter().filter(|(step, _)| step.hook == base.hook);
    // Answers and later packets never come to a chain of type nat.
    let seen = here.filter(|(step, _)| !base.is_nat || step.packet.state == State::New);
    seen.map(|(step, marks)| (step.traffic, fate(table, chain, base, &step.packet, *marks))).collect()
}

/// Docker leaves a chain to its users, and puts it before its own rules; where that helps it is the better place.
fn remedy(
    table: &Table,
    chain: &Chain,
    base: &Base,
    ours: &Ours,
    kinds: &[Traffic],
    steps: &[(Step, bool)],
) -> Remedy {
    let passes = passes(ours, base.hook, kinds);
    let remedy = |chain: &str| Remedy {
        family: table.family,
        table: table.name.clone(),
        chain: chain.to_owned(),
        passes: passes.clone(),
    };
    let mut changed = table.clone();
    let Some(user) = changed.chains.iter_mut().find(|c| c.name == DOCKER_USER && c.base.is_none()) else {
        return remedy(&chain.name);
    };
    user.rules.splice(0..0, passes.iter().map(|pass| pass.rule(table.family)));
    let passed = |(kind, fate): (Traffic, Fate)| !kinds.contains(&kind) || fate == Fate::Accepted;
    let helps = fates(&changed, chain, base, steps).into_iter().all(passed);
    remedy(if helps { DOCKER_USER } else { &chain.name })
}

/// The rules that write packet marks.
fn mark_writers(rules: &Ruleset) -> Vec<(&Table, &Rule)> {
    let writes = |e: &Expr| match e {
        Expr::SetMark => true,
        Expr::Target { name } => name == "MARK" || name == "CONNMARK",
        _ => false,
    };
    let mut found = Vec::new();
    for table in &rules.tables {
        let of = table.chains.iter().flat_map(|chain| &chain.rules);
        found.extend(of.filter(|rule| rule.expressions.iter().any(writes)).map(|rule| (table, rule)));
    }
    found
}

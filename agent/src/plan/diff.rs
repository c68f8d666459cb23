//! What makes one state of the elements of another, in an order in which every prefix is safe: a transaction that is too large is sent
//! as several.

use std::{cmp::Ordering, collections::BTreeSet, net::IpAddr};

use super::{
    Proto,
    elements::{Elements, Id, Key, Op, Value},
};

type Element<'e> = (&'e Key, &'e Value);

/// What makes `to` of `from`: deletes in the opposite order of keys, so that a key that changes hands is free when it is added, then adds
/// in their order. What leads to others goes first and comes last, also where it stays and only what it leads to changes: at no prefix
/// does an address lead to a slot that is not there, to endpoints of before and after at once, or somebody to endpoints to which neither
/// state leads him.
pub fn diff(from: &Elements, to: &Elements) -> Vec<Op> {
    between(&from.iter().collect::<Vec<_>>(), &to.iter().collect::<Vec<_>>())
}

/// The same of elements in the order of their keys.
pub(super) fn between(from: &[Element<'_>], to: &[Element<'_>]) -> Vec<Op> {
    let (mut gone, mut new, mut leading) = (Vec::new(), Vec::new(), Vec::new());
    let (mut from, mut to) = (from.iter().peekable(), to.iter().peekable());
    loop {
        let order = match (from.peek(), to.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let before = from.next_if(|_| order.is_le()).copied();
        let after = to.next_if(|_| order.is_ge()).copied();
        match (before, after) {
            (Some(same), Some((_, value))) if same.1 == value => {
                if place(same.0).is_some() {
                    leading.push(same);
                }
            }
            (before, after) => {
                gone.extend(before);
                new.extend(after);
            }
        }
    }
    let shaken: BTreeSet<Id> = gone.iter().filter_map(|(key, _)| group(key)).collect();
    let leads_to_shaken =
        |(_, value): &Element<'_>| matches!(value, Value::Port { id, slots: 1.., .. } if shaken.contains(id));
    let (mut moved, rest): (Vec<Element<'_>>, Vec<_>) = leading.into_iter().partition(leads_to_shaken);
    let changed = gone.iter().chain(&new).chain(&moved).map(|(key, _)| *key);
    let gates: BTreeSet<Place> = changed.filter(|key| is_gate(key)).filter_map(place).collect();
    moved.extend(rest.into_iter().filter(|(key, _)| {
        !is_gate(key) && !gates.is_empty() && place(key).is_some_and(|place| gates.contains(&place))
    }));
    gone.extend(&moved);
    new.extend(&moved);
    gone.sort_unstable_by(|a, b| b.0.cmp(a.0));
    new.sort_unstable_by(|a, b| a.0.cmp(b.0));
    let deletes = gone.into_iter().map(|(key, _)| Op::Delete(key.clone()));
    deletes.chain(new.into_iter().map(|(key, value)| Op::Add(key.clone(), *value))).collect()
}

/// Where a packet is sent to; without an address: any of the node's.
type Place = (Option<IpAddr>, Proto, u16);

fn place(key: &Key) -> Option<Place> {
    match key {
        Key::Allowed(ip, proto, port, _)
        | Key::Guarded(ip, proto, port)
        | Key::OutsideService(ip, proto, port)
        | Key::Service(ip, proto, port) => Some((Some(*ip), *proto, *port)),
        Key::OutsideNodePort(proto, port) | Key::NodePort(proto, port) => Some((None, *proto, *port)),
        _ => None,
    }
}

/// Decides who gets as far as the address.
fn is_gate(key: &Key) -> bool {
    matches!(key, Key::Allowed(..) | Key::Guarded(..) | Key::OutsideService(..) | Key::OutsideNodePort(..))
}

fn group(key: &Key) -> Option<Id> {
    match key {
        Key::Slot(id, _) | Key::Choice(id, _) | Key::Endpoint(id, _) => Some(*id),
        _ => None,
    }
}

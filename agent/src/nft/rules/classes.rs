//! What happens to a connection once its service port is known: a chain for every class, and the way there.

use super::{
    super::{
        batch::Batch,
        class::Class,
        expr::{
            Expressions, R, clear_mark, cmp, dnat, drop_packet, dynamic, jump, l4proto, lookup, mark, mask,
            random, reject, saddr, set_mark,
        },
    },
    LOW, TCP,
};

/// Leaves the id in the mark.
fn id_only(v: &mut Expressions, reg: u32) {
    mark(v, reg);
    mask(v, reg, &(!LOW).to_ne_bytes());
}

/// The chain for a class, and its way into the verdict map.
pub(in super::super) fn class_chain(batch: &mut Batch, class: Class) {
    let name = class.chain();
    batch.chain(&name, None);
    match class {
        Class::Reject => {
            batch.rule(&name, clear_mark);
            batch.rule(&name, |v| {
                l4proto(v, R);
                cmp(v, R, true, &[TCP]);
                reject(v, true);
            });
            batch.rule(&name, |v| reject(v, false));
        }
        Class::Drop => batch.rule(&name, lost),
        Class::Plain(slots) => {
            batch.rule(&name, |v| {
                id_only(v, R);
                random(v, R + 1, slots);
                dnat(v, "ep");
            });
            batch.rule(&name, lost);
        }
        Class::Sticky(slots, seconds) => {
            batch.rule(&name, |v| {
                id_only(v, R);
                set_mark(v, R);
            });
            // A known client: its time starts anew. An element that is there keeps its value whatever the data says.
            batch.rule(&name, |v| {
                mark(v, R);
                let next = saddr(v, R + 1);
                lookup(v, "clients", R, Some(next), false);
                mark(v, next + 1);
                dynamic(v, 1, "clients", R, next + 1, seconds);
                set_mark(v, next);
                jump(v, "sticky");
            });
            batch.rule(&name, |v| {
                mark(v, R);
                random(v, R + 1, slots);
                lookup(v, "choice", R, Some(R + 2), false);
                set_mark(v, R + 2);
            });
            batch.rule(&name, |v| {
                id_only(v, R);
                let next = saddr(v, R + 1);
                mark(v, next);
                dynamic(v, 1, "clients", R, next, seconds);
            });
            batch.rule(&name, |v| {
                mark(v, R);
                dnat(v, "sticky_ep");
            });
            batch.rule(&name, lost);
        }
    }
    if let Some(number) = class.fixed_number() {
        batch.class_element(number, &name);
    }
}

/// Nobody serves it: local endpoints are asked for and there is none, or a slot leads nowhere (never, while every batch is whole).
pub(super) fn lost(v: &mut Expressions) {
    clear_mark(v);
    drop_packet(v);
}

/// The chains of the classes that every table has, and `dispatch`, which finds a mark's class.
pub(super) fn write(batch: &mut Batch) {
    batch.chain("sticky", None);
    batch.rule("sticky", |v| {
        mark(v, R);
        dnat(v, "sticky_ep");
    });
    // The client's endpoint is gone: forget it, and go back for a fresh choice.
    batch.rule("sticky", |v| {
        id_only(v, R);
        set_mark(v, R);
    });
    batch.rule("sticky", |v| {
        mark(v, R);
        let next = saddr(v, R + 1);
        mark(v, next);
        dynamic(v, 2, "clients", R, next, 0);
    });
    for class in Class::fixed() {
        class_chain(batch, class);
    }

    batch.chain("dispatch", None);
    batch.rule("dispatch", |v| {
        mark(v, R);
        mask(v, R, &LOW.to_ne_bytes());
        lookup(v, "class", R, Some(0), false);
    });
    batch.rule("dispatch", lost);
}

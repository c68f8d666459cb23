//! sled panics on some kinds of damage. What is caught here is told as an error, so it is not printed as well.

use std::{
    cell::Cell,
    panic::{UnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What the work returns, or `None` if it panics.
pub fn caught<T>(work: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                print(info);
            }
        }));
    });
    let before = CAUGHT.replace(true);
    let result = catch_unwind(work).ok();
    CAUGHT.set(before);
    result
}

//! Panics that are an outcome and no defect: of libraries that are handed strangers' data.
//!
//! Owns turning them into errors, and keeping them from being reported as if the program had failed.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs code that may panic; returns the panic's message then. What it works on must not be used any more after a
/// panic that leaves it half-changed.
pub(crate) fn contained<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    silence();
    let was_contained = IS_CONTAINED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(run));
    IS_CONTAINED.set(was_contained);
    outcome.map_err(|panic| message(panic.as_ref()).unwrap_or("no reason given").to_owned())
}

fn message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied())
}

/// Keeps contained panics from being reported; others are unchanged.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_CONTAINED.get() {
                report(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message_and_the_next_thing_runs() {
        assert_eq!(contained(|| -> () { panic!("at {}", 7) }), Err("at 7".to_owned()));
        assert_eq!(contained(|| -> () { panic!("plain") }), Err("plain".to_owned()));
        assert_eq!(contained(|| contained(|| -> () { panic!("inner") }).is_err()), Ok(true));
        assert_eq!(contained(|| 1), Ok(1));
    }
}

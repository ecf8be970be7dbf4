//! Templates that somebody else wrote, run within limits.
//!
//! Owns what any template is kept from: making more text than its fuel pays for, holding itself, running for longer
//! than is waited, and overflowing the stack. What templates see, and what is done with their text, is their callers'
//! business.

mod concatenations;
mod namespaces;
mod tags;
mod texts;
mod tokens;

use std::time::Duration;

use minijinja::Environment;

pub(crate) use self::texts::{ensure_fits, ensure_method_fits, ensure_shown_fits};
use crate::deep::{KEPT_STACK_BYTES, NotDone, on_deep_stack};

/// Lists nested by a template are freed by recursion, on the stack; a unit of fuel buys at most
/// one level, for which about 50 bytes were measured. Only what is used takes memory.
const STACK_BYTES_PER_FUEL: u64 = 96;
const BASE_STACK_BYTES: usize = 4 << 20;
/// What compiling takes: a byte of an operator may be a level of an expression.
const STACK_BYTES_PER_TEMPLATE_BYTE: usize = 1 << 10;

/// What a kept thread has the stack for, which is enough for nearly all.
pub(crate) const KEPT_FUEL: u64 = (KEPT_STACK_BYTES - BASE_STACK_BYTES) as u64 / STACK_BYTES_PER_FUEL;

/// An environment that lets no template make more text than its fuel pays for. What it is told afterwards is its
/// caller's to limit.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    texts::add_to(&mut environment);
    concatenations::add_to(&mut environment);
    namespaces::add_to(&mut environment);
    // It prints all variables, and no template that was written for Python has it.
    environment.remove_global("debug");
    environment
}

/// A template's source in the form in which that environment has a say in all that it computes.
pub(crate) fn guarded(source: &str) -> String {
    namespaces::checked(&concatenations::joined(source))
}

/// Whether a template reads a variable of its own, and not what [`guarded`] has put there.
pub(crate) fn is_own_variable(name: &str) -> bool {
    ![concatenations::JOINED, concatenations::CHECKED, namespaces::CHECK].contains(&name)
}

/// Compiles templates of so many bytes on a stack that is deep enough.
pub(crate) fn compile<T: Send + 'static>(
    num_bytes: usize,
    patience: Duration,
    fingerprint: u64,
    compile: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    on_deep_stack(
        BASE_STACK_BYTES + num_bytes * STACK_BYTES_PER_TEMPLATE_BYTE,
        patience,
        fingerprint,
        compile,
    )
}

/// Renders with so much fuel, on a stack that is deep enough for it. What holds values has to be freed in there.
pub(crate) fn render<T: Send + 'static>(
    environment: &Environment<'static>,
    fuel: u64,
    patience: Duration,
    fingerprint: u64,
    render: impl FnOnce(&Environment<'static>) -> T + Send + 'static,
) -> Result<T, NotDone> {
    // The environment is a handful of shared pointers; fuel is set per render in a copy.
    let mut environment = environment.clone();
    environment.set_fuel(Some(fuel));
    let stack_bytes = BASE_STACK_BYTES.saturating_add((fuel * STACK_BYTES_PER_FUEL) as usize);
    on_deep_stack(stack_bytes, patience, fingerprint, move || render(&environment))
}

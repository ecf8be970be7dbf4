//! Constraints → guides, against one model's vocabulary.
//!
//! Owns the bounds on what a constraint may take, and keeping what was compiled last: as a rule all lines of a
//! file have the same few constraints.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use llguidance::{Matcher, ParserFactory, toktrie::InferenceCapabilities};

use super::preamble::Progress;
use super::{Constraint, Guide, GuideError, Preamble, Vocabulary, reason};
use crate::{
    deep::{self, NotDone, PATIENCE, on_deep_stack},
    panics,
    terminal::shown_in_short,
};

/// Compiled constraints that are kept.
const MAX_KEPT: usize = 16;

/// Bytes of a constraint's text; llguidance's own limits are on what becomes of it.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// States of a guide's lexer, of some two kilobytes each: what one running answer may take.
const MAX_LEXER_STATES: usize = 30_000;

/// Stack for compiling, which descends as deep as schemas are nested.
const STACK_BYTES: usize = 256 << 20;

/// Compiles constraints for one vocabulary; clones share it.
#[derive(Clone)]
pub struct Compiler(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    drops_first_space: bool,
    /// The last used at the end.
    kept: Mutex<VecDeque<(blake3::Hash, Compiled)>>,
}

/// A guide at its beginning, or why there is none.
type Compiled = Result<Arc<Matcher>, GuideError>;

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler")
            .field("drops_first_space", &self.0.drops_first_space)
            .finish_non_exhaustive()
    }
}

impl Compiler {
    /// Builds what all constraints of a vocabulary share; takes some tenths of a second for large ones.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, GuideError> {
        let drops_first_space = vocabulary.drops_first_space;
        let factory = panics::contained(|| {
            let environment = vocabulary.into_environment();
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        });
        // Of tokens that are too long, or too many, its trie cannot be made.
        let factory = factory.map_err(|message| {
            GuideError::NotServed(format!("the model's vocabulary: {}", shown_in_short(&message)))
        })?;
        let mut factory = factory.map_err(|error| GuideError::NotServed(reason(error)))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Self(Arc::new(Inner { factory, drops_first_space, kept: Mutex::default() })))
    }

    /// Checks a constraint, so that guides can begin; without one they only keep an eye on the preamble.
    pub fn pattern(
        &self,
        constraint: Option<&Arc<Constraint>>,
        preamble: Option<Preamble>,
    ) -> Result<Pattern, GuideError> {
        let constraint = constraint.map(|constraint| (constraint.key(), Arc::clone(constraint)));
        if let Some((key, constraint)) = &constraint {
            self.compiled(*key, constraint)?;
        }
        Ok(Pattern { compiler: self.clone(), constraint, preamble: preamble.map(Arc::new) })
    }

    fn compiled(&self, key: blake3::Hash, constraint: &Constraint) -> Compiled {
        if let Some(kept) = self.find(key) {
            return kept;
        }
        // Others may compile the same meanwhile, but nobody waits who does not need it.
        let compiled = self.compile(key, constraint)?;
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back((key, compiled.clone()));
        compiled
    }

    fn find(&self, key: blake3::Hash) -> Option<Compiled> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(other, _)| *other == key)?;
        let found = kept.remove(place)?;
        let compiled = found.1.clone();
        kept.push_back(found);
        Some(compiled)
    }

    /// What is to be kept of a constraint, or why it was not compiled, through no fault of its own.
    fn compile(&self, key: blake3::Hash, constraint: &Constraint) -> Result<Compiled, GuideError> {
        let not_served = |reason: String| Ok(Err(GuideError::NotServed(reason)));
        let num_bytes = constraint.num_bytes();
        if num_bytes > MAX_TEXT_BYTES {
            return not_served(format!("it has {num_bytes} bytes; at most {MAX_TEXT_BYTES} are compiled"));
        }
        let grammar = match constraint.grammar(self.0.drops_first_space) {
            Ok(grammar) => grammar,
            Err(error) => return Ok(Err(error)),
        };
        let inner = Arc::clone(&self.0);
        let matcher = on_deep_stack(STACK_BYTES, PATIENCE, deep::fingerprint(key.as_bytes()), move || {
            Matcher::new(inner.factory.create_parser(grammar))
        });
        match matcher {
            Ok(matcher) => match matcher.get_error() {
                Some(error) => not_served(reason(error)),
                None => Ok(Ok(Arc::new(matcher))),
            },
            Err(NotDone::TooLong(patience)) => not_served(format!(
                "it has not been compiled within {:.0} seconds: parts that all have to hold multiply with each \
                 other; leave some out",
                patience.as_secs_f32()
            )),
            Err(NotDone::Panicked) => not_served("llguidance gave up".to_owned()),
            Err(NotDone::NotBegun(reason)) => Err(GuideError::NotServed(reason)),
            Err(NotDone::NoThread { stack_bytes, reason }) => {
                Err(GuideError::NoThread(NotDone::no_thread_text(stack_bytes, &reason)))
            }
        }
    }
}

/// What guides can follow; clones share it.
#[derive(Debug, Clone)]
pub struct Pattern {
    compiler: Compiler,
    constraint: Option<(blake3::Hash, Arc<Constraint>)>,
    preamble: Option<Arc<Preamble>>,
}

impl Pattern {
    /// A guide for a new answer. Its states are its own: what it finds out is the same whatever other
    /// answers were.
    pub fn begin(&self) -> Result<Guide, GuideError> {
        let compiled = |(key, constraint): &(blake3::Hash, Arc<Constraint>)| {
            self.compiler.compiled(*key, constraint).map(|matcher| matcher.deep_clone())
        };
        let matcher = self.constraint.as_ref().map(compiled).transpose()?;
        let progress = self.preamble.as_ref().map(Progress::new);
        Ok(Guide::new(self.compiler.0.factory.tok_env().clone(), matcher, progress))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        let key = |pattern: &Self| pattern.constraint.as_ref().map(|(key, _)| *key);
        key(self) == key(other) && self.preamble == other.preamble
    }
}

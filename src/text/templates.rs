//! The chat templates of a run: the model's own, and those that requests bring with them.
//!
//! Owns compiling a request's template once for all requests that bring it, and that no renders are shared
//! between templates. What a template may do is `template`'s business.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use super::spans::PartialRenders;
use super::{ChatTemplate, ReplySyntax, TextError, Tokenizer};

/// Requests' templates that are kept; with one more, all are compiled anew.
const MAX_OWN_TEMPLATES: usize = 64;

/// What error messages call a template that a request brought.
const OWN_ORIGIN: &str = "the request";

/// A template and what has been rendered by it.
#[derive(Debug)]
pub(super) struct Templated {
    pub template: ChatTemplate,
    pub renders: PartialRenders,
    /// Once it is asked for.
    reply_syntax: OnceLock<ReplySyntax>,
}

type Compiled = Result<Arc<Templated>, TextError>;

#[derive(Debug)]
pub(super) struct Templates {
    /// A template that cannot be used is no obstacle to raw prompts; messages get the error.
    model: Compiled,
    /// `bos_token` and the like, which a request's template sees, too.
    special_tokens: Map<String, Value>,
    /// By the digest of their text.
    own: Mutex<HashMap<[u8; 32], Compiled>>,
}

impl Templates {
    pub(super) fn new(model: Result<ChatTemplate, TextError>, special_tokens: Map<String, Value>) -> Self {
        Self { model: model.map(Templated::new), special_tokens, own: Mutex::default() }
    }

    /// The model's template.
    pub(super) fn of_model(&self) -> Result<&Templated, TextError> {
        self.model.as_deref().map_err(TextError::clone)
    }

    /// The template of a request: its own, else the model's.
    pub(super) fn get(&self, own: Option<&str>) -> Compiled {
        let Some(text) = own else { return self.model.clone() };
        let key = *blake3::hash(text.as_bytes()).as_bytes();
        // Only whole changes are made, so that a panic elsewhere leaves nothing half-done.
        let lock = || self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = lock().get(&key) {
            return compiled.clone();
        }
        // Outside the lock: it is tried on small conversations. Two threads may both do so.
        let compiled =
            ChatTemplate::from_text(OWN_ORIGIN, text, self.special_tokens.clone()).map(Templated::new);
        let mut own = lock();
        if own.len() >= MAX_OWN_TEMPLATES {
            own.clear();
        }
        own.entry(key).or_insert(compiled).clone()
    }
}

impl Templated {
    fn new(template: ChatTemplate) -> Arc<Self> {
        Arc::new(Self { template, renders: PartialRenders::default(), reply_syntax: OnceLock::new() })
    }

    /// How answers are written.
    pub(super) fn reply_syntax(&self, tokenizer: &Tokenizer) -> ReplySyntax {
        *self.reply_syntax.get_or_init(|| ReplySyntax::of_template(&self.template, tokenizer))
    }
}

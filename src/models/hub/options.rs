//! Where the hub is, where its files are kept and who asks: read once from the environment.
//!
//! Owns the meaning of the HF_ variables, as huggingface_hub reads them. Flags are laid over the
//! result by the caller; nothing below reads the environment again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::small_file;

/// Of a file that holds a token.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// A secret that says who asks; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken {
    pub(super) secret: String,
    /// Where it came from, for messages: a variable or a file.
    pub origin: String,
}

impl AccessToken {
    /// Wraps a token; `origin` is what a message calls it.
    pub fn new(secret: &str, origin: &str) -> Self {
        Self { secret: secret.to_string(), origin: origin.to_string() }
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AccessToken(from {})", self.origin)
    }
}

/// How models are found on the hub; made once per run with [`HubOptions::from_env`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// Holds one folder per repository, as Python's huggingface_hub lays it out; empty where there is no place
    /// for one.
    pub cache_dir: PathBuf,
    pub token: Option<AccessToken>,
    /// The user's home folder, for `~/` in `--model`.
    pub home: Option<PathBuf>,
    /// A branch, a tag or a commit; `main` where none is given.
    pub revision: Option<String>,
    /// Makes no connection at all.
    pub offline: bool,
    /// Shows no progress; warnings are still shown.
    pub quiet: bool,
    /// Shows no warnings either.
    pub hides_warnings: bool,
    /// The pause before the first retry; it doubles with each further one.
    pub first_retry_delay: Duration,
}

impl HubOptions {
    /// Reads HF_ENDPOINT, HF_HOME, HF_HUB_CACHE (HUGGINGFACE_HUB_CACHE), HF_TOKEN, HF_TOKEN_PATH and
    /// HF_HUB_OFFLINE (TRANSFORMERS_OFFLINE).
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Reads the same variables from `var`.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var =
            |name: &str| var(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let home = var("HOME").map(PathBuf::from);
        let path = |name: &str| Some(PathBuf::from(expanded(&var(name)?, home.as_deref(), var)));
        // In a folder that all may write to, anybody could have put a model.
        let hf_home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache_dir = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache_dir = cache_dir.or_else(|| Some(hf_home.as_ref()?.join("hub"))).unwrap_or_default();
        let token = if var("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
            None
        } else {
            let named = |name: &str| Some(AccessToken { secret: var(name)?, origin: name.to_string() });
            named("HF_TOKEN").or_else(|| named("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
                let file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")))?;
                let secret = small_file::read_text(&file, MAX_TOKEN_BYTES).ok()?.trim().to_string();
                Some(AccessToken { secret, origin: file.display().to_string() })
                    .filter(|token| !token.secret.is_empty())
            })
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache_dir,
            token,
            home,
            revision: None,
            offline: var("HF_HUB_OFFLINE")
                .or_else(|| var("TRANSFORMERS_OFFLINE"))
                .is_some_and(|value| is_true(&value)),
            quiet: var("HF_HUB_DISABLE_PROGRESS_BARS").is_some_and(|value| is_true(&value)),
            hides_warnings: false,
            first_retry_delay: Duration::from_secs(1),
        }
    }
}

/// A path with `~` and variables put in, as Python's `os.path.expanduser` and then `os.path.expandvars` do:
/// a variable that is not set stays as it is written.
fn expanded(text: &str, home: Option<&Path>, var: impl Fn(&str) -> Option<String>) -> String {
    let mut rest = text;
    let mut path = String::new();
    if let (Some(below), Some(home)) = (text.strip_prefix('~'), home)
        && (below.is_empty() || below.starts_with('/'))
    {
        path.push_str(home.to_string_lossy().trim_end_matches('/'));
        rest = below;
    }
    while let Some((before, after)) = rest.split_once('$') {
        path.push_str(before);
        let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, next) =
            braced.unwrap_or_else(|| after.split_at(after.find(|c| !is_word(c)).unwrap_or(after.len())));
        match var(name).filter(|_| !name.is_empty()) {
            Some(value) => path.push_str(&value),
            None => path.push_str(&rest[before.len()..rest.len() - next.len()]),
        }
        rest = next;
    }
    path + rest
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_cache_is_where_python_keeps_it() {
        let cache = |vars: &[(&str, &str)]| options(vars).cache_dir;
        assert_eq!(cache(&[("HOME", "/h")]), PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]), PathBuf::from("/h/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        // It was in the temporary folder, where anybody may put things.
        assert_eq!(cache(&[]), PathBuf::new());
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "")]), PathBuf::from("/h/.cache/huggingface/hub"));
    }

    /// A cache that Python filled was not found, and a folder named "$HOME" was made in its place.
    #[test]
    fn older_names_of_the_cache_and_variables_in_paths_are_read_as_python_reads_them() {
        let home = ("HOME", "/h");
        let cache = |vars: &[(&str, &str)]| options(&[&[home], vars].concat()).cache_dir;
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")]), Path::new("/old"));
        let both = [("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")];
        assert_eq!(cache(&both), Path::new("/new"));
        for (value, expected) in [
            ("~", "/h"),
            ("~/x", "/h/x"),
            ("$HOME/x", "/h/x"),
            ("${HOME}/x/$A", "/h/x/a"),
            ("/d/$A-${A}_", "/d/a-a_"),
            ("/d/$NONE/${NONE}/$/${A", "/d/$NONE/${NONE}/$/${A"),
            ("~user/x", "~user/x"),
        ] {
            let vars = [("A", "a"), ("HF_HOME", value)];
            assert_eq!(cache(&vars), Path::new(expected).join("hub"), "{value}");
            assert_eq!(cache(&[("A", "a"), ("HF_HUB_CACHE", value)]), Path::new(expected), "{value}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_then_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(options(&[("HF_HOME", home)]).token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let token = options(&[("HF_HOME", home)]).token.unwrap();
        assert_eq!((token.secret.as_str(), token.origin.ends_with("/token")), ("hf_file", true));
        let token = options(&[("HF_HOME", home), ("HF_TOKEN", " hf_var ")]).token.unwrap();
        assert_eq!((token.secret.as_str(), token.origin.as_str()), ("hf_var", "HF_TOKEN"));
        assert_eq!(options(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    }

    #[test]
    fn a_token_is_never_printed() {
        let shown = format!("{:?}", options(&[("HF_TOKEN", "hf_secret")]));
        assert!(shown.contains("HF_TOKEN") && !shown.contains("hf_secret"), "{shown}");
    }

    #[test]
    fn offline_is_on_for_the_words_python_takes() {
        for (value, offline) in [("1", true), ("TRUE", true), ("yes", true), ("0", false), ("", false)] {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value:?}");
            assert_eq!(options(&[("TRANSFORMERS_OFFLINE", value)]).offline, offline, "{value:?}");
        }
        assert!(!options(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    }
}

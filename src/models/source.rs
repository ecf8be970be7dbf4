//! What `--model` names: a local folder, a `.gguf` file or a hub repository.
//!
//! Owns the reading of that one argument. Checking a folder's content is `files`' business,
//! downloading `hub`'s; nothing here looks inside a file beyond GGUF's four magic bytes.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::files::{self, FolderError};
use super::hub::{self, HubError, HubOptions};
use crate::{small_file, terminal::eprint_line};

/// Why `--model` does not lead to a model.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error(
        "--model is empty: give a model folder, a .gguf file or a hub repository such as \
         mlx-community/SmolLM2-135M-Instruct"
    )]
    Empty,
    #[error(
        "--model {spec}: no such folder or file{}; a hub repository is written owner/name, without \
         a leading ./ or /", looked_at(.spec, .path)
    )]
    NoSuchPath { spec: String, path: PathBuf },
    #[error(
        "--model {spec} is a file but not a .gguf file; give the folder that holds config.json, \
         tokenizer.json and the weights"
    )]
    NotAModelFile { spec: String },
    #[error(
        "--model {spec} does not start as a GGUF file does; it is damaged, or a download stub: fetch it again"
    )]
    NotGguf { spec: String },
    #[error(
        "--model {spec}: there is no such folder here, and it cannot be a hub repository: those are \
         written owner/name, from letters, digits, '-', '_' and '.'"
    )]
    BadRepository { spec: String },
    #[error("cannot read --model {spec}: {source}")]
    Io { spec: String, source: io::Error },
    #[error("--model {spec}: {source}")]
    Folder { spec: String, source: FolderError },
    #[error("--model {spec}: {source}")]
    Hub { spec: String, source: Box<HubError> },
}

/// The files of a model, all on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// A folder in the Hugging Face or MLX layout; all of it is there.
    Folder {
        dir: PathBuf,
        /// What the output's `model` field says: the repository, or the path as typed.
        name: String,
        /// The weight files, in order of name; at least one.
        weights: Vec<PathBuf>,
    },
    /// A file that holds configuration, tokenizer and weights, or one of the parts of such a file.
    Gguf {
        path: PathBuf,
        /// What the output's `model` field says: the path as typed.
        name: String,
    },
}

/// What a `--model` argument means, before anything is checked or fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    Folder(PathBuf),
    Gguf(PathBuf),
    Hub(String),
}

impl ModelSource {
    /// Finds the model that `spec` names, downloading it if need be, and checks that it is whole.
    pub fn resolve(spec: &str, options: &HubOptions) -> Result<ModelFiles, SourceError> {
        let source = Self::parse(spec, options.home.as_deref())?;
        if options.revision.is_some() && !matches!(source, Self::Hub(_)) {
            warn(
                options,
                &format!("--revision is for hub repositories; --model {spec} is local and taken as it is"),
            );
        }
        let folder_error = |source| SourceError::Folder { spec: spec.to_string(), source };
        match source {
            Self::Gguf(path) => {
                check_gguf_magic(&path, spec)?;
                Ok(ModelFiles::Gguf { path, name: spec.to_string() })
            }
            Self::Folder(dir) => {
                let folder = files::check_folder(&dir).map_err(folder_error)?;
                Ok(ModelFiles::Folder { dir, name: spec.to_string(), weights: folder.weights })
            }
            Self::Hub(repo) => {
                let snapshot = hub::fetch(&repo, options).map_err(|source| SourceError::Hub {
                    spec: spec.to_string(),
                    source: Box::new(source),
                })?;
                if let Some(warning) = &snapshot.warning {
                    warn(options, warning);
                }
                let folder = files::check_folder(&snapshot.dir).map_err(folder_error)?;
                Ok(ModelFiles::Folder { dir: folder.dir, name: repo, weights: folder.weights })
            }
        }
    }

    /// Tells a path from a repository; what exists on disk is always a path.
    pub fn parse(spec: &str, home: Option<&Path>) -> Result<Self, SourceError> {
        if spec.trim().is_empty() {
            return Err(SourceError::Empty);
        }
        let path = expand_home(spec, home);
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        if path.is_file() {
            return match has_gguf_extension(&path) {
                true => Ok(Self::Gguf(path)),
                false => Err(SourceError::NotAModelFile { spec: spec.to_string() }),
            };
        }
        if looks_like_a_path(spec) {
            return Err(SourceError::NoSuchPath { spec: spec.to_string(), path });
        }
        match is_repository_id(spec) {
            true => Ok(Self::Hub(spec.to_string())),
            false => Err(SourceError::BadRepository { spec: spec.to_string() }),
        }
    }
}

fn looks_like_a_path(spec: &str) -> bool {
    spec.starts_with(['.', '/', '~'])
        || spec.ends_with('/')
        || spec.matches('/').count() > 1
        || has_gguf_extension(Path::new(spec))
}

fn has_gguf_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Holds to the hub's own rules for names, which also make the name safe in a path and a URL.
fn is_repository_id(spec: &str) -> bool {
    const MAX_ID_BYTES: usize = 96;
    let valid = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    spec.len() <= MAX_ID_BYTES && spec.split('/').count() <= 2 && spec.split('/').all(valid)
}

/// Expands a leading `~/`, which a shell leaves alone after `--model=`.
fn expand_home(spec: &str, home: Option<&Path>) -> PathBuf {
    match (spec.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_path_buf(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(spec),
    }
}

fn check_gguf_magic(path: &Path, spec: &str) -> Result<(), SourceError> {
    let io_error = |source| SourceError::Io { spec: spec.to_string(), source };
    let mut magic = [0; 4];
    match small_file::open(path).map_err(io_error)?.read_exact(&mut magic) {
        Ok(()) if &magic == b"GGUF" => Ok(()),
        Ok(()) => Err(SourceError::NotGguf { spec: spec.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(SourceError::NotGguf { spec: spec.to_string() })
        }
        Err(error) => Err(io_error(error)),
    }
}

/// Names the place that was looked at where it is not what was typed.
fn looked_at(spec: &str, path: &Path) -> String {
    if path.is_absolute() && path == Path::new(spec) {
        return String::new();
    }
    match std::path::absolute(path) {
        Ok(absolute) => format!(" ({})", absolute.display()),
        Err(_) => String::new(),
    }
}

/// Warnings are for a person; a closed standard error must not end the run.
fn warn(options: &HubOptions, message: &str) {
    if !options.hides_warnings {
        eprint_line(&format!("mlxbatch: warning: {message}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(spec: &str) -> String {
        ModelSource::parse(spec, None).unwrap_err().to_string()
    }

    #[test]
    fn repositories_are_told_from_paths() {
        for repo in ["gpt2", "mlx-community/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "a/b_c.d"] {
            assert_eq!(ModelSource::parse(repo, None).unwrap(), ModelSource::Hub(repo.to_string()));
        }
        for path in ["./m", "../m", "/no/m", "~/m", "a/b/c", "owner/x.gguf", "x.GGUF", "m/", ".m"] {
            let text = message(path);
            assert!(text.contains("no such folder or file") && text.contains(path), "{text}");
        }
        for odd in ["a b", "owner/na me", "a--b", "x/..", "näme", "x/-y", "a@b", &"x".repeat(97)] {
            assert!(matches!(ModelSource::parse(odd, None), Err(SourceError::BadRepository { .. })), "{odd}");
        }
        assert!(matches!(ModelSource::parse(" ", None), Err(SourceError::Empty)));
    }

    #[test]
    fn what_exists_is_a_path_and_the_tilde_is_home() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("m")).unwrap();
        std::fs::write(home.path().join("x.gguf"), "GGUF\0\0").unwrap();
        std::fs::write(home.path().join("x.bin"), "").unwrap();
        let parse = |spec: &str| ModelSource::parse(spec, Some(home.path()));
        assert_eq!(parse("~/m").unwrap(), ModelSource::Folder(home.path().join("m")));
        assert_eq!(parse("~").unwrap(), ModelSource::Folder(home.path().to_path_buf()));
        assert_eq!(parse("~/x.gguf").unwrap(), ModelSource::Gguf(home.path().join("x.gguf")));
        assert!(matches!(parse("~/x.bin"), Err(SourceError::NotAModelFile { .. })));
    }

    #[test]
    fn a_missing_relative_path_says_where_it_was_looked_for() {
        let here = std::env::current_dir().unwrap();
        let text = message("./no-such-model");
        assert!(text.contains(&here.join("no-such-model").display().to_string()), "{text}");
    }

    #[test]
    fn a_gguf_file_is_known_by_its_magic_and_keeps_its_typed_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let spec = path.to_str().unwrap();
        let options = HubOptions::from_vars(|_| None);
        std::fs::write(&path, "GGUF\x03\0\0\0").unwrap();
        assert_eq!(
            ModelSource::resolve(spec, &options).unwrap(),
            ModelFiles::Gguf { path: path.clone(), name: spec.to_string() }
        );
        for stub in ["version https://git-lfs.github.com/spec/v1", "GG", ""] {
            std::fs::write(&path, stub).unwrap();
            assert!(
                matches!(ModelSource::resolve(spec, &options), Err(SourceError::NotGguf { .. })),
                "{stub}"
            );
        }
    }

    #[test]
    fn a_local_folder_is_checked_and_named_as_typed() {
        let dir = tempfile::tempdir().unwrap();
        let spec = dir.path().to_str().unwrap();
        let options = HubOptions::from_vars(|_| None);
        let text = ModelSource::resolve(spec, &options).unwrap_err().to_string();
        assert!(text.contains(spec) && text.contains("config.json"), "{text}");
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::write(dir.path().join(name), "{}").unwrap();
        }
        let expected = ModelFiles::Folder {
            dir: dir.path().to_path_buf(),
            name: spec.to_string(),
            weights: vec![dir.path().join("model.safetensors")],
        };
        assert_eq!(ModelSource::resolve(spec, &options).unwrap(), expected);
    }
}

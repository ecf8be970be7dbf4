//! Whose KV a cache file holds.
//!
//! Owns the comparison of two models by named parts, and the memory of weight files that were hashed
//! before. Which files and settings the parts are made of is the command's business.

use std::{
    fs::Metadata,
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// One thing that KV depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPart {
    /// As messages name it: "weights", "chat template".
    pub name: String,
    pub digest: Digest,
}

impl IdentityPart {
    /// A part that is made of these bytes.
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), digest: *blake3::hash(bytes).as_bytes() }
    }
}

/// All that a model's KV depends on; two models with equal parts have the same KV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What messages call the model; not compared.
    pub model: String,
    /// Whether some layers are recurrent, so that sequences resume at checkpoints only.
    pub needs_checkpoints: bool,
    pub parts: Vec<IdentityPart>,
    /// Weight files that the weights' digest was made of; not compared.
    pub stamps: Vec<FileStamp>,
}

impl Identity {
    /// What sets this model apart from another, in words; `None` if their KV is the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let digest = |identity: &Self, name: &str| {
            identity.parts.iter().find(|part| part.name == name).map(|part| part.digest)
        };
        let mut names: Vec<&str> = Vec::new();
        for part in self.parts.iter().chain(&other.parts) {
            let differs = digest(self, &part.name) != digest(other, &part.name);
            if differs && !names.contains(&part.name.as_str()) {
                names.push(&part.name);
            }
        }
        if names.is_empty() {
            return (self.needs_checkpoints != other.needs_checkpoints)
                .then(|| "recurrent layers".to_owned());
        }
        let verb = if names.len() == 1 { "differs" } else { "differ" };
        Some(format!("{} {verb}", names.join(", ")))
    }
}

/// A file as it was when it was hashed, so that it need not be hashed again while it stays so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStamp {
    /// Of the file's absolute path.
    pub path: Digest,
    pub num_bytes: u64,
    pub inode: u64,
    pub modified_ns: i64,
    /// When its metadata last changed: unlike the time of modification it cannot be set at will.
    pub changed_ns: i64,
    /// Of the file's content.
    pub content: Digest,
}

impl FileStamp {
    /// The digest of a file's content, taken from `known` if it was hashed before.
    pub fn of(path: &Path, known: &[Self]) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let stamp = Self::without_content(&path, &std::fs::metadata(&path)?);
        let is_same = |other: &&Self| Self { content: stamp.content, ..(*other).clone() } == stamp;
        if let Some(same) = known.iter().find(is_same) {
            return Ok(same.clone());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap_rayon(&path)?;
        Ok(Self { content: *hasher.finalize().as_bytes(), ..stamp })
    }

    fn without_content(path: &Path, metadata: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            path: *blake3::hash(path.as_os_str().as_bytes()).as_bytes(),
            num_bytes: metadata.len(),
            inode: metadata.ino(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            content: Digest::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(parts: &[(&str, &str)]) -> Identity {
        Identity {
            model: "tiny".to_owned(),
            needs_checkpoints: false,
            parts: parts.iter().map(|(name, content)| IdentityPart::new(name, content.as_bytes())).collect(),
            stamps: Vec::new(),
        }
    }

    #[test]
    fn differences_are_named_and_names_are_no_difference() {
        let ours = identity(&[("weights", "w"), ("dtype", "float32")]);
        assert_eq!(ours.difference(&ours), None);
        assert_eq!(ours.difference(&Identity { model: "other name".to_owned(), ..ours.clone() }), None);
        let other = identity(&[("weights", "v"), ("dtype", "float32")]);
        assert_eq!(ours.difference(&other).as_deref(), Some("weights differs"));
        let other = identity(&[("weights", "v"), ("dtype", "float16")]);
        assert_eq!(ours.difference(&other).as_deref(), Some("weights, dtype differ"));
        let more = identity(&[("weights", "w"), ("dtype", "float32"), ("adapter", "a")]);
        assert_eq!(ours.difference(&more).as_deref(), Some("adapter differs"));
        assert_eq!(more.difference(&ours).as_deref(), Some("adapter differs"));
        let recurrent = Identity { needs_checkpoints: true, ..ours.clone() };
        assert_eq!(ours.difference(&recurrent).as_deref(), Some("recurrent layers"));
    }

    #[test]
    fn a_file_is_hashed_again_only_when_it_changed() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, "one")?;
        let first = FileStamp::of(&path, &[])?;
        assert_eq!(first.content, *blake3::hash(b"one").as_bytes());
        // A wrong digest under the right stamp shows that the file was not read.
        let known = FileStamp { content: [7; 32], ..first.clone() };
        assert_eq!(FileStamp::of(&path, std::slice::from_ref(&known))?, known);
        std::fs::write(&path, "two!")?;
        assert_eq!(
            FileStamp::of(&path, std::slice::from_ref(&known))?.content,
            *blake3::hash(b"two!").as_bytes()
        );
        let other = folder.path().join("other.safetensors");
        std::fs::copy(&path, &other)?;
        assert_eq!(FileStamp::of(&other, &[known])?.content, *blake3::hash(b"two!").as_bytes());
        assert!(FileStamp::of(&folder.path().join("none"), &[]).is_err());
        Ok(())
    }
}

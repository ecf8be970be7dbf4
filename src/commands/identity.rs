//! What a model's KV depends on, as named digests.
//!
//! Owns which files and settings make up the identity of a cache file. Comparing identities is
//! `snapshot`'s business.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::model::{DescribedAdapter, DescribedFiles};
use crate::{
    mlx::{ComputeDevice, ComputeDtype, version_facts},
    models::{ContextChoice, ModelSpec},
    small_file,
    snapshot::{FileStamp, Identity, IdentityPart},
};

/// Changes whenever the same model and tokens get other KV: keys after RoPE at their absolute
/// position, `(H_kv, L, D)` a layer.
const KV_REVISION: &str = "2";

/// What readers of the same files allow at most.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// A model and how it is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ComputedModel<'a> {
    pub name: &'a str,
    pub spec: &'a ModelSpec,
    pub files: &'a DescribedFiles,
    pub adapter: Option<&'a DescribedAdapter>,
    pub dtype: ComputeDtype,
}

impl ComputedModel<'_> {
    /// What answers depend on, as far as it is cheap to tell: of the weights a sample, since they are read here
    /// for nothing else.
    pub(super) fn answer_parts(&self) -> anyhow::Result<Vec<IdentityPart>> {
        let mut weights = blake3::Hasher::new();
        for path in &self.files.weights {
            sample(path, &mut weights).with_context(|| format!("cannot read {}", path.display()))?;
        }
        let mut parts = vec![
            IdentityPart { name: "weights".to_owned(), digest: *weights.finalize().as_bytes() },
            IdentityPart::new("configuration", &contents(&self.files.configuration)?),
            IdentityPart::new("tokenizer", &contents(&self.files.tokenizer)?),
            IdentityPart::new("chat template", &contents(&self.files.template)?),
        ];
        parts.extend(self.long_context());
        if let Some(adapter) = self.adapter {
            let path = &adapter.adapter.weights_file;
            let mut weights = blake3::Hasher::new();
            sample(path, &mut weights).with_context(|| format!("cannot read {}", path.display()))?;
            parts.push(adapter_part(adapter, weights.finalize().as_bytes())?);
        }
        Ok(parts)
    }

    /// That the factors for long contexts are taken, where they are.
    fn long_context(&self) -> Option<IdentityPart> {
        (self.spec.context == ContextChoice::Long).then(|| IdentityPart::new("--long-context", b"yes"))
    }

    /// Digests everything; weight files that `known` has are not read again.
    pub(super) fn identity(&self, known: &[FileStamp]) -> anyhow::Result<Identity> {
        let stamp = |path: &PathBuf| {
            FileStamp::of(path, known).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut stamps = self.files.weights.iter().map(stamp).collect::<anyhow::Result<Vec<_>>>()?;
        let weights: Vec<u8> = stamps.iter().flat_map(|stamp| stamp.content).collect();
        let adapter = match self.adapter {
            None => IdentityPart::new("adapter", b"none"),
            Some(adapter) => {
                let weights = stamp(&adapter.adapter.weights_file)?;
                let part = adapter_part(adapter, &weights.content)?;
                stamps.push(weights);
                part
            }
        };
        // The library's version is part of the device: another one may round otherwise.
        let device: Vec<String> =
            version_facts().into_iter().filter(|(name, _)| name != "blas").map(|(_, fact)| fact).collect();
        let device = format!("{} {}", device.join(" "), ComputeDevice::current().backend());
        let mut parts = vec![
            IdentityPart::new("weights", &weights),
            IdentityPart::new("configuration", &contents(&self.files.configuration)?),
            IdentityPart::new("tokenizer", &contents(&self.files.tokenizer)?),
            IdentityPart::new("chat template", &contents(&self.files.template)?),
            adapter,
            IdentityPart::new("precision", self.dtype.name().as_bytes()),
            IdentityPart::new("MLX and device", device.as_bytes()),
            IdentityPart::new("KV revision", KV_REVISION.as_bytes()),
        ];
        parts.extend(self.long_context());
        Ok(Identity {
            model: self.name.to_owned(),
            needs_checkpoints: self.spec.recurrent_layers().next().is_some(),
            parts,
            stamps,
        })
    }
}

/// What answers depend on of an adapter, whose weights have this digest: what it is, and how it is used.
fn adapter_part(adapter: &DescribedAdapter, weights: &[u8; 32]) -> anyhow::Result<IdentityPart> {
    let config = contents(std::slice::from_ref(&adapter.adapter.config_file))?;
    Ok(IdentityPart::new("adapter", &[config.as_slice(), weights, adapter.place().as_bytes()].concat()))
}

/// Digests a file's length and pieces spread evenly over it, its ends among them.
fn sample(path: &Path, hasher: &mut blake3::Hasher) -> io::Result<()> {
    const NUM_PIECES: u64 = 64;
    const PIECE_BYTES: u64 = 64 << 10;
    let file = File::open(path)?;
    let num_bytes = file.metadata()?.len();
    hasher.update(&num_bytes.to_le_bytes());
    let mut piece = vec![0; PIECE_BYTES.min(num_bytes) as usize];
    let last = num_bytes - piece.len() as u64;
    for number in 0..NUM_PIECES {
        let offset = u128::from(last) * u128::from(number) / u128::from(NUM_PIECES - 1);
        file.read_exact_at(&mut piece, offset as u64)?;
        hasher.update(&piece);
    }
    Ok(())
}

/// The files' contents, told apart by their lengths; one that is missing counts as such.
fn contents(paths: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for path in paths {
        match small_file::read(path, MAX_FILE_BYTES) {
            Ok(content) => {
                bytes.extend((content.len() as u64).to_le_bytes());
                bytes.extend(content);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bytes.extend([0xff; 8]),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(bytes)
}

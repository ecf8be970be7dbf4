//! What a model's KV depends on, as named digests.
//!
//! Owns which files and settings make up the identity of a cache file. Comparing identities is
//! `snapshot`'s business.

use std::path::PathBuf;

use anyhow::Context;

use super::model::DescribedFiles;
use crate::{
    mlx::{ComputeDevice, ComputeDtype, version_facts},
    models::ModelSpec,
    snapshot::{FileStamp, Identity, IdentityPart},
};

/// Changes whenever the same model and tokens get other KV: keys after RoPE at their absolute
/// position, `(H_kv, L, D)` a layer.
const KV_REVISION: &str = "1";

/// A model and how it is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ComputedModel<'a> {
    pub name: &'a str,
    pub spec: &'a ModelSpec,
    pub files: &'a DescribedFiles,
    pub dtype: ComputeDtype,
}

impl ComputedModel<'_> {
    /// Digests everything; weight files that `known` has are not read again.
    pub(super) fn identity(&self, known: &[FileStamp]) -> anyhow::Result<Identity> {
        let stamps = self
            .files
            .weights
            .iter()
            .map(|path| FileStamp::of(path, known).with_context(|| format!("cannot read {}", path.display())))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let weights: Vec<u8> = stamps.iter().flat_map(|stamp| stamp.content).collect();
        // The library's version is part of the device: another one may round otherwise.
        let device: Vec<String> =
            version_facts().into_iter().filter(|(name, _)| name != "blas").map(|(_, fact)| fact).collect();
        let device = format!("{} {}", device.join(" "), ComputeDevice::current().backend());
        Ok(Identity {
            model: self.name.to_owned(),
            needs_checkpoints: self.spec.recurrent_layers().next().is_some(),
            parts: vec![
                IdentityPart::new("weights", &weights),
                IdentityPart::new("configuration", &contents(&self.files.configuration)?),
                IdentityPart::new("tokenizer", &contents(&self.files.tokenizer)?),
                IdentityPart::new("chat template", &contents(&self.files.template)?),
                IdentityPart::new("adapter", b"none"),
                IdentityPart::new("precision", self.dtype.name().as_bytes()),
                IdentityPart::new("MLX and device", device.as_bytes()),
                IdentityPart::new("KV revision", KV_REVISION.as_bytes()),
            ],
            stamps,
        })
    }
}

/// The files' contents, told apart by their lengths; one that is missing counts as such.
fn contents(paths: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for path in paths {
        match std::fs::read(path) {
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

//! Adapters: what was trained on top of a model, as mlx_lm.lora and peft write it.
//!
//! Owns finding an adapter's two files and pairing what its weight file holds, by names and shapes alone: which matrix
//! of the model is updated by which tensors and how much, and which weights are replaced. What a configuration means is
//! in one file for each program; the numbers are `mlx/`'s business.

mod experts;
mod known;
mod mlx_lm;
mod peft;
mod tensors;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use self::tensors::Tensors;
use super::{
    config::{ConfigError, Fields, MAX_FILE_BYTES},
    spec::ModelSpec,
};
use crate::small_file;

const CONFIG_FILE: &str = "adapter_config.json";

/// The program that wrote an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterWriter {
    MlxLm,
    Peft,
}

/// What an adapter does to the matrices it adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// Adds a product of two narrow matrices (arXiv 2106.09685).
    Lora,
    /// Does, and then gives each output's row a norm of its own (arXiv 2402.09353).
    Dora,
    /// Nothing: some of the model's weights are replaced.
    Full,
}

impl AdapterKind {
    /// As `fine_tune_type` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Dora => "dora",
            Self::Full => "full",
        }
    }
}

/// An adapter's description.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub kind: AdapterKind,
    pub writer: AdapterWriter,
    pub config_file: PathBuf,
    pub weights_file: PathBuf,
    /// In order of their paths.
    pub updates: Vec<LowRankUpdate>,
    pub replaced: Vec<ReplacedWeight>,
    /// What the files say that is not acted on, or not known.
    pub warnings: Vec<String>,
}

/// The update of one matrix, or of the experts' of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankUpdate {
    /// The matrix as the decoder asks for it, without `.weight`.
    pub path: String,
    /// Names in the file of what brings inputs to the rank, and that to the outputs.
    pub down: String,
    pub up: String,
    /// Name of the outputs' norms, of DoRA alone.
    pub magnitude: Option<String>,
    pub shape: UpdateShape,
    /// Factor on the product of the two.
    pub scale: f32,
}

/// Sizes of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateShape {
    /// Of experts, of which each has its own.
    pub num_matrices: Option<usize>,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// A weight that takes the place of the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplacedWeight {
    /// As the decoder asks for it.
    pub name: String,
    /// Its name in the file.
    pub stored: String,
    /// Whether embedding table and head, where they are one, are two from then on, of which this replaces one.
    pub unties: bool,
}

/// What a configuration says of the tensors beside it, by their names in the file.
trait Settings {
    fn kind(&self) -> AdapterKind;

    /// Rank and scale of the update of the matrix at `path`; an error where the program that wrote the file would not
    /// act on it.
    fn update_of(&self, path: &str) -> Result<(usize, f32), String>;

    /// The same of experts' matrices that are one parameter, at its path; `None` where the program knows of none such.
    fn update_of_parameter(&self, path: &str) -> Option<Result<(usize, f32), String>>;

    /// Whether a weight that replaces the model's unties embedding and head; an error where the program that wrote the
    /// file would not act on it.
    fn unties(&self, name: &str) -> Result<bool, String>;
}

/// How a program names and lays out what it writes.
struct Layout {
    weights_file: &'static str,
    /// What comes before the model's own names.
    prefix: &'static str,
    /// What comes between an adapted module's name and its own parts'.
    infix: &'static str,
    down: &'static [&'static str],
    up: &'static [&'static str],
    magnitude: &'static [&'static str],
}

const MLX_LM: Layout = Layout {
    weights_file: "adapters.safetensors",
    prefix: "",
    infix: "",
    down: &[".lora_a"],
    up: &[".lora_b"],
    magnitude: &[".m"],
};

const PEFT: Layout = Layout {
    weights_file: "adapter_model.safetensors",
    prefix: "base_model.model.",
    infix: ".base_layer.",
    down: &[".lora_A.weight"],
    up: &[".lora_B.weight"],
    magnitude: &[".lora_magnitude_vector", ".lora_magnitude_vector.weight"],
};

/// Names of the tensors of one update.
#[derive(Debug, Default)]
struct Parts {
    down: Option<String>,
    up: Option<String>,
    magnitude: Option<String>,
}

impl Adapter {
    /// Reads the adapter in the folder `dir`, to be used with the model of this description.
    pub fn read(dir: &Path, spec: &ModelSpec) -> Result<Self, ConfigError> {
        let config_file = dir.join(CONFIG_FILE);
        let shown = config_file.display().to_string();
        let text = small_file::read_text(&config_file, MAX_FILE_BYTES).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ConfigError::Invalid {
                path: dir.display().to_string(),
                reason: format!("{CONFIG_FILE} is not there; --adapter takes a folder as mlx_lm.lora or peft writes it"),
            },
            _ => ConfigError::Read { path: shown.clone(), source },
        })?;
        let value: Value = crate::json::parse_python(&text)
            .map_err(|source| ConfigError::Json { path: shown.clone(), source })?;
        let invalid = |reason: String| ConfigError::Invalid { path: shown.clone(), reason };
        let map = value.as_object().ok_or_else(|| invalid("is not a JSON object".to_owned()))?;
        let unread = RefCell::default();
        let fields = Fields::of_file(map, &unread);
        let (writer, layout, settings): (_, _, Box<dyn Settings>) = match fields.get("peft_type") {
            Some(_) => (AdapterWriter::Peft, &PEFT, Box::new(peft::read(&fields).map_err(invalid)?)),
            None => {
                let settings = mlx_lm::read(&fields, spec.layers.len()).map_err(invalid)?;
                (AdapterWriter::MlxLm, &MLX_LM, Box::new(settings))
            }
        };
        let weights_file = dir.join(layout.weights_file);
        let invalid =
            |reason: String| ConfigError::Invalid { path: weights_file.display().to_string(), reason };
        let tensors = tensors::read(&weights_file).map_err(invalid)?;
        let mut adapter = Self {
            kind: settings.kind(),
            writer,
            config_file,
            weights_file: weights_file.clone(),
            updates: Vec::new(),
            replaced: Vec::new(),
            warnings: unread.into_inner().warnings(&shown),
        };
        adapter.pair(&tensors, layout, settings.as_ref(), spec).map_err(invalid)?;
        Ok(adapter)
    }

    /// The files it was read from.
    pub fn files(&self) -> [PathBuf; 2] {
        [self.config_file.clone(), self.weights_file.clone()]
    }

    /// Numbers that it adds to a model's, beside those it replaces.
    pub fn num_elements(&self) -> usize {
        let of_update = |update: &LowRankUpdate| {
            let UpdateShape { num_matrices, rank, inputs, outputs } = update.shape;
            let narrow = inputs.saturating_add(outputs).saturating_mul(rank);
            narrow.saturating_mul(num_matrices.unwrap_or(1))
        };
        self.updates.iter().fold(0, |sum, update| sum.saturating_add(of_update(update)))
    }

    /// Numbers of the matrices that it updates; of experts' alone, or of all.
    pub fn num_updated_elements(&self, of_experts_alone: bool) -> usize {
        let counted =
            self.updates.iter().filter(|update| !of_experts_alone || update.shape.num_matrices.is_some());
        counted.fold(0, |sum, update| {
            let UpdateShape { num_matrices, inputs, outputs, .. } = update.shape;
            sum.saturating_add(inputs.saturating_mul(outputs).saturating_mul(num_matrices.unwrap_or(1)))
        })
    }

    /// Finds out what the tensors are; the error names the first that is none of what the configuration speaks of.
    fn pair(
        &mut self,
        tensors: &Tensors,
        layout: &Layout,
        settings: &dyn Settings,
        spec: &ModelSpec,
    ) -> Result<(), String> {
        let mut parts: BTreeMap<&str, Parts> = BTreeMap::new();
        let mut rest = Vec::new();
        for stored in tensors.keys() {
            let name = stored.strip_prefix(layout.prefix).unwrap_or(stored);
            let path_before = |endings: &[&str]| endings.iter().find_map(|ending| name.strip_suffix(ending));
            let part = if let Some(path) = path_before(layout.down) {
                &mut parts.entry(path).or_default().down
            } else if let Some(path) = path_before(layout.up) {
                &mut parts.entry(path).or_default().up
            } else if let Some(path) = path_before(layout.magnitude) {
                &mut parts.entry(path).or_default().magnitude
            } else {
                rest.push((name, stored));
                continue;
            };
            if part.replace(stored.clone()).is_some() {
                return Err(format!("'{stored}' is there under another name too"));
            }
        }
        let mut not_run = Vec::new();
        for (path, parts) in parts {
            let weight = spec.names.canonical(&format!("{path}.weight"));
            if spec.names.is_ignored(&weight) {
                not_run.push(path);
                continue;
            }
            let canonical = weight.strip_suffix(".weight").unwrap_or(&weight);
            if let Some(update) = experts::update(canonical, &parts, tensors, (settings, spec))? {
                self.updates.push(update);
                continue;
            }
            self.updates.push(self.update(canonical, parts, tensors, settings.update_of(path)?)?);
        }
        for (name, stored) in rest {
            let canonical = match layout.infix {
                "" => spec.names.canonical(name),
                infix => spec.names.canonical(&name.replace(infix, ".")),
            };
            if spec.names.is_ignored(&canonical) {
                not_run.push(name);
                continue;
            }
            let unties = settings.unties(&canonical)?;
            self.replaced.push(ReplacedWeight { name: canonical, stored: stored.clone(), unties });
        }
        if self.updates.is_empty() && self.replaced.is_empty() {
            return Err("holds nothing that is for this model".to_owned());
        }
        if let Some(first) = not_run.first() {
            self.warnings.push(format!(
                "{}: '{first}' and all that is trained of {} parts that are not run here changes nothing",
                self.weights_file.display(),
                not_run.len()
            ));
        }
        Ok(())
    }

    /// The update of the matrix at `path`, whose shapes must fit each other and the rank.
    fn update(
        &self,
        path: &str,
        parts: Parts,
        tensors: &Tensors,
        (rank, scale): (usize, f32),
    ) -> Result<LowRankUpdate, String> {
        let missing = |what: &str| format!("the update of '{path}' lacks {what}");
        let down = parts.down.ok_or_else(|| missing("'lora_a' (or 'lora_A')"))?;
        let up = parts.up.ok_or_else(|| missing("'lora_b' (or 'lora_B')"))?;
        let [down_sizes, up_sizes] = [&down, &up].map(|name| tensors[name].as_slice());
        let (shape, up_rank) = match (self.writer, down_sizes, up_sizes) {
            (AdapterWriter::MlxLm, &[inputs, rank], &[up_rank, outputs])
            | (AdapterWriter::Peft, &[rank, inputs], &[outputs, up_rank]) => {
                (UpdateShape { num_matrices: None, rank, inputs, outputs }, up_rank)
            }
            (AdapterWriter::MlxLm, &[count, rank, inputs], &[up_count, outputs, up_rank])
                if count == up_count && self.kind == AdapterKind::Lora =>
            {
                (UpdateShape { num_matrices: Some(count), rank, inputs, outputs }, up_rank)
            }
            _ => {
                return Err(format!(
                    "'{down}' and '{up}' of shapes {down_sizes:?} and {up_sizes:?} are no update"
                ));
            }
        };
        if shape.rank != rank || up_rank != rank {
            return Err(format!(
                "'{down}' and '{up}' have ranks {} and {up_rank}, and {CONFIG_FILE} says {rank}",
                shape.rank
            ));
        }
        match (&parts.magnitude, self.kind) {
            (None, AdapterKind::Dora) => return Err(missing("the norms of its outputs, which DoRA has")),
            (Some(name), AdapterKind::Dora) if tensors[name] != [shape.outputs] => {
                return Err(format!("'{name}' has shape {:?}, expected [{}]", tensors[name], shape.outputs));
            }
            (Some(name), AdapterKind::Lora | AdapterKind::Full) => {
                return Err(format!("'{name}' is DoRA's, and {CONFIG_FILE} says '{}'", self.kind.name()));
            }
            _ => {}
        }
        Ok(LowRankUpdate { path: path.to_owned(), down, up, magnitude: parts.magnitude, shape, scale })
    }
}

/// The layer that a module is in and its name there: `model.layers.3.mlp.up_proj` → 3 and `mlp.up_proj`.
fn in_layer(path: &str) -> Option<(usize, &str)> {
    let mut rest = path;
    while let Some((before, after)) = rest.split_once("layers.") {
        let (number, inner) = after.split_once('.')?;
        if let Ok(index) = number.parse()
            && (before.is_empty() || before.ends_with('.'))
        {
            return Some((index, inner));
        }
        rest = after;
    }
    None
}

/// A scale that can be multiplied with.
fn checked_scale(scale: f64, named: &str) -> Result<f32, String> {
    match scale as f32 {
        narrow if narrow.is_finite() => Ok(narrow),
        _ => Err(format!("{named} must be a number in the range of float32, got {scale:e}")),
    }
}

#[cfg(test)]
mod tests;

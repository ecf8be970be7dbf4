//! Matrices as other programs have quantised and decoded them (`fixtures/packed`, by `scripts/make_packed_cases.py`).
//!
//! Owns the comparison with their numbers, and that what MLX's forms can hold stays packed.

use std::{collections::HashMap, path::Path};

use mlx_rs::{Array, Dtype};
use serde_json::Value;

use super::convert;
use crate::{
    mlx::{
        device::{ComputeDevice, ComputeDtype},
        matrices::{MatrixShape, Precision},
        quantized::Quantized,
        weights::{Weights, load_file},
    },
    models::{PublisherFormat, read_config},
};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/packed")
}

/// The form that a configuration with these settings says.
fn format_of(settings: &Value) -> PublisherFormat {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    config["quantization_config"] = settings.clone();
    let written = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(written.path(), config.to_string()).unwrap();
    read_config(written.path()).unwrap().quantization.unwrap().publisher.unwrap()
}

#[test]
fn matrices_are_what_the_programs_that_packed_them_make_of_them() {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let arrays = load_file(&folder().join("cases.safetensors")).unwrap();
    let cases = cases.as_object().unwrap();
    assert!(cases.len() > 20);
    for (name, case) in cases {
        let of_case = |(full, array): (&String, &Array)| {
            let rest = full.strip_prefix(&format!("{name}/"))?;
            Some((rest.to_owned(), array.clone()))
        };
        let mut parts: HashMap<String, Array> = arrays.iter().filter_map(of_case).collect();
        let expected = parts.remove("expected").unwrap();
        convert(&mut parts, format_of(&case["settings"])).unwrap_or_else(|error| panic!("{name}: {error}"));
        let shape = MatrixShape { outputs: expected.dim(0) as usize, inputs: expected.dim(1) as usize };
        let precision = Precision {
            dtype: ComputeDtype::Float32,
            device: ComputeDevice::Cpu,
            widen_quantized: false,
            fuse_updates: false,
        };
        let mut weights = Weights::from_arrays(parts);
        let matrix = Quantized::take(&mut weights, "a", (None, shape), (None, precision)).unwrap();
        assert_eq!(matrix.is_some(), case["stays_packed"] == true, "{name}");
        let numbers = match matrix {
            Some(matrix) => matrix.numbers(Dtype::Float32).unwrap(),
            None => weights.take("a.weight", &[shape.outputs, shape.inputs]).unwrap(),
        };
        assert_eq!(weights.iter().count(), 0, "{name} has more than a weight");
        let error = numbers.as_dtype(Dtype::Float32).unwrap().subtract(&expected).unwrap().abs().unwrap();
        let largest = |array: Array| {
            let largest = array.max(None).unwrap();
            largest.eval().unwrap();
            largest.to_vec_exact::<f32>().unwrap()[0]
        };
        let tolerance = case["tolerance"].as_f64().unwrap() as f32;
        let (error, size) = (largest(error), largest(expected.abs().unwrap()));
        assert!(error <= tolerance * size, "{name}: {error} of {size}");
    }
}

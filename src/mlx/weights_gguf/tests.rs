//! Tests of GGUF weights on the device: every type, in every form it may take, is what its blocks say.

use std::io::Write as _;

use super::*;
use crate::{
    mlx::{ComputeDevice, LoadedModel, WeightSource},
    models::{
        gguf::{GgmlType, testing::GgufFile},
        read_gguf_config,
    },
};

const HIDDEN: u64 = 256;
const NUM_HEADS: usize = 4;
/// As for a device whose products the program does not make itself.
const WIDENED: Precision = Precision {
    dtype: ComputeDtype::Float32,
    device: ComputeDevice::Gpu,
    widen_quantized: true,
    fuse_updates: false,
};
const PACKED: Precision = Precision { widen_quantized: false, device: ComputeDevice::Cpu, ..WIDENED };

/// Blocks of noise, but for their scales, which are small numbers at the places where types have them.
fn blocks(kind: GgmlType, num_elements: u64, seed: u64) -> Vec<u8> {
    let num_blocks = num_elements as usize / kind.num_block_elements();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut bytes: Vec<u8> = (0..num_blocks * kind.block_bytes()).map(|_| noise()).collect();
    for block in bytes.chunks_mut(kind.block_bytes()) {
        match kind.name() {
            "F32" => block.copy_from_slice(&(f32::from(block[0]) / 512.0 - 0.25).to_le_bytes()),
            "F64" => block.copy_from_slice(&(f64::from(block[0]) / 512.0 - 0.25).to_le_bytes()),
            "F16" | "BF16" => block[1] = block[1] & 0x80 | 0x2c,
            "Q8_K" => block[..4].copy_from_slice(&0.01_f32.to_le_bytes()),
            // One exponent, or a scale in 4 bits here and there: nothing is out of range.
            "MXFP4" => block[0] = 120,
            "NVFP4" => block[..4].iter_mut().for_each(|scale| *scale &= 0x3f),
            "IQ1_M" => (48..56).filter(|at| at % 2 == 1).for_each(|at| block[at] = block[at] & 0x0f | 0x20),
            "Q2_K" => [81, 83].into_iter().for_each(|at| block[at] = block[at] & 0x80 | 0x20),
            "Q4_K" | "Q5_K" | "Q4_1" | "Q5_1" => {
                [1, 3].into_iter().for_each(|at| block[at] = block[at] & 0x80 | 0x20);
            }
            "Q3_K" | "Q6_K" | "TQ1_0" | "TQ2_0" => {
                let last = block.len() - 1;
                block[last] = block[last] & 0x80 | 0x20;
            }
            _ => block[1] = block[1] & 0x80 | 0x20,
        }
    }
    bytes
}

/// A llama of one layer whose matrices are of one type.
fn model_of(kind: GgmlType) -> GgufFile {
    let f32s = |numbers: u64| [1.0_f32.to_le_bytes()].repeat(numbers as usize).concat();
    let mut file = GgufFile::default()
        .str("general.architecture", "llama")
        .u32("llama.embedding_length", HIDDEN as u32)
        .u32("llama.feed_forward_length", 512)
        .u32("llama.block_count", 1)
        .u32("llama.attention.head_count", NUM_HEADS as u32)
        .u32("llama.attention.head_count_kv", 2)
        .u32("llama.context_length", 64)
        .raw("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes())
        .tensor("output_norm.weight", 0, &[HIDDEN], &f32s(HIDDEN))
        .tensor("blk.0.attn_norm.weight", 0, &[HIDDEN], &f32s(HIDDEN))
        .tensor("blk.0.ffn_norm.weight", 0, &[HIDDEN], &f32s(HIDDEN));
    for (seed, (name, inputs, outputs)) in matrices().into_iter().enumerate() {
        let data = blocks(kind, inputs * outputs, seed as u64);
        file = file.tensor(name, kind.code(), &[inputs, outputs], &data);
    }
    file
}

/// Names, inputs and outputs.
fn matrices() -> [(&'static str, u64, u64); 8] {
    [
        ("token_embd.weight", HIDDEN, 24),
        ("blk.0.attn_q.weight", HIDDEN, HIDDEN),
        ("blk.0.attn_k.weight", HIDDEN, HIDDEN / 2),
        ("blk.0.attn_v.weight", HIDDEN, HIDDEN / 2),
        ("blk.0.attn_output.weight", HIDDEN, HIDDEN),
        ("blk.0.ffn_gate.weight", HIDDEN, 512),
        ("blk.0.ffn_up.weight", HIDDEN, 512),
        ("blk.0.ffn_down.weight", 512, HIDDEN),
    ]
}

fn written(file: &GgufFile) -> (tempfile::NamedTempFile, ModelSpec) {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&file.bytes()).unwrap();
    let spec = read_gguf_config(&GgufHeader::read(on_disk.path()).unwrap()).unwrap().spec;
    (on_disk, spec)
}

fn numbers_of(array: &Array) -> Vec<f32> {
    array.eval().unwrap();
    array.try_as_slice::<f32>().unwrap().to_vec()
}

/// What a matrix's blocks say, row by row in the decoder's order.
fn expected(kind: GgmlType, seed: usize) -> Vec<f32> {
    let (name, inputs, outputs) = matrices()[seed];
    let mut stored = vec![0.0; (inputs * outputs) as usize];
    decoder(kind.code()).unwrap()(&blocks(kind, inputs * outputs, seed as u64), &mut stored);
    let num_heads = match name {
        "blk.0.attn_q.weight" => NUM_HEADS,
        "blk.0.attn_k.weight" => 2,
        _ => return stored,
    };
    let head_dim = outputs as usize / num_heads;
    let row = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + within % (head_dim / 2) * 2 + within / (head_dim / 2)
    };
    let width = inputs as usize;
    (0..outputs as usize).flat_map(|number| stored[row(number) * width..][..width].to_vec()).collect()
}

fn readable_types() -> impl Iterator<Item = GgmlType> {
    (0..100).filter(|code| decoder(*code).is_some()).filter_map(GgmlType::from_code)
}

fn name_of(number: usize) -> &'static str {
    match matrices()[number].0 {
        "token_embd.weight" => "model.embed_tokens.weight",
        "blk.0.attn_q.weight" => "model.layers.0.self_attn.q_proj.weight",
        "blk.0.attn_k.weight" => "model.layers.0.self_attn.k_proj.weight",
        "blk.0.attn_v.weight" => "model.layers.0.self_attn.v_proj.weight",
        "blk.0.attn_output.weight" => "model.layers.0.self_attn.o_proj.weight",
        "blk.0.ffn_gate.weight" => "model.layers.0.mlp.gate_proj.weight",
        "blk.0.ffn_up.weight" => "model.layers.0.mlp.up_proj.weight",
        "blk.0.ffn_down.weight" => "model.layers.0.mlp.down_proj.weight",
        other => panic!("{other} is no matrix of the file"),
    }
}

#[test]
fn every_type_becomes_the_numbers_of_its_blocks_and_a_model() {
    for kind in readable_types() {
        let (file, spec) = written(&model_of(kind));
        let mut weights = load(file.path(), &spec, WIDENED).unwrap();
        for number in 0..matrices().len() {
            let array = weights.take_any_shape(name_of(number)).unwrap();
            let numbers = numbers_of(&array);
            assert!(numbers.iter().all(|number| number.is_finite()), "{}", kind.name());
            assert_eq!(numbers, expected(kind, number), "{} {}", kind.name(), name_of(number));
        }
        for device in ComputeDevice::KINDS {
            for dtype in [ComputeDtype::Float32, ComputeDtype::Bfloat16] {
                let source = WeightSource::Gguf(file.path().to_owned());
                LoadedModel::load(&spec, &source, device, dtype).unwrap();
            }
        }
    }
}

#[test]
fn floats_of_sixteen_bits_stay_what_they_are_where_loops_multiply_by_them() {
    for (name, dtype) in [("F16", Dtype::Float16), ("BF16", Dtype::Bfloat16)] {
        let kind = readable_types().find(|kind| kind.name() == name).unwrap();
        let (file, spec) = written(&model_of(kind));
        let mut weights = load(file.path(), &spec, PACKED).unwrap();
        for number in 0..matrices().len() {
            let array = weights.take_any_shape(name_of(number)).unwrap();
            assert_eq!(array.dtype(), if PACKED.multiplies_packed() { dtype } else { Dtype::Float32 });
            let numbers = numbers_of(&array.as_dtype(Dtype::Float32).unwrap());
            assert_eq!(numbers, expected(kind, number), "{name} {}", name_of(number));
        }
    }
}

/// Bit for bit: neither scales nor biases are rounded, nor what they make.
#[test]
fn types_that_are_affine_groups_stay_packed_and_lose_nothing() {
    for kind in readable_types() {
        let (file, spec) = written(&model_of(kind));
        let mut weights = load(file.path(), &spec, PACKED).unwrap();
        let (bits, group_size) = match kind.name() {
            "Q2_K" if PACKED.multiplies_packed() => (2, 16),
            "Q3_K" if PACKED.multiplies_packed() => (3, 16),
            "Q6_K" if PACKED.multiplies_packed() => (6, 16),
            "Q4_0" | "Q4_1" | "Q4_K" => (4, 32),
            "Q5_0" | "Q5_1" | "Q5_K" => (5, 32),
            "Q8_0" => (8, 32),
            "MXFP4" => {
                assert!(weights.contains("model.embed_tokens.scales"));
                assert!(!weights.contains("model.embed_tokens.biases"));
                continue;
            }
            _ => {
                assert!(!weights.contains("model.embed_tokens.scales"), "{}", kind.name());
                continue;
            }
        };
        for number in 0..matrices().len() {
            let name = name_of(number);
            let path = name.strip_suffix(".weight").unwrap();
            let [packed, scales, biases] = ["weight", "scales", "biases"]
                .map(|part| weights.take_any_shape(&format!("{path}.{part}")).unwrap());
            assert_eq!(packed.dim(1) as u64 * 32, matrices()[number].1 * bits);
            let expected = expected(kind, number);
            let (scales, biases) = (numbers_of(&scales), numbers_of(&biases));
            let words = packed.try_as_slice::<u32>().unwrap();
            let code = |at: u64| {
                (0..bits).fold(0, |code, bit| {
                    let place = at * bits + bit;
                    code | (words[place as usize / 32] >> (place % 32) & 1) << bit
                })
            };
            for (at, expected) in expected.iter().enumerate() {
                let group = at / group_size;
                let number = (code(at as u64) as f32).mul_add(scales[group], biases[group]);
                assert_eq!(number, *expected, "{} {name} {at}", kind.name());
            }
        }
    }
}

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// gpt-oss's experts would else be eight times as large.
#[test]
fn floats_of_four_bits_are_the_same_codes_in_the_order_of_the_numbers() {
    let kind = GgmlType::from_code(MXFP4).unwrap();
    let (file, spec) = written(&model_of(kind));
    let mut weights = load(file.path(), &spec, PACKED).unwrap();
    let number = 6;
    let path = name_of(number).strip_suffix(".weight").unwrap().to_owned();
    let words = weights.take_any_shape(&format!("{path}.weight")).unwrap();
    let scales = weights.take_any_shape(&format!("{path}.scales")).unwrap();
    assert_eq!((words.shape(), scales.shape()), (&[512, 32][..], &[512, 8][..]));
    let words = words.try_as_slice::<u32>().unwrap();
    let scales = scales.try_as_slice::<u8>().unwrap();
    let numbers: Vec<f32> = (0..8 * words.len())
        .map(|at| {
            let code = words[at / 8] >> (4 * (at % 8)) & 15;
            let sign = if code < 8 { 1.0 } else { -1.0 };
            sign * E2M1[code as usize % 8] * (f32::from(scales[at / 32]) - 127.0).exp2()
        })
        .collect();
    assert_eq!(numbers, expected(kind, number));
}

/// As all experts of a layer are.
#[test]
fn matrices_on_top_of_each_other_stay_packed() {
    let kind = GgmlType::from_code(2).unwrap();
    let data = blocks(kind, 2 * 3 * 64, 7);
    let file = GgufFile::default().tensor("blk.0.ffn_up_exps.weight", 2, &[64, 3, 2], &data);
    let tensor = GgufTensor { offset_bytes: 0, ..file.header().tensors()[0].clone() };
    let blocks = Blocks::of(&tensor, &data, StoredForm::AsItIs).unwrap();
    let Packed { words, scales, biases } = blocks.packed(PACKED).unwrap().unwrap();
    assert_eq!((words.shape(), scales.shape()), (&[2, 3, 8][..], &[2, 3, 2][..]));
    let unpacked = mlx_rs::ops::dequantize(&words, &scales, &biases.unwrap(), 32, 4).unwrap();
    assert_eq!(
        numbers_of(&unpacked),
        numbers_of(&blocks.numbers(decoder(2).unwrap(), ComputeDtype::Float32).unwrap())
    );
}

/// A bias is 128 scales: in float16 it would have been infinite, and all numbers of the group with it.
#[test]
fn a_bias_beyond_float16_is_not_packed_for_it() {
    let mut data = [0; 34];
    data[..2].copy_from_slice(&0x6400_u16.to_le_bytes()); // 1024
    data[2] = 3;
    let file = model_of(GgmlType::from_code(0).unwrap()).tensor("blk.0.attn_q.bias", 8, &[32], &data);
    let tensor =
        file.header().tensors().iter().find(|tensor| tensor.name == "blk.0.attn_q.bias").unwrap().clone();
    let tensor = GgufTensor { shape: vec![1, 32], offset_bytes: 0, ..tensor };
    let blocks = Blocks::of(&tensor, &data, StoredForm::AsItIs).unwrap();
    assert!(blocks.packed(Precision { dtype: ComputeDtype::Float16, ..PACKED }).unwrap().is_none());
    assert!(blocks.packed(Precision { dtype: ComputeDtype::Bfloat16, ..PACKED }).unwrap().is_some());
    let numbers = blocks.numbers(decoder(8).unwrap(), ComputeDtype::Float32).unwrap();
    assert_eq!(numbers_of(&numbers)[..2], [3072.0, 0.0]);
}

#[test]
fn rows_come_back_as_halves() {
    let order = halves_of_pairs(16, 2).unwrap();
    assert_eq!(order, [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]);
    assert!(halves_of_pairs(16, 3).is_err());
    assert!(halves_of_pairs(16, 0).is_err());
}

/// Files as they are published, which are too large for this suite: scripts/check_gguf.py says what gguf-py
/// makes of them, as `GGUF_DIGESTS`, a JSON object of SHA-256 by weight's name over its little-endian float32.
#[test]
#[ignore = "needs GGUF_FILE and GGUF_DIGESTS: make check-gguf runs it"]
fn a_published_files_weights_are_those_of_gguf_py_bit_for_bit() {
    let from = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} names a file"));
    let file = std::path::PathBuf::from(from("GGUF_FILE"));
    let digests = std::fs::read_to_string(from("GGUF_DIGESTS")).unwrap();
    let mut expected: std::collections::BTreeMap<String, String> = serde_json::from_str(&digests).unwrap();
    let spec = read_gguf_config(&GgufHeader::read(&file).unwrap()).unwrap().spec;
    for (name, array) in load(&file, &spec, WIDENED).unwrap().iter() {
        assert_eq!(array.dtype(), mlx_rs::Dtype::Float32, "{name}");
        let mut bytes = Vec::new();
        sys::append_bytes(array, &mut bytes).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(Some(digest), expected.remove(name), "{name}");
    }
    assert!(expected.is_empty(), "not loaded: {:?}", expected.keys());
}

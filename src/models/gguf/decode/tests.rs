//! Tests of the decoders: against gguf-py's numbers, against any bytes, and by hand.
//!
//! `fixtures/gguf_blocks.json` is written by `scripts/make_gguf_fixture.py`.

use std::path::Path;

use serde_json::Value;

use super::super::GgmlType;
use super::*;

fn decode(code: u32, bytes: &[u8], num_values: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; num_values];
    decoder(code).expect("the type has a decoder")(bytes, &mut values);
    values
}

fn from_hex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("a string");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Every type that has a decoder, with the bytes of `num_blocks` blocks and how many numbers these hold.
fn types_with_sizes(num_blocks: usize) -> Vec<(GgmlType, usize, usize)> {
    let decodable = (0..64).filter(|&code| decoder(code).is_some());
    decodable
        .map(|code| {
            let ggml_type = GgmlType::from_code(code).expect("what can be decoded is a known type");
            let (num_block_values, block_bytes) = (1..=256)
                .find_map(|n| ggml_type.tensor_bytes(&[n]).map(|bytes| (n as usize, bytes as usize)))
                .expect("blocks have at most 256 numbers");
            (ggml_type, num_blocks * block_bytes, num_blocks * num_block_values)
        })
        .collect()
}

#[test]
fn every_type_decodes_to_the_bits_that_gguf_py_decodes_it_to() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf_blocks.json");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut codes = Vec::new();
    for row in &rows {
        let code = row["code"].as_u64().unwrap() as u32;
        let expected: Vec<u32> =
            from_hex(&row["values"]).as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let values = decode(code, &from_hex(&row["bytes"]), expected.len());
        for (i, (value, &bits)) in values.iter().zip(&expected).enumerate() {
            let expected = f32::from_bits(bits);
            assert_eq!(value.to_bits(), bits, "{} at {i}: {value} for {expected}", row["name"]);
        }
        codes.push(code);
    }
    let decodable: Vec<u32> = types_with_sizes(1).iter().map(|(ggml_type, ..)| ggml_type.code()).collect();
    assert_eq!(codes, decodable, "the fixture has every type");
}

#[test]
fn any_bytes_of_whole_blocks_decode() {
    let mut state = 1u64;
    let mut random_byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for (ggml_type, num_bytes, num_values) in types_with_sizes(2000) {
        let random: Vec<u8> = (0..num_bytes).map(|_| random_byte()).collect();
        for bytes in [random, vec![0; num_bytes], vec![0xff; num_bytes]] {
            let values = decode(ggml_type.code(), &bytes, num_values);
            // Blocks do not look at each other.
            let last = decode(ggml_type.code(), &bytes[num_bytes / 2..], num_values / 2);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values[num_values / 2..]), bits(&last), "{}", ggml_type.name());
        }
    }
}

#[test]
fn half_precision_widens_exactly() {
    let cases = [
        (0x0000, 0.0),
        (0x8000, -0.0),
        (0x3c00, 1.0),
        (0xc000, -2.0),
        (0x3555, 0.333_251_95),
        (0x7bff, 65504.0),
        (0x0400, 6.103_515_6e-5),
        (0x03ff, 6.097_555e-5),
        (0x8001, -5.960_464_5e-8),
        (0x7c00, f32::INFINITY),
        (0xfc00, f32::NEG_INFINITY),
    ];
    for (bits, expected) in cases {
        let value: f32 = f16_to_f32(bits);
        assert_eq!(value.to_bits(), f32::to_bits(expected), "{bits:#06x}");
    }
    assert!(f16_to_f32(0x7e00).is_nan());
}

#[test]
fn floats_of_every_width_come_back() {
    assert_eq!(decode(0, &[1.5f32.to_le_bytes(), (-3e38f32).to_le_bytes()].concat(), 2), [1.5, -3e38]);
    assert_eq!(decode(1, &[0x00, 0x3c, 0x00, 0xb8], 2), [1.0, -0.5]);
    assert_eq!(decode(28, &[0.1f64.to_le_bytes(), (-2f64).to_le_bytes()].concat(), 2), [0.1, -2.0]);
    assert_eq!(decode(30, &[0x80, 0x3f, 0x20, 0xc0], 2), [1.0, -2.5]);
}

/// Scale 0.5 and, where the type has one, minimum -1; then all zero bits but for the first byte of codes.
#[test]
fn blocks_of_32_have_their_second_half_in_the_high_bits() {
    let block = |head: &[u8], num_codes: usize| {
        let mut bytes = head.to_vec();
        bytes.push(0x2f);
        bytes.resize(head.len() + num_codes, 0);
        bytes
    };
    let pick = |values: Vec<f32>| [values[0], values[1], values[16], values[17], values[31]];
    let (scale, minimum) = ([0x00, 0x38], [0x00, 0xbc]);

    let q4_0 = decode(2, &block(&scale, 16), 32);
    assert_eq!(pick(q4_0), [3.5, -4.0, -3.0, -4.0, -4.0]);
    let q4_1 = decode(3, &block(&[scale, minimum].concat(), 16), 32);
    assert_eq!(pick(q4_1), [6.5, -1.0, 0.0, -1.0, -1.0]);
    // The fifth bits of numbers 1, 16 and 31.
    let fifth = [0x02, 0x00, 0x01, 0x80];
    let q5_0 = decode(6, &block(&[&scale[..], &fifth].concat(), 16), 32);
    assert_eq!(pick(q5_0), [-0.5, 0.0, 1.0, -8.0, 0.0]);
    let q5_1 = decode(7, &block(&[&scale[..], &minimum, &fifth].concat(), 16), 32);
    assert_eq!(pick(q5_1), [6.5, 7.0, 8.0, -1.0, 7.0]);
    let mut codes = block(&scale, 32);
    codes[3] = 0x80;
    assert_eq!(pick(decode(8, &codes, 32)), [23.5, -64.0, 0.0, 0.0, 0.0]);
}

#[test]
fn integers_and_unknown_types_have_no_decoder() {
    for code in [4, 5, 9, 24, 25, 26, 27, 31, 1000] {
        assert!(decoder(code).is_none(), "{code}");
    }
}

//! Quantised weights in their publishers' own forms → MLX's, or plain numbers.
//!
//! Owns which form is whose, and three of them: gpt-oss's blocks of mxfp4, 8-bit floating point with factors
//! (DeepSeek's, MiniMax's, Mistral's), and NVIDIA ModelOpt's nvfp4; the others are in files of their own. Which a model
//! has is in its configuration; what is not quantised stays as it is.

mod awq;
mod codes;
mod compressed;
mod gptq;

use std::collections::HashMap;

use mlx_rs::{Array, Dtype, ops};

use super::{
    error::{MlxError, Result},
    quantized::NVFP4_FULL_SCALE,
    sys,
};
use crate::models::PublisherFormat;

/// Replaces what is in a publisher's form among a model's arrays.
pub(super) fn convert(arrays: &mut HashMap<String, Array>, format: PublisherFormat) -> Result<()> {
    match format {
        PublisherFormat::Mxfp4Blocks => mxfp4_blocks(arrays),
        PublisherFormat::Fp8 { block } => fp8(arrays, block),
        PublisherFormat::Awq { group_size } => awq::convert(arrays, group_size),
        PublisherFormat::Gptq(format) => gptq::convert(arrays, format),
        PublisherFormat::CompressedTensors { block, stated_bits } => {
            compressed::convert(arrays, block, stated_bits)
        }
        PublisherFormat::ModelOptNvfp4 => nvfp4(arrays),
    }
}

/// The names that end so, without that.
fn stems(arrays: &HashMap<String, Array>, end: &str) -> Vec<String> {
    arrays.keys().filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect()
}

fn misshapen(name: &str, array: &Array, expected: &str) -> MlxError {
    MlxError::Weights(format!(
        "'{name}' is {:?} of shape {:?}, expected {expected}",
        array.dtype(),
        array.shape()
    ))
}

/// `{stem}_blocks` `(…, groups, 16)` and `{stem}_scales` `(…, groups)`, bytes both.
fn mxfp4_blocks(arrays: &mut HashMap<String, Array>) -> Result<()> {
    for stem in stems(arrays, "_blocks") {
        let (blocks_name, scales_name) = (format!("{stem}_blocks"), format!("{stem}_scales"));
        let Some(blocks) = arrays.remove(&blocks_name) else { continue };
        let scales = arrays
            .remove(&scales_name)
            .ok_or_else(|| MlxError::Weights(format!("'{scales_name}' is missing")))?;
        let shape = blocks.shape().to_vec();
        let [outer @ .., num_groups, 16] = shape.as_slice() else {
            return Err(misshapen(&blocks_name, &blocks, "bytes, 16 in a block"));
        };
        if blocks.dtype() != Dtype::Uint8 || scales.dtype() != Dtype::Uint8 {
            return Err(misshapen(&blocks_name, &blocks, "bytes"));
        }
        let words: Vec<i32> = outer.iter().copied().chain([num_groups * 16]).collect();
        let words = blocks.reshape(&words)?.view_dtype(Dtype::Uint32)?;
        arrays.insert(format!("{stem}.weight"), words);
        arrays.insert(format!("{stem}.scales"), scales);
    }
    Ok(())
}

/// `{stem}.weight` in bytes and `{stem}.weight_scale_inv`, a factor for each block, for each row or for all.
fn fp8(arrays: &mut HashMap<String, Array>, block: Option<(usize, usize)>) -> Result<()> {
    for end in [".weight_scale_inv", ".weight_scale"] {
        for stem in stems(arrays, end) {
            let name = format!("{stem}.weight");
            let Some(factors) = arrays.remove(&format!("{stem}{end}")) else { continue };
            let weight = arrays
                .get(&name)
                .ok_or_else(|| MlxError::Weights(format!("'{name}' is missing beside its factors")))?;
            let &[rows, columns] = weight.shape() else {
                return Err(misshapen(&name, weight, "a matrix of bytes"));
            };
            if weight.dtype() != Dtype::Uint8 {
                return Err(misshapen(&name, weight, "a matrix of bytes"));
            }
            let factors = factors.as_dtype(Dtype::Float32)?;
            let factors = match (factors.shape(), block) {
                ([] | [1] | [1, 1], _) => factors.reshape(&[1, 1])?,
                (&[num_rows] | &[num_rows, 1], _) if num_rows == rows => factors.reshape(&[rows, 1])?,
                (&[num_rows, num_columns], Some((block_rows, block_columns)))
                    if num_rows as usize == (rows as usize).div_ceil(block_rows)
                        && num_columns as usize == (columns as usize).div_ceil(block_columns) =>
                {
                    let each_row = ops::repeat_axis::<f32>(factors, block_rows as i32, 0)?;
                    let each = ops::repeat_axis::<f32>(each_row, block_columns as i32, 1)?;
                    let rows_of = sys::slice_axis(&each, 0, 0, rows as usize)?;
                    sys::slice_axis(&rows_of, 1, 0, columns as usize)?
                }
                _ => return Err(misshapen(&format!("{stem}{end}"), &factors, "a factor for each block")),
            };
            let numbers =
                sys::from_fp8(weight, Dtype::Float32)?.multiply(factors)?.as_dtype(Dtype::Bfloat16)?;
            numbers.eval()?;
            arrays.insert(name, numbers);
        }
    }
    drop_activation_scales(arrays);
    Ok(())
}

/// `{stem}.weight` in bytes of two numbers, `{stem}.weight_scale` and `{stem}.weight_scale_2`.
fn nvfp4(arrays: &mut HashMap<String, Array>) -> Result<()> {
    for stem in stems(arrays, ".weight_scale_2") {
        let name = |end: &str| format!("{stem}.{end}");
        let mut take = |end: &str| {
            let name = name(end);
            arrays.remove(&name).ok_or_else(|| MlxError::Weights(format!("'{name}' is missing")))
        };
        let (factor, scales, weight) = (take("weight_scale_2")?, take("weight_scale")?, take("weight")?);
        if weight.dtype() != Dtype::Uint8
            || scales.dtype() != Dtype::Uint8
            || weight.ndim() != 2
            || weight.dim(-1) % 4 != 0
            || factor.size() != 1
        {
            return Err(misshapen(
                &name("weight"),
                &weight,
                "a matrix of bytes, with scales in bytes and a factor",
            ));
        }
        let largest =
            factor.as_dtype(Dtype::Float32)?.reshape(&[])?.multiply(Array::from_f32(NVFP4_FULL_SCALE))?;
        arrays.insert(name("weight"), weight.view_dtype(Dtype::Uint32)?);
        arrays.insert(name("scales"), scales);
        arrays.insert(name("global_scale"), largest);
    }
    drop_activation_scales(arrays);
    Ok(())
}

/// Activations, keys and values stay as they are computed.
fn drop_activation_scales(arrays: &mut HashMap<String, Array>) {
    let of_activations = [
        ".input_scale",
        ".input_zero_point",
        ".input_global_scale",
        ".output_scale",
        ".output_zero_point",
        ".output_global_scale",
        ".activation_scale",
        ".q_scale",
        ".k_scale",
        ".v_scale",
        ".k_zero_point",
        ".v_zero_point",
    ];
    arrays.retain(|name, _| !of_activations.iter().any(|end| name.ends_with(end)));
}

#[cfg(test)]
mod cases;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::GptqFormat;

    fn bytes(numbers: &[u8], shape: &[i32]) -> Array {
        Array::from_slice(numbers, shape)
    }

    fn numbers(array: &Array) -> Vec<f32> {
        let wide = array.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap();
        wide.eval().unwrap();
        wide.to_vec_exact().unwrap()
    }

    #[test]
    fn blocks_of_mxfp4_become_words_in_the_same_order() {
        let blocks: Vec<u8> = (0..2 * 3 * 16).collect();
        let mut arrays = HashMap::from([
            ("e.gate_up_proj_blocks".to_owned(), bytes(&blocks, &[1, 2, 3, 16])),
            ("e.gate_up_proj_scales".to_owned(), bytes(&[127; 6], &[1, 2, 3])),
        ]);
        convert(&mut arrays, PublisherFormat::Mxfp4Blocks).unwrap();
        let words = &arrays["e.gate_up_proj.weight"];
        assert_eq!((words.shape(), words.dtype()), (&[1, 2, 12][..], Dtype::Uint32));
        words.eval().unwrap();
        assert_eq!(words.to_vec_exact::<u32>().unwrap()[13], u32::from_le_bytes([52, 53, 54, 55]));
        assert_eq!(arrays["e.gate_up_proj.scales"].shape(), [1, 2, 3]);
    }

    #[test]
    fn eight_bit_numbers_are_multiplied_by_the_factor_of_their_block_row_or_matrix() {
        // E4M3: 0x38 is 1, 0x40 is 2, 0xb8 is -1.
        let weight = || bytes(&[0x38, 0x40, 0xb8, 0x38, 0x38, 0x38], &[2, 3]);
        for (shape, factors, block, expected) in [
            (&[1, 2][..], &[10.0, 100.0][..], Some((2, 2)), [10.0, 20.0, -100.0, 10.0, 10.0, 100.0]),
            (&[2, 1], &[1.0, 3.0], None, [1.0, 2.0, -1.0, 3.0, 3.0, 3.0]),
            (&[1], &[0.5], None, [0.5, 1.0, -0.5, 0.5, 0.5, 0.5]),
        ] {
            let mut arrays = HashMap::from([
                ("a.weight".to_owned(), weight()),
                ("a.weight_scale_inv".to_owned(), Array::from_slice(factors, shape)),
                ("a.input_scale".to_owned(), Array::from_f32(1.0)),
                ("b.weight".to_owned(), Array::from_slice(&[1.5f32], &[1, 1])),
            ]);
            convert(&mut arrays, PublisherFormat::Fp8 { block }).unwrap();
            assert_eq!(numbers(&arrays["a.weight"]), expected);
            assert_eq!(numbers(&arrays["b.weight"]), [1.5]);
            assert_eq!(arrays.len(), 2);
        }
    }

    #[test]
    fn modelopts_factor_is_the_largest_number_over_that_of_both_formats() {
        let mut arrays = HashMap::from([
            ("a.weight".to_owned(), bytes(&[0x21; 8], &[1, 8])),
            ("a.weight_scale".to_owned(), bytes(&[0x38], &[1, 1])),
            ("a.weight_scale_2".to_owned(), Array::from_f32(0.25)),
        ]);
        convert(&mut arrays, PublisherFormat::ModelOptNvfp4).unwrap();
        assert_eq!(numbers(&arrays["a.global_scale"]), [0.25 * 2688.0]);
        assert_eq!((arrays["a.weight"].shape(), arrays["a.scales"].shape()), (&[1, 2][..], &[1, 1][..]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let floats = |rows: i32, columns: i32| ops::ones::<f32>(&[rows, columns]).unwrap();
        let cases = [
            (PublisherFormat::Mxfp4Blocks, "x_blocks", bytes(&[0; 8], &[1, 8])),
            (PublisherFormat::Fp8 { block: None }, "x.weight_scale_inv", Array::from_f32(1.0)),
            (PublisherFormat::ModelOptNvfp4, "x.weight_scale_2", Array::from_f32(1.0)),
            (PublisherFormat::Awq { group_size: 128 }, "x.qweight", Array::from_slice(&[1, 2], &[2, 1])),
            (
                PublisherFormat::Gptq(GptqFormat {
                    bits: 4,
                    group_size: None,
                    is_planar: false,
                    stores_zeros_less_one: true,
                }),
                "x.qweight",
                Array::from_slice(&[1, 2], &[2, 1]),
            ),
            (
                PublisherFormat::CompressedTensors { block: None, stated_bits: 0 },
                "x.weight_packed",
                Array::from_slice(&[1, 2], &[2, 1]),
            ),
            (
                PublisherFormat::CompressedTensors { block: None, stated_bits: 0 },
                "x.weight_scale",
                Array::from_slice(&[1.0f32, 2.0], &[2, 1]),
            ),
        ];
        for (format, name, array) in cases {
            let mut arrays = HashMap::from([(name.to_owned(), array)]);
            let message = convert(&mut arrays, format).unwrap_err().to_string();
            assert!(message.contains("'x"), "{message}");
        }
        // 3 bits in an order of their own, and words of other bits than are said.
        let planar = PublisherFormat::Gptq(GptqFormat {
            bits: 4,
            group_size: None,
            is_planar: true,
            stores_zeros_less_one: false,
        });
        let stated = PublisherFormat::CompressedTensors { block: None, stated_bits: 1 << 3 };
        let words = |rows: i32, columns: i32| ops::zeros::<i32>(&[rows, columns]).unwrap();
        for (format, parts, told) in [
            (
                planar,
                vec![("qweight", words(3, 8)), ("scales", floats(1, 8)), ("g_idx", words(1, 32))],
                "gptq_p",
            ),
            (
                stated,
                vec![
                    ("weight_packed", words(8, 4)),
                    ("weight_scale", floats(8, 1)),
                    ("weight_shape", Array::from_slice(&[8, 32], &[2])),
                ],
                "num_bits",
            ),
        ] {
            let mut arrays = parts.into_iter().map(|(end, array)| (format!("x.{end}"), array)).collect();
            let message = convert(&mut arrays, format).unwrap_err().to_string();
            assert!(message.contains(told), "{message}");
        }
        // Matrices without outputs.
        let empty = |rows: i32, columns: i32| ops::zeros::<i32>(&[rows, columns]).unwrap();
        let gptq = PublisherFormat::Gptq(GptqFormat {
            bits: 4,
            group_size: None,
            is_planar: false,
            stores_zeros_less_one: true,
        });
        for (format, parts) in [
            (gptq, vec![("qweight", empty(4, 0)), ("qzeros", empty(1, 0)), ("scales", empty(1, 0))]),
            (
                PublisherFormat::CompressedTensors { block: None, stated_bits: 0 },
                vec![
                    ("weight_packed", empty(0, 4)),
                    ("weight_scale", empty(0, 1)),
                    ("weight_zero_point", empty(0, 1)),
                    ("weight_shape", Array::from_slice(&[0, 32], &[2])),
                ],
            ),
            (
                PublisherFormat::CompressedTensors { block: None, stated_bits: 0 },
                vec![
                    ("weight_packed", empty(8, 4)),
                    ("weight_scale", empty(8, 1)),
                    ("weight_shape", Array::from_slice(&[8, -32], &[2])),
                ],
            ),
        ] {
            let named = |(end, array)| (format!("x.{end}"), array);
            let mut arrays: HashMap<String, Array> = parts.into_iter().map(named).collect();
            let message = convert(&mut arrays, format).unwrap_err().to_string();
            assert!(message.contains("'x."), "{message}");
        }
        for factors in [&[3][..], &[1, 2], &[7, 7]] {
            let count = factors.iter().product::<i32>() as usize;
            let mut arrays = HashMap::from([
                ("x.weight".to_owned(), bytes(&[0; 6], &[2, 3])),
                ("x.weight_scale_inv".to_owned(), Array::from_slice(&vec![1.0f32; count], factors)),
            ]);
            let format = PublisherFormat::Fp8 { block: Some((1, 1)) };
            assert!(convert(&mut arrays, format).is_err(), "{factors:?}");
        }
    }
}

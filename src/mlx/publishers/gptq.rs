//! GPTQ's words → MLX's affine form, or plain numbers where groups are not one after the other.
//!
//! Owns their layout (AutoGPTQ's and GPTQModel's `gptq` and `gptq_v2`): `qweight` `(inputs · bits / 32, outputs)` with
//! the codes of consecutive inputs one after the other, `qzeros` `(groups, outputs · bits / 32)`, `scales`
//! `(groups, outputs)`, and the group of each input in `g_idx`, which follows the order of importance where that was
//! asked for (`desc_act`).

use std::collections::HashMap;

use mlx_rs::{Array, Dtype};

use super::{
    codes::{Codes, unpacked, words_of},
    misshapen, stems,
};
use crate::{
    mlx::error::{MlxError, Result},
    models::GptqFormat,
};

pub(super) fn convert(arrays: &mut HashMap<String, Array>, format: GptqFormat) -> Result<()> {
    for stem in stems(arrays, ".qweight") {
        let mut take = |end: &str| arrays.remove(&format!("{stem}.{end}"));
        let (words, scales, zeros, groups) = (take("qweight"), take("scales"), take("qzeros"), take("g_idx"));
        let (Some(words), Some(scales)) = (words, scales) else {
            return Err(MlxError::Weights(format!("'{stem}.scales' is missing")));
        };
        codes(&stem, (&words, &scales, zeros.as_ref(), groups.as_ref()), format)?.store(arrays, &stem)?;
    }
    Ok(())
}

fn codes(
    stem: &str,
    (words, scales, zeros, groups): (&Array, &Array, Option<&Array>, Option<&Array>),
    format: GptqFormat,
) -> Result<Codes> {
    let name = format!("{stem}.qweight");
    let wrong = || {
        misshapen(
            &name,
            words,
            "words of codes along the inputs, with scales, zeros and groups that fit them",
        )
    };
    let (&[num_words, outputs], &[num_groups, of_scales]) = (words.shape(), scales.shape()) else {
        return Err(wrong());
    };
    let are_words = |array: &Array| array.dtype() == Dtype::Int32;
    if of_scales != outputs
        || !are_words(words)
        || !zeros.is_none_or(are_words)
        || num_groups < 1
        || outputs < 1
    {
        return Err(wrong());
    }
    let (outputs, num_groups) = (outputs as usize, num_groups as usize);
    // Single matrices may have other bits than the configuration says of all.
    let fits = |bits: usize| {
        let num_bits = num_words as usize * 32;
        let num_inputs = num_bits / bits;
        num_bits.is_multiple_of(bits)
            && Codes::fits(num_inputs, bits)
            && zeros.is_none_or(|zeros| {
                zeros.shape() == [num_groups as i32, (outputs * bits).div_ceil(32) as i32]
            })
            && match groups {
                Some(groups) => groups.size() == num_inputs,
                None => {
                    num_inputs.is_multiple_of(num_groups)
                        || ragged_groups(format.group_size, (num_inputs, num_groups)).is_some()
                }
            }
    };
    let bits = [format.bits, 4, 8, 3, 2].into_iter().find(|&bits| fits(bits)).ok_or_else(wrong)?;
    if format.is_planar && 32 % bits != 0 {
        return Err(MlxError::Weights(format!(
            "'{name}' has {bits} bits, which gptq_p packs in an order of its own"
        )));
    }
    let num_inputs = num_words as usize * 32 / bits;
    let groups = match groups {
        None => ragged_groups(format.group_size, (num_inputs, num_groups)),
        Some(groups) => uneven_groups(groups, (num_inputs, num_groups)).ok_or_else(wrong)?,
    };
    let zeros = match zeros {
        Some(zeros) => {
            let numbers = zeros_of(&words_of(zeros)?, bits, (num_groups, outputs), format);
            Array::from_slice(&numbers, &[num_groups as i32, outputs as i32])
        }
        // Symmetric.
        None => mlx_rs::ops::full::<f32>(scales.shape(), Array::from_f32((1 << (bits - 1)) as f32))?,
    };
    Ok(Codes {
        words: words.view_dtype(Dtype::Uint32)?.t().contiguous()?,
        bits,
        scales: scales.t().as_dtype(Dtype::Float32)?.contiguous()?,
        zeros: zeros.t().contiguous()?,
        groups,
    })
}

/// The groups of inputs where the last is smaller than the others.
fn ragged_groups(group_size: Option<usize>, (num_inputs, num_groups): (usize, usize)) -> Option<Array> {
    let size =
        group_size.filter(|size| num_inputs % size != 0 && num_inputs.div_ceil(*size) == num_groups)?;
    let groups: Vec<i32> = (0..num_inputs).map(|input| (input / size) as i32).collect();
    Some(Array::from_slice(&groups, &[num_inputs as i32]))
}

/// The groups of inputs; none where they are one after the other. `None` where they are no groups.
fn uneven_groups(groups: &Array, (num_inputs, num_groups): (usize, usize)) -> Option<Option<Array>> {
    let groups = groups.as_dtype(Dtype::Int32).ok()?.contiguous().ok()?;
    groups.eval().ok()?;
    let found = groups.to_vec_exact::<i32>().ok()?;
    if found.iter().any(|&group| group < 0 || group as usize >= num_groups) {
        return None;
    }
    let size = num_inputs / num_groups;
    let are_even = num_inputs.is_multiple_of(num_groups)
        && found.iter().enumerate().all(|(input, &group)| group as usize == input / size);
    Some((!are_even).then(|| Array::from_slice(&found, &[num_inputs as i32])))
}

/// The zeros of each group and output, one group after the other. The first form stores them less one: whole words were
/// lessened, so that a zero of 0 has borrowed from the next, but where codes lie across words each one was.
fn zeros_of(
    words: &[u32],
    bits: usize,
    (num_groups, outputs): (usize, usize),
    format: GptqFormat,
) -> Vec<f32> {
    let ones = (0..32).step_by(bits).fold(0u32, |ones, shift| ones | 1 << shift);
    let (added_to_words, added) = match (format.stores_zeros_less_one, 32 % bits) {
        (false, _) => (0, 0),
        (true, 0) => (ones, 0),
        (true, _) => (0, 1),
    };
    let words: Vec<u32> = words.iter().map(|word| word.wrapping_add(added_to_words)).collect();
    let of_group = words.chunks(words.len() / num_groups);
    let all = of_group.flat_map(|words| unpacked(words, bits, outputs));
    all.map(|zero| ((zero + added) & ((1 << bits) - 1)) as f32).collect()
}

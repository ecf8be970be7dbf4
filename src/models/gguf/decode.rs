//! Decoders of ggml's tensor types to f32: pure functions from the bytes of blocks to numbers.
//!
//! Owns what the bytes of each type mean. Results equal those of gguf-py's `quants.py` bit for bit:
//! the same operations in f32 in the same order, none fused. Sizes of blocks are `types.rs`'s; reading
//! the bytes and making tensors of the numbers is for the loader.

mod classic;
mod codebook;
mod grids;
mod iq;
mod k;
#[cfg(test)]
mod tests;

pub(super) use self::k::{
    AffineGroups, GroupsOf, q2_k_groups, q3_k_groups, q4_k_group, q5_k_group, q6_k_groups,
};

/// Decodes whole blocks of one type: `bytes` are n blocks, `values` n × block size numbers.
///
/// Panics when the two do not belong together; every content of the bytes is fine.
pub type Decode = fn(bytes: &[u8], values: &mut [f32]);

/// Looks up how tensors of the type with this code are decoded.
///
/// `None` for codes that are unknown, for integers (I8 to I64), which hold no weights, and for Q8_1,
/// which ggml makes only while it multiplies.
pub fn decoder(type_code: u32) -> Option<Decode> {
    let decode: Decode = match type_code {
        0 => |bytes, values| each_block(bytes, values, classic::f32),
        1 => |bytes, values| each_block(bytes, values, classic::f16),
        2 => |bytes, values| each_block(bytes, values, classic::q4_0),
        3 => |bytes, values| each_block(bytes, values, classic::q4_1),
        6 => |bytes, values| each_block(bytes, values, classic::q5_0),
        7 => |bytes, values| each_block(bytes, values, classic::q5_1),
        8 => |bytes, values| each_block(bytes, values, classic::q8_0),
        10 => |bytes, values| each_block(bytes, values, k::q2_k),
        11 => |bytes, values| each_block(bytes, values, k::q3_k),
        12 => |bytes, values| each_block(bytes, values, k::q4_k),
        13 => |bytes, values| each_block(bytes, values, k::q5_k),
        14 => |bytes, values| each_block(bytes, values, k::q6_k),
        15 => |bytes, values| each_block(bytes, values, k::q8_k),
        16 => |bytes, values| each_block(bytes, values, iq::iq2_xxs),
        17 => |bytes, values| each_block(bytes, values, iq::iq2_xs),
        18 => |bytes, values| each_block(bytes, values, iq::iq3_xxs),
        19 => |bytes, values| each_block(bytes, values, iq::iq1_s),
        20 => |bytes, values| each_block(bytes, values, codebook::iq4_nl),
        21 => |bytes, values| each_block(bytes, values, iq::iq3_s),
        22 => |bytes, values| each_block(bytes, values, iq::iq2_s),
        23 => |bytes, values| each_block(bytes, values, codebook::iq4_xs),
        28 => |bytes, values| each_block(bytes, values, classic::f64),
        29 => |bytes, values| each_block(bytes, values, iq::iq1_m),
        30 => |bytes, values| each_block(bytes, values, classic::bf16),
        34 => |bytes, values| each_block(bytes, values, k::tq1_0),
        35 => |bytes, values| each_block(bytes, values, k::tq2_0),
        39 => |bytes, values| each_block(bytes, values, codebook::mxfp4),
        40 => |bytes, values| each_block(bytes, values, codebook::nvfp4),
        _ => return None,
    };
    Some(decode)
}

/// Applies the decoder of one block of B bytes and N numbers to every block.
fn each_block<const B: usize, const N: usize>(
    bytes: &[u8],
    values: &mut [f32],
    decode_block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (blocks, rest) = bytes.as_chunks::<B>();
    let (outs, rest_out) = values.as_chunks_mut::<N>();
    assert!(
        rest.is_empty() && rest_out.is_empty() && blocks.len() == outs.len(),
        "bytes and values are the same whole blocks"
    );
    for (block, out) in blocks.iter().zip(outs) {
        decode_block(block, out);
    }
}

/// The little-endian number of 16 bits at a place of a block.
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The little-endian number of 32 bits at a place of a block.
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}

/// The half-precision number at a place of a block.
pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16_at(block, at))
}

/// Widens a half-precision number, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let fraction = u32::from(bits & 0x03ff);
    let magnitude = match u32::from(bits >> 10) & 0x1f {
        // Subnormal: multiples of 2^-24.
        0 => (fraction as f32 * f32::from_bits((127 - 24) << 23)).to_bits(),
        // Infinity and NaN.
        31 => 0x7f80_0000 | fraction << 13,
        exponent => (exponent + (127 - 15)) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

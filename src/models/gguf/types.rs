//! ggml's tensor types and how many bytes a tensor of each takes.
//!
//! Owns the table of block sizes. Which types can be loaded is for whoever loads them.

/// The element type of a GGUF tensor; quantised types store blocks of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType {
    code: u32,
    name: &'static str,
    num_block_elements: u64,
    block_bytes: u64,
}

/// Code, name, elements in a block, bytes of a block.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

impl GgmlType {
    /// Looks a type up by the number that stands for it in the file.
    pub fn from_code(code: u32) -> Option<GgmlType> {
        let &(code, name, num_block_elements, block_bytes) = TYPES.iter().find(|row| row.0 == code)?;
        Some(GgmlType { code, name, num_block_elements, block_bytes })
    }

    /// Returns the number that stands for this type in the file.
    pub fn code(self) -> u32 {
        self.code
    }

    /// Returns the type's name as ggml spells it, for example `Q4_K`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Returns the number of elements that are stored together.
    pub fn num_block_elements(self) -> usize {
        self.num_block_elements as usize
    }

    /// Returns what a block takes in the file.
    pub fn block_bytes(self) -> usize {
        self.block_bytes as usize
    }

    /// Computes a tensor's size from its dimensions, fastest first.
    ///
    /// `None` when a dimension is zero, when the fastest one is not made of whole blocks or when
    /// the size is beyond 64 bits.
    pub(super) fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        let (&row, rest) = dims.split_first()?;
        if dims.contains(&0) || row % self.num_block_elements != 0 {
            return None;
        }
        let row_bytes = (row / self.num_block_elements).checked_mul(self.block_bytes)?;
        rest.iter().try_fold(row_bytes, |bytes, dim| bytes.checked_mul(*dim))
    }
}

//! The values that GGUF metadata hold.
//!
//! Owns their types and how numbers are decoded. Reading them within bounds is `reader`'s, what a
//! key's value means its user's business.

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Box<str>),
    Strings(Vec<Box<str>>),
    Numbers(GgufNumbers),
    /// Arrays of arrays; no known key uses them.
    Nested(Vec<GgufValue>),
}

/// An array of numbers or booleans, kept as the file's own bytes so that it costs no more memory
/// than it takes in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufNumbers {
    pub(super) kind: Scalar,
    pub(super) bytes: Vec<u8>,
}

impl GgufNumbers {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.num_bytes()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Decodes the elements one by one.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue> + '_ {
        self.bytes.chunks_exact(self.kind.num_bytes()).filter_map(|bytes| self.kind.decode(bytes))
    }
}

/// The types of metadata values that have a fixed width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Scalar {
    /// Looks a type up by the number that stands for it in the file.
    pub(super) fn from_code(code: u32) -> Option<Scalar> {
        Some(match code {
            0 => Scalar::U8,
            1 => Scalar::I8,
            2 => Scalar::U16,
            3 => Scalar::I16,
            4 => Scalar::U32,
            5 => Scalar::I32,
            6 => Scalar::F32,
            7 => Scalar::Bool,
            10 => Scalar::U64,
            11 => Scalar::I64,
            12 => Scalar::F64,
            _ => return None,
        })
    }

    /// Returns the width in the file.
    pub(super) fn num_bytes(self) -> usize {
        match self {
            Scalar::U8 | Scalar::I8 | Scalar::Bool => 1,
            Scalar::U16 | Scalar::I16 => 2,
            Scalar::U32 | Scalar::I32 | Scalar::F32 => 4,
            Scalar::U64 | Scalar::I64 | Scalar::F64 => 8,
        }
    }

    /// Decodes exactly [`Self::num_bytes`] bytes; `None` for any other number of them.
    pub(super) fn decode(self, bytes: &[u8]) -> Option<GgufValue> {
        Some(match self {
            Scalar::U8 => GgufValue::Unsigned(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::I8 => GgufValue::Signed(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::U16 => GgufValue::Unsigned(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::I16 => GgufValue::Signed(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::U32 => GgufValue::Unsigned(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::I32 => GgufValue::Signed(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::F32 => GgufValue::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Scalar::Bool => GgufValue::Bool(u8::from_le_bytes(bytes.try_into().ok()?) != 0),
            Scalar::U64 => GgufValue::Unsigned(u64::from_le_bytes(bytes.try_into().ok()?)),
            Scalar::I64 => GgufValue::Signed(i64::from_le_bytes(bytes.try_into().ok()?)),
            Scalar::F64 => GgufValue::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        })
    }
}

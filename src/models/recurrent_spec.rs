//! The description of recurrent layers: what they compute and how much state they keep.
//!
//! Owns their dimensions as plain numbers and the sizes that follow from them. Layers of keys and
//! values are `spec`'s, the arithmetic is `mlx/recurrent`'s.

/// A layer that keeps a state of fixed size instead of keys and values.
#[derive(Debug, Clone, PartialEq)]
pub enum RecurrentSpec {
    GatedDelta(GatedDeltaSpec),
    ShortConv(ShortConvSpec),
    Mamba2(Mamba2Spec),
}

impl RecurrentSpec {
    /// Bytes of this layer's state of one sequence.
    pub fn state_bytes(&self, hidden_size: usize, bytes_per_element: usize) -> usize {
        match self {
            Self::GatedDelta(spec) => {
                let tail = (spec.kernel_size - 1) * spec.conv_width() * bytes_per_element;
                let memory = spec.num_value_heads * spec.key_head_dim * spec.value_head_dim;
                tail + memory * size_of::<f32>()
            }
            Self::ShortConv(spec) => (spec.kernel_size - 1) * hidden_size * bytes_per_element,
            Self::Mamba2(spec) => {
                let tail = (spec.kernel_size - 1) * spec.conv_width() * bytes_per_element;
                tail + spec.inner_width() * spec.state_dim * size_of::<f32>()
            }
        }
    }

    /// Elements of this layer's matrices.
    pub fn num_matrix_elements(&self, hidden_size: usize) -> usize {
        let per_input = match self {
            Self::GatedDelta(spec) => return spec.num_matrix_elements(hidden_size),
            Self::ShortConv(_) => 4 * hidden_size,
            Self::Mamba2(spec) => spec.projected_width() + spec.inner_width(),
        };
        per_input.saturating_mul(hidden_size)
    }
}

/// Gated delta net: a matrix per head that keys write to and queries read from, and that fades with each token
/// (arXiv 2412.06464; with decays by dimension arXiv 2510.26692).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatedDeltaSpec {
    /// Heads of values; a multiple of the heads of queries and keys.
    pub num_value_heads: usize,
    pub num_key_heads: usize,
    pub key_head_dim: usize,
    pub value_head_dim: usize,
    /// Positions that the convolution over queries, keys and values sees; at least 2.
    pub kernel_size: usize,
    pub projections: DeltaProjections,
    /// Whether each dimension of a head's keys fades by a factor of its own, and not the head as a whole.
    pub decays_by_dimension: bool,
    /// Width that decays and output gates are made through; `None`: they are made at once.
    pub gate_rank: Option<usize>,
    pub gate: DeltaGate,
}

/// Which matrices hold the projections of a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaProjections {
    /// One makes queries, keys and values, with one convolution (Qwen3.5).
    Joined,
    /// Two hold all, key head by key head: one queries, keys, values and output gates, one write strengths and decays
    /// (Qwen3-Next). Cut at load, they are the same.
    ByKeyHead,
    /// Queries, keys and values have one and a convolution each (Kimi Linear).
    Apart,
}

/// What becomes of output gates before what is read is multiplied by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaGate {
    Silu,
    Sigmoid,
}

impl GatedDeltaSpec {
    /// Width of all decays of a token.
    pub fn decay_width(&self) -> usize {
        self.num_value_heads * self.decay_dim()
    }

    /// Decays of a head.
    pub fn decay_dim(&self) -> usize {
        if self.decays_by_dimension { self.key_head_dim } else { 1 }
    }

    fn num_matrix_elements(&self, hidden_size: usize) -> usize {
        let gates = self.decay_width() + self.value_width();
        let per_input = self.conv_width() + self.num_value_heads + self.value_width();
        match self.gate_rank {
            None => (per_input + gates).saturating_mul(hidden_size),
            Some(rank) => {
                (per_input + 2 * rank).saturating_mul(hidden_size).saturating_add(rank.saturating_mul(gates))
            }
        }
    }

    /// Width of all queries, and of all keys.
    pub fn key_width(&self) -> usize {
        self.num_key_heads * self.key_head_dim
    }

    /// Width of all values.
    pub fn value_width(&self) -> usize {
        self.num_value_heads * self.value_head_dim
    }

    /// Channels of the convolution: queries, keys, values.
    pub fn conv_width(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}

/// Gated convolution over the last few positions, of the hidden size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortConvSpec {
    /// Positions that the convolution sees, the present one among them; at least 2.
    pub kernel_size: usize,
    /// Whether the convolution and both projections have a bias.
    pub bias: bool,
}

/// Mamba-2's state-space layer (arXiv 2405.21060): a matrix per head that fades by one factor a token, to which
/// inputs are written and from which outputs are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mamba2Spec {
    pub num_heads: usize,
    pub head_dim: usize,
    /// Groups of heads that write and read with the same vectors; divides `num_heads`.
    pub num_groups: usize,
    /// Width of these vectors.
    pub state_dim: usize,
    /// Positions that the convolution over inputs and vectors sees; at least 2.
    pub kernel_size: usize,
    pub conv_bias: bool,
    pub input_bias: bool,
    pub output_bias: bool,
    /// The least and the greatest step of a token; the latter may be infinite.
    pub step_limits: (f32, f32),
    pub norm: StateNorm,
}

/// What becomes of what is read from states, which gates multiply; norms go by group of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateNorm {
    None,
    BeforeGates,
    AfterGates,
}

impl Mamba2Spec {
    /// Width of the inputs of all heads, of their outputs and of the gates.
    pub fn inner_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of what all groups write with, and of what they read with.
    pub fn group_width(&self) -> usize {
        self.num_groups * self.state_dim
    }

    /// Channels of the convolution: inputs, what is written with, what is read with.
    pub fn conv_width(&self) -> usize {
        self.inner_width() + 2 * self.group_width()
    }

    /// Outputs of the input projection: gates, what is convolved, a step for each head.
    pub fn projected_width(&self) -> usize {
        self.inner_width() + self.conv_width() + self.num_heads
    }
}

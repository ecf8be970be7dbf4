//! The description of what each position computes by itself: dense MLPs and mixtures of experts.
//!
//! Owns their dimensions and how tokens are routed, as plain numbers. What looks at other positions is
//! `spec`'s and `recurrent_spec`'s, the arithmetic `mlx/`'s.

/// What a layer computes of each position after its mixer.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    Dense(DenseSpec),
    Moe(MoeSpec),
    /// Both of the same rows, each with norms of its own before and after, added up (Gemma 4).
    DenseAndMoe(DenseSpec, MoeSpec),
}

impl MlpSpec {
    /// The dense part, if there is one.
    pub fn dense(&self) -> Option<&DenseSpec> {
        match self {
            Self::Dense(dense) | Self::DenseAndMoe(dense, _) => Some(dense),
            Self::Moe(_) => None,
        }
    }

    /// The mixture of experts, if there is one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match self {
            Self::Dense(_) => None,
            Self::Moe(moe) | Self::DenseAndMoe(_, moe) => Some(moe),
        }
    }

    /// Elements of the matrices that every token goes through.
    pub fn num_dense_elements(&self, hidden_size: usize) -> usize {
        let dense = self.dense().map_or(0, |dense| dense.num_elements(hidden_size));
        let moe = self.moe().map_or(0, |moe| {
            let shared = moe.shared.map_or(0, |shared| shared.mlp.num_elements(hidden_size));
            let latent = moe.latent_size.unwrap_or(0).saturating_mul(2);
            shared.saturating_add(moe.num_experts.saturating_add(latent).saturating_mul(hidden_size))
        });
        dense.saturating_add(moe)
    }

    /// Elements of all experts' matrices, of which each token goes through a few.
    pub fn num_expert_elements(&self, hidden_size: usize) -> usize {
        let of = |moe: &MoeSpec| {
            let width = moe.latent_size.unwrap_or(hidden_size);
            moe.expert.num_elements(width).saturating_mul(moe.num_experts)
        };
        self.moe().map_or(0, of)
    }
}

/// `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` where the activation has no gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseSpec {
    pub intermediate_size: usize,
    pub activation: Activation,
    /// Whether its projections have biases.
    pub bias: bool,
}

impl DenseSpec {
    fn num_elements(&self, hidden_size: usize) -> usize {
        let num_matrices = if self.activation.has_gate() { 3 } else { 2 };
        self.intermediate_size.saturating_mul(num_matrices).saturating_mul(hidden_size)
    }
}

/// What is made of a gate and what it is a gate for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// gpt-oss's: the gate is cut above at `limit`, what it gates to `±limit`; then
    /// `gate · sigmoid(sharpness · gate) · (up + 1)`.
    ClampedSilu {
        limit: f32,
        sharpness: f32,
    },
    /// The square of what is positive: each number is its own gate, `max(x, 0) · x`.
    SquaredRelu,
}

impl Activation {
    /// Whether there is a matrix for gates beside the one for what they gate.
    pub fn has_gate(self) -> bool {
        self != Self::SquaredRelu
    }
}

/// Some experts, MLPs of the same shape, of which each token goes through the few that a router chooses;
/// their results are added up by weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeSpec {
    pub num_experts: usize,
    /// Experts that each token goes through.
    pub num_per_token: usize,
    pub expert: DenseSpec,
    /// Width of what experts see and make, to which and from which all share a matrix; `None`: the hidden size.
    pub latent_size: Option<usize>,
    pub routing: RoutingSpec,
    /// An MLP beside the experts that every token goes through.
    pub shared: Option<SharedExpertSpec>,
}

/// How experts are chosen for a token, and with which weight each counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingSpec {
    pub score: RouterScore,
    /// Whether the router's projection has a bias.
    pub router_bias: bool,
    /// Whether there is a number for each expert that is added to its score for the choice alone
    /// (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    pub selection_bias: bool,
    /// Only experts of the best groups are chosen.
    pub groups: Option<ExpertGroups>,
    /// The chosen experts' scores are divided by their sum and this; `None`: they are the weights.
    pub normalised: Option<f32>,
    /// Factor on the weights.
    pub scale: f32,
    /// Whether there is a further factor for each expert.
    pub per_expert_scale: bool,
    /// The router sees its rows normed by themselves and times a weight of its own (Gemma 4).
    pub own_norm: bool,
}

impl RoutingSpec {
    /// Softmax over all experts; the chosen ones' scores are made to add up to 1 where `normalised`.
    pub const fn softmax(normalised: bool) -> Self {
        Self {
            score: RouterScore::Softmax,
            router_bias: false,
            selection_bias: false,
            groups: None,
            normalised: if normalised { Some(0.0) } else { None },
            scale: 1.0,
            per_expert_scale: false,
            own_norm: false,
        }
    }
}

/// What the router's logits become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterScore {
    /// Over all experts. Where the chosen ones' scores are normalised, this is the softmax over these.
    Softmax,
    /// Of each by itself.
    Sigmoid,
}

/// Experts in groups that follow each other, of the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    pub num_groups: usize,
    pub num_kept: usize,
    pub score: GroupScore,
}

/// What ranks a group of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek-V2).
    Best,
    /// The sum of its two best experts (DeepSeek-V3).
    TwoBest,
}

/// An MLP beside the experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SharedExpertSpec {
    pub mlp: DenseSpec,
    /// Whether it counts by the sigmoid of a projection to one number.
    pub gated: bool,
}

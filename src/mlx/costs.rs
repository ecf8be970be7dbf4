//! What a decode step costs on each kind of device, as far as it decides what rows attend to together.
//!
//! Owns the constants in which device kinds differ and the questions that they answer. What is divided by
//! the answers is `cohort`'s business.

use super::device::ComputeDevice;

/// Constants of one device. They weigh one way of computing the same against another; only their ratios count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// `None`: rows see tokens wherever they lie at the same cost, and copies side by side are of no use.
    pieces: Option<PieceCosts>,
    /// Tokens that pieces are joined up to for several rows, which then are there twice.
    max_joined_tokens: usize,
    /// How many times its tokens' memory a slab may take: what a row sees apart costs a piece.
    max_padding: f64,
    /// Whether pieces are attended to in float32 whatever they are stored in.
    widens_pieces: bool,
    /// Of the operations that matrix products, and a softmax between them, are.
    products_ns: f64,
    /// What a score costs more in a loop over its keys and values than as one of a product, and a number of those.
    loop_score_ns: f64,
    loop_number_ns: f64,
    /// Of work that another thread is asked for.
    thread_ns: f64,
}

/// What it costs to see tokens elsewhere than in the slab.
#[derive(Debug, Clone, Copy)]
struct PieceCosts {
    /// Of one more piece of keys that rows attend to apart, in one layer.
    piece_ns: f64,
    /// Of KV that is read.
    ns_per_byte: f64,
}

impl Costs {
    pub(super) fn of(device: ComputeDevice) -> Self {
        match device {
            // SmolLM2 on two cores decodes 16 rows on a prefix of 795 tokens at 101 tokens/s where they attend to
            // it by products, at 80 where each does by itself; at 64 tokens it is all the same. Prompts of 20 and of 35 tokens behind one of 80 take 0.7 and 0.9 times as long in loops.
            ComputeDevice::Cpu => Self {
                pieces: None,
                max_joined_tokens: 512,
                max_padding: 2.5,
                widens_pieces: false,
                products_ns: 2e5,
                loop_score_ns: 2.0,
                loop_number_ns: 0.05,
                thread_ns: 3e4,
            },
            // Seven launches of two microseconds, and 100 GB/s: what a small Mac has.
            ComputeDevice::Gpu => Self {
                pieces: Some(PieceCosts { piece_ns: 1.4e4, ns_per_byte: 0.01 }),
                max_joined_tokens: usize::MAX,
                max_padding: 2.0,
                widens_pieces: true,
                products_ns: 0.0,
                loop_score_ns: 0.0,
                loop_number_ns: 0.0,
                thread_ns: f64::INFINITY,
            },
        }
    }

    /// Whether nothing is copied into the slab, which then holds what rows have computed since they joined.
    pub(super) fn sees_in_place(&self) -> bool {
        self.pieces.is_none()
    }

    /// Whether so many rows attend to tokens that all of them begin with better once together than each to a
    /// copy among its own; `token_bytes` are a token's in one layer.
    pub(super) fn are_shared(&self, num_rows: usize, num_tokens: usize, token_bytes: f64) -> bool {
        self.pieces.is_none_or(|PieceCosts { piece_ns, ns_per_byte }| {
            let num_spared = num_rows.saturating_sub(1) as f64 * num_tokens as f64;
            num_rows > 1 && num_spared * token_bytes * ns_per_byte >= piece_ns
        })
    }

    /// Whether rows attend better by so many matrix products each way than in a loop over all that each sees: to so
    /// many scores, of keys and values that have so many numbers together.
    pub(super) fn are_products(&self, num_products: usize, num_scores: usize, num_numbers: usize) -> bool {
        self.loop_ns(num_scores, num_numbers) >= num_products as f64 * self.products_ns
    }

    /// How long a loop over so many scores takes, of keys and values that have so many numbers together.
    fn loop_ns(&self, num_scores: usize, num_numbers: usize) -> f64 {
        num_scores as f64 * (self.loop_score_ns + self.loop_number_ns * num_numbers as f64)
    }

    /// How many threads such a loop is worth.
    pub(super) fn loop_threads(&self, num_scores: usize, num_numbers: usize) -> usize {
        1 + (self.loop_ns(num_scores, num_numbers) / self.thread_ns) as usize
    }

    /// Whether a piece is kept in float32 for as long as rows see it: to widen it at each step would read and write
    /// it several times.
    pub(super) fn are_widened(&self) -> bool {
        self.widens_pieces
    }

    /// Whether neighbouring pieces become one of so many tokens, for all rows that see both.
    pub(super) fn are_joined(&self, num_rows: usize, num_tokens: usize) -> bool {
        num_tokens <= self.max_joined_tokens && (num_rows > 1 || !self.sees_in_place())
    }

    /// Whether rows of these lengths may lie side by side: those that are shorter than the longest are padded,
    /// which takes memory and, on a GPU, time.
    pub(super) fn are_even(&self, lengths: &[usize]) -> bool {
        let num_tokens: usize = lengths.iter().sum();
        let num_padded = lengths.iter().max().map_or(0, |longest| longest * lengths.len());
        num_padded as f64 <= self.max_padding * num_tokens as f64 + (16 * lengths.len()) as f64
    }
}

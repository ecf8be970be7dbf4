//! What a decode step launches on a GPU, counted in the graph of its pass.
//!
//! Owns the counting: operations that only make views cost nothing, a concatenation one launch an input, a
//! padding two. MLX's fused operations fall back on several on a CPU, and count as one.

use std::collections::{HashMap, HashSet};

use mlx_rs::fast;

use super::*;
use crate::engine::{Choice, SamplingParams};
use crate::mlx::{ComputeDevice, ComputeDtype, WeightSource};
use crate::models::read_config;

const NUM_LAYERS: usize = 4;

/// mlx-lm's batch generator, whatever the width.
const REFERENCE: usize = 83;

const VIEWS: [&str; 13] = [
    "Reshape",
    "Transpose",
    "Slice",
    "ExpandDims",
    "Squeeze",
    "Broadcast",
    "View",
    "Flatten",
    "Unflatten",
    "StopGradient",
    "AsStrided",
    "BroadcastAxes",
    "Split",
];

/// Launches of what is not computed yet, and how many arrays it begins with.
fn launches(outputs: &[Array]) -> (usize, usize) {
    let graph = sys::graph_of(outputs);
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut num_inputs: HashMap<&str, usize> = HashMap::new();
    let mut sources = HashSet::new();
    for line in graph.lines() {
        if let Some((node, rest)) = line.trim_start_matches("{ ").split_once(" [label =\"") {
            // Some are told with the type that they view as.
            names.insert(node, rest.split(['"', ' ']).next().unwrap_or_default());
        } else if let Some((_, node)) = line.split_once("\" -> ") {
            *num_inputs.entry(node).or_default() += 1;
        } else if let Some(source) = line.strip_prefix("{ rank=source; ") {
            sources.insert(source);
        }
    }
    let launches_of = |(node, name): (&&str, &&str)| match *name {
        name if VIEWS.contains(&name) => 0,
        "Concatenate" => num_inputs[node],
        "Pad" => 2,
        _ => 1,
    };
    (names.iter().map(launches_of).sum(), sources.len())
}

/// Bytes written by operations of these names that are not computed yet; of an update what is new.
fn bytes_written(outputs: &[Array], names: &[&str]) -> usize {
    let text = sys::operations_of(outputs);
    let bytes_of = |array: &str| {
        let (_, shape) = array.split_once(" [(").expect("a name and a shape");
        let (shape, dtype) = shape.split_once("), ").expect("a shape and a type");
        let sizes = shape.split(',').filter_map(|size| size.trim().parse::<usize>().ok());
        sizes.product::<usize>() * if dtype.starts_with("float32") { 4 } else { 2 }
    };
    let written = |line: &str| {
        let (made_of, made) = line.split_once(" -> ")?;
        let inputs: Vec<&str> = made_of.split("], ").collect();
        let name = line.split(' ').next().filter(|name| names.contains(name))?;
        Some(bytes_of(if name == "SliceUpdate" { inputs[1] } else { made }))
    };
    text.lines().filter_map(written).sum()
}

/// Launches beyond one that each of MLX's fused operations falls back on here: of a norm, a rotation and an
/// attention without and with a mask.
fn fallbacks(dtype: mlx_rs::Dtype) -> (usize, usize, [usize; 2]) {
    let computed = |shape: &[i32]| {
        let array = ops::zeros_dtype(shape, dtype).unwrap();
        array.eval().unwrap();
        array
    };
    let beyond_one = |array: Array| launches(&[array]).0 - 1;
    let norm = fast::rms_norm(computed(&[3, 16]), Some(&computed(&[16])), 1e-5).unwrap();
    let (frequencies, positions) =
        (Array::from_slice(&[1.0_f32; 8], &[8]), Array::from_slice(&[1, 2, 3], &[3]));
    let rope = fast::rope_dynamic(computed(&[3, 2, 1, 16]), 16, false, None, 1.0, &positions, &frequencies);
    let attention = |mask: Option<&Array>| {
        let mask = mask.map(fast::ScaledDotProductAttentionMask::Array);
        let (queries, keys) = (computed(&[3, 4, 1, 16]), computed(&[3, 2, 9, 16]));
        let values = computed(&[3, 2, 9, 16]);
        beyond_one(fast::scaled_dot_product_attention(queries, keys, values, 0.25, mask, None).unwrap())
    };
    let mask = computed(&[3, 1, 1, 9]);
    (beyond_one(norm), beyond_one(rope.unwrap()), [attention(None), attention(Some(&mask))])
}

/// A model on the GPU branches, its sequences, and what their steps launch.
struct Steps {
    runner: MlxRunner,
    /// Sequences that decode, and how many tokens each has.
    rows: Vec<(SequenceId, usize)>,
    num_sequences: u64,
    prefix: Vec<SegmentId>,
    prefix_end: usize,
    /// Bytes that the last step wrote where it changed numbers' type.
    num_cast_bytes: usize,
}

impl Steps {
    fn new() -> Self {
        Self::in_dtype(ComputeDtype::Float32)
    }

    fn in_dtype(dtype: ComputeDtype) -> Self {
        Self::with_limit(dtype, u64::MAX)
    }

    fn with_limit(dtype: ComputeDtype, max_copied_bytes: u64) -> Self {
        let folder = std::path::Path::new("fixtures/tiny-llama");
        let spec = read_config(&folder.join("config.json")).unwrap();
        assert_eq!(spec.layers.len(), NUM_LAYERS);
        let weights = WeightSource::Safetensors(vec![folder.join("model.safetensors")]);
        let model = LoadedModel::load(&spec, &weights, ComputeDevice::Gpu, dtype).unwrap();
        let runner = MlxRunner::new(model, max_copied_bytes);
        Self {
            runner,
            rows: Vec::new(),
            num_sequences: 0,
            prefix: Vec::new(),
            prefix_end: 0,
            num_cast_bytes: 0,
        }
    }

    fn chunk(sequence: SequenceId, start: usize, num_tokens: usize) -> Group {
        let tokens = (0..num_tokens).map(|at| ((start + at) * 7 % 300) as u32 + sequence.0 as u32 % 3);
        Group { sequence, input: Input::Prompt(tokens.collect()), start, want: Want::Nothing }
    }

    fn prefill(&mut self, sequence: SequenceId, start: usize, num_tokens: usize) {
        self.runner.launch(&[Self::chunk(sequence, start, num_tokens)]).unwrap();
        self.runner.collect().unwrap();
    }

    /// Bytes that a chunk has written where KV is joined or written in place.
    fn bytes_of_chunk(&mut self, sequence: SequenceId, start: usize, num_tokens: usize) -> usize {
        let (computed, kv) = self.runner.build_pass(&[Self::chunk(sequence, start, num_tokens)]).unwrap();
        let outputs = [&kv[..], &[computed.hidden]].concat();
        let num_bytes = bytes_written(&outputs, &["Concatenate", "SliceUpdate"]);
        transforms::eval(&kv).unwrap();
        num_bytes
    }

    /// Stores a prefix of pieces of so many tokens; sequences that are added from now on begin with it.
    fn store_prefix(&mut self, lengths: &[usize]) {
        let sequence = SequenceId(1000 + self.num_sequences);
        self.num_sequences += 1;
        self.prefix.clear();
        self.prefix_end = 0;
        for &length in lengths {
            self.prefill(sequence, self.prefix_end, length);
            self.prefix.push(self.runner.store(sequence, length).unwrap().segment.id);
            self.prefix_end += length;
        }
        self.runner.release(sequence);
    }

    /// Adds a row with so many tokens to itself.
    fn add(&mut self, num_tokens: usize) {
        let sequence = SequenceId(self.num_sequences);
        self.num_sequences += 1;
        if !self.prefix.is_empty() {
            self.runner.resume(sequence, &self.prefix.clone(), None).unwrap();
        }
        self.prefill(sequence, self.prefix_end, num_tokens);
        self.rows.push((sequence, self.prefix_end + num_tokens));
    }

    fn leave(&mut self, row: usize) {
        let (sequence, _) = self.rows.remove(row);
        self.runner.release(sequence);
    }

    /// One step of all rows: launches, each fused operation as one, and the arrays that it begins with.
    fn step(&mut self, sampling: impl Fn(usize) -> SamplingParams) -> (usize, usize) {
        let (asked, counts) = self.build_step(sampling);
        transforms::async_eval(asked.arrays()).unwrap();
        self.runner.launched.push_back(Launched { asked: Some(asked), last_number: None });
        self.runner.collect().unwrap();
        for row in &mut self.rows {
            row.1 += 1;
        }
        counts
    }

    /// The same, not computed.
    fn build_step(&mut self, sampling: impl Fn(usize) -> SamplingParams) -> (Asked, (usize, usize)) {
        let groups: Vec<Group> = self
            .rows
            .iter()
            .enumerate()
            .map(|(row, &(sequence, start))| {
                let is_first = !self.runner.last_sampled.contains_key(&sequence);
                let input = if is_first { Input::Last(5) } else { Input::Sampled };
                let choice = Choice { sampling: sampling(row), edits: None, report: None, is_guided: false };
                Group { sequence, input, start, want: Want::Token(choice) }
            })
            .collect();
        let (computed, _) = self.runner.build_pass(&groups).unwrap();
        let asked = self.runner.ask(&computed, &[]).unwrap();
        let outputs: Vec<Array> = asked.arrays().cloned().collect();
        let (num_launches, num_sources) = launches(&outputs);
        self.num_cast_bytes = bytes_written(&outputs, &["AsType"]);
        let (norm, rope, attention) = fallbacks(self.runner.decoder.precision.dtype.mlx());
        let rows = self.runner.live.decode_rows();
        let is_fused = rows.pieces == 0;
        let attention = if is_fused { attention[usize::from(rows.is_masked)] } else { 0 };
        let fused = (2 * NUM_LAYERS + 1) * norm + NUM_LAYERS * (2 * rope + attention);
        (asked, (num_launches - fused, num_sources))
    }

    fn greedy_step(&mut self) -> (usize, usize) {
        self.step(|_| sampling(0.0, 0))
    }

    /// Launches of a step once rows stay as they are.
    fn steady(&mut self) -> usize {
        (0..3).for_each(|_| {
            self.greedy_step();
        });
        self.greedy_step().0
    }
}

fn sampling(temperature: f32, top_k: u32) -> SamplingParams {
    let top_p = if top_k % 2 == 1 { 0.9 } else { 1.0 };
    SamplingParams { temperature, top_p, top_k, min_p: 0.01 * top_k as f32, key: 7 }
}

#[test]
fn a_step_of_rows_that_share_nothing_launches_as_much_whatever_their_number_and_length() {
    let mut num_sources = HashSet::new();
    for (num_rows, lengths) in [(1, [200, 200]), (32, [200, 200]), (32, [900, 900]), (32, [120, 260])] {
        let mut steps = Steps::new();
        (0..num_rows).for_each(|row| steps.add(lengths[row % 2]));
        let num_launches = steps.steady();
        println!("{num_rows} rows of {lengths:?} tokens: {num_launches}");
        assert!(num_launches <= 95, "{num_rows} rows, {lengths:?}: {num_launches}");
        if lengths[0] == lengths[1] {
            num_sources.insert(steps.greedy_step().1);
        }
    }
    // What a step uploads does not grow with its width.
    assert_eq!(num_sources.len(), 1, "{num_sources:?}");
}

#[test]
fn rows_that_come_and_go_cost_a_step_little() {
    for length in [200, 900] {
        let mut steps = Steps::new();
        (0..32).for_each(|row| steps.add(length - row));
        steps.greedy_step();
        let mut num_launches = 0;
        for round in 0..40 {
            // One leaves at every second step; the next joins a step later.
            if round % 2 == 0 {
                steps.leave(round * 5 % 31);
            } else {
                steps.add(length - round);
            }
            num_launches += steps.greedy_step().0;
        }
        println!("{length} tokens, coming and going: {}", num_launches as f64 / 40.0);
        assert!(num_launches <= 115 * 40, "{length}: {}", num_launches as f64 / 40.0);
    }
}

#[test]
fn a_prefix_that_rows_share_costs_a_layer_some_launches_however_many_segments_it_is() {
    for lengths in [vec![900], vec![90; 10]] {
        let mut steps = Steps::new();
        steps.store_prefix(&lengths);
        (0..32).for_each(|_| steps.add(100));
        let num_launches = steps.steady();
        println!("32 rows on {} segments: {num_launches}", lengths.len());
        assert!(num_launches <= REFERENCE + 8 * NUM_LAYERS, "{}: {num_launches}", lengths.len());
    }
    let mut steps = Steps::new();
    for _ in 0..4 {
        steps.store_prefix(&[2000]);
        (0..8).for_each(|_| steps.add(100));
    }
    let num_launches = steps.steady();
    println!("four cohorts of 8 rows: {num_launches}");
    assert_eq!(steps.runner.live.decode_rows().pieces, 4);
    assert!(num_launches <= REFERENCE + 32 * NUM_LAYERS, "{num_launches}");
}

#[test]
fn sampled_rows_and_sixteen_bits_cost_a_step_a_few_launches() {
    for dtype in [ComputeDtype::Float32, ComputeDtype::Bfloat16] {
        let mut steps = Steps::in_dtype(dtype);
        (0..32).for_each(|_| steps.add(100));
        let greedy = steps.steady();
        assert!(greedy <= 95, "{dtype:?}: {greedy}");
        let sampled = steps.step(|row| sampling(0.5 + row as f32 / 32.0, row as u32)).0;
        let one = steps.step(|row| sampling(if row == 7 { 0.7 } else { 0.0 }, 5)).0;
        println!("{dtype:?}: {greedy} greedy, {sampled} sampled, {one} where one row of 32 is");
        assert!(sampled <= greedy + 15, "{dtype:?}: {greedy} greedy, {sampled} sampled");
        assert!(one <= greedy + 20, "{dtype:?}: {greedy} greedy, {one} with one row sampled");
    }
}

/// The shared piece was read as 16 bits and widened at every step.
#[test]
fn a_shared_prefix_of_sixteen_bits_is_widened_once() {
    let mut steps = Steps::in_dtype(ComputeDtype::Bfloat16);
    steps.store_prefix(&[900]);
    (0..32).for_each(|_| steps.add(100));
    let num_launches = steps.steady();
    println!("32 rows of 16 bits on a segment: {num_launches}");
    // Queries, the slab's keys and values, and what comes of them change their type.
    assert!(num_launches <= REFERENCE + (8 + 4) * NUM_LAYERS, "{num_launches}");
}

/// Each chunk was attended to a fresh copy of all before it, and added to a fresh copy of what was not stored.
#[test]
fn a_chunk_brings_together_what_is_new_however_long_the_prompt() {
    let (num_tokens, num_chunks) = (128, 16);
    for num_prefix in [0, 700] {
        let mut steps = Steps::new();
        if num_prefix > 0 {
            steps.store_prefix(&[num_prefix]);
        }
        let mut bytes_of_chunks = |sequence: u64, is_told: bool| -> Vec<usize> {
            let sequence = SequenceId(sequence);
            if num_prefix > 0 {
                steps.runner.resume(sequence, &steps.prefix.clone(), None).unwrap();
            }
            if is_told {
                steps.runner.expect_prefill(sequence, num_prefix + num_tokens * num_chunks);
            }
            let chunk = |index: usize| num_prefix + index * num_tokens;
            (0..num_chunks).map(|index| steps.bytes_of_chunk(sequence, chunk(index), num_tokens)).collect()
        };
        let copied = bytes_of_chunks(1, false);
        let joined = bytes_of_chunks(2, true);
        println!("behind {num_prefix} tokens: {joined:?} bytes, copied {copied:?}");
        assert!(joined[2..].iter().all(|num_bytes| *num_bytes == joined[2]), "{joined:?}");
        let [copied, joined] = [copied, joined].map(|num_bytes| num_bytes.iter().sum::<usize>());
        // Both have what rotations bring together here, which is one operation on a GPU.
        assert!(2 * joined < copied, "{joined} of {copied}");
    }
}

/// What rows of 16 bits have to themselves was widened at every step, too, where they share a prefix.
#[test]
fn beside_a_shared_prefix_what_rows_of_sixteen_bits_have_to_themselves_is_widened_once() {
    let steps_of = |num_tokens: usize, max_copied_bytes: u64| {
        let mut steps = Steps::with_limit(ComputeDtype::Bfloat16, max_copied_bytes);
        steps.store_prefix(&[900]);
        (0..32).for_each(|_| steps.add(num_tokens));
        steps.steady();
        assert_eq!(steps.runner.live.decode_rows().pieces, 1);
        steps
    };
    let cast = [40, 160].map(|num_tokens| steps_of(num_tokens, u64::MAX).num_cast_bytes);
    assert_eq!(cast[0], cast[1], "it does not grow with what rows have");
    let mut wide = steps_of(160, u64::MAX);
    let mut narrow = steps_of(160, 0);
    println!(
        "32 rows of 160 tokens: {} bytes change type in a step, {} without room",
        cast[1], narrow.num_cast_bytes
    );
    assert!(10 * cast[1] < narrow.num_cast_bytes);
    // It is what it was, and stored as it comes.
    let tokens = |steps: &Steps| {
        let last = |row: &(SequenceId, usize)| {
            let SampledToken { tokens, row, .. } = &steps.runner.last_sampled[&row.0];
            tokens.to_vec_exact::<u32>().unwrap()[*row]
        };
        steps.rows.iter().map(last).collect::<Vec<_>>()
    };
    assert_eq!(tokens(&wide), tokens(&narrow));
    let of_token: u32 = wide.runner.plane_widths().iter().sum();
    let mut stored = Vec::new();
    for steps in [&mut wide, &mut narrow] {
        let (sequence, num_tokens) = steps.rows[0];
        let segment = steps.runner.store(sequence, num_tokens - 900).unwrap().segment;
        assert_eq!(segment.num_bytes, u64::from(of_token) * (num_tokens - 900) as u64);
        let mut bytes = Vec::new();
        steps.runner.export(segment.id, 0..num_tokens - 900, &mut bytes).unwrap();
        stored.push(bytes);
    }
    assert!(stored[0] == stored[1]);
    // Without the prefix it is as narrow as ever.
    let mut alone = Steps::in_dtype(ComputeDtype::Bfloat16);
    (0..32).for_each(|_| alone.add(160));
    alone.steady();
    assert!(alone.num_cast_bytes < cast[1], "{}", alone.num_cast_bytes);
    assert_eq!(alone.runner.live.slab_bytes_beyond_kv(), 0);
}

/// As on a real GPU; here such a step is only made. Its graph has one node for a kernel, however often it is launched:
/// what is counted are the lines.
#[test]
fn a_compiled_activation_is_one_launch_a_layer() {
    let mut steps = Steps::new();
    (0..3).for_each(|_| steps.add(20));
    steps.steady();
    steps.runner.decoder.compile_activations();
    let (asked, _) = steps.build_step(|_| sampling(0.0, 0));
    let operations = sys::operations_of(&asked.arrays().cloned().collect::<Vec<_>>());
    let num_of = |name: &str| operations.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!((num_of("Compiled"), num_of("Sigmoid")), (NUM_LAYERS, 0));
}

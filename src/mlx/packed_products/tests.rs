use super::*;

const AFFINE: [Format; 6] = [
    Format::Affine { bits: 2 },
    Format::Affine { bits: 3 },
    Format::Affine { bits: 4 },
    Format::Affine { bits: 5 },
    Format::Affine { bits: 6 },
    Format::Affine { bits: 8 },
];

/// Those without groups.
const NUMBERS: [Format; 3] = [Format::Bfloat16, Format::Float16, Format::Float32];

/// All formats with all of their group sizes.
fn formats() -> Vec<(Format, usize)> {
    let affine =
        AFFINE.into_iter().flat_map(|format| [16, 32, 64, 128].map(|group_size| (format, group_size)));
    let numbers = NUMBERS.map(|format| (format, 32));
    affine.chain([(Format::Mxfp4, 32), (Format::Nvfp4, 16), (Format::Mxfp8, 32)]).chain(numbers).collect()
}

/// What a matrix is made of.
struct Stored {
    words: Vec<u32>,
    scales: Vec<f32>,
    scale_bytes: Vec<u8>,
    biases: Vec<f32>,
    format: Format,
    group_size: usize,
    num_inputs: usize,
    num_outputs: usize,
}

/// Inputs of the narrowest matrix.
fn least_inputs(format: Format, group_size: usize) -> usize {
    if matches!(format.bits(), 4 | 8) { group_size } else { group_size.max(2 * NUM_LANES) }
}

fn is_affine(format: Format) -> bool {
    matches!(format, Format::Affine { .. })
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index + 31 * seed) as f32 * 0.713).sin() * 2.0).collect()
}

impl Stored {
    fn new((format, group_size): (Format, usize), num_outputs: usize, num_inputs: usize) -> Self {
        let mut state = 12345_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let num_words = num_outputs * num_inputs * format.bits() / 32;
        let mut words: Vec<u32> = (0..num_words).map(|_| random() << 16 ^ random()).collect();
        // No number that is none, or so large that others beside it do not count.
        let in_range: fn(&mut u32) = match format {
            Format::Mxfp8 => |word| *word &= !0x0101_0101,
            Format::Float16 => |word| *word &= 0xbfff_bfff,
            Format::Bfloat16 => |word| *word = *word & 0x83ff_83ff | 0x3c00_3c00,
            Format::Float32 => |word| *word = *word & 0x83ff_ffff | 0x3c00_0000,
            Format::Affine { .. } | Format::Mxfp4 | Format::Nvfp4 => |_| {},
        };
        words.iter_mut().for_each(in_range);
        let num_groups = num_outputs * num_inputs / group_size;
        let scale_bytes = (0..num_groups)
            .map(|_| 0x30 + (random() % 80) as u8 % if format == Format::Nvfp4 { 70 } else { 80 });
        let scale_bytes = if is_affine(format) { Vec::new() } else { scale_bytes.collect() };
        let (scales, biases) = if is_affine(format) {
            (numbers(num_groups, 1), numbers(num_groups, 2))
        } else {
            Default::default()
        };
        Self { words, scales, scale_bytes, biases, format, group_size, num_inputs, num_outputs }
    }

    fn rows(&self) -> PackedMatrix<'_> {
        PackedMatrix {
            words: &self.words,
            scales: match self.format {
                Format::Affine { .. } => Scales::Numbers(&self.scales),
                Format::Mxfp4 | Format::Nvfp4 | Format::Mxfp8 => Scales::Bytes(&self.scale_bytes),
                Format::Bfloat16 | Format::Float16 | Format::Float32 => Scales::Ones,
            },
            biases: is_affine(self.format).then_some(&self.biases),
            num_outputs: self.num_outputs,
            num_inputs: self.num_inputs,
            group_size: self.group_size,
            format: self.format,
        }
    }

    /// One number, taken bit by bit from the words and put together in double precision.
    fn number(&self, output: usize, input: usize) -> f64 {
        let bits = self.format.bits();
        let index = output * self.num_inputs + input;
        let code = (0..bits).fold(0, |code, bit| {
            let at = index * bits + bit;
            code | (self.words[at / 32] >> (at % 32) & 1) << bit
        });
        let group = index / self.group_size;
        match self.format {
            Format::Affine { .. } => {
                f64::from(code) * f64::from(self.scales[group]) + f64::from(self.biases[group])
            }
            Format::Mxfp4 => float(code, 2, 1) * 2_f64.powi(i32::from(self.scale_bytes[group]) - 127),
            Format::Nvfp4 => float(code, 2, 1) * float(self.scale_bytes[group].into(), 4, 3),
            Format::Mxfp8 => float(code, 4, 3) * 2_f64.powi(i32::from(self.scale_bytes[group]) - 127),
            Format::Bfloat16 => float(code, 8, 7),
            Format::Float16 => float(code, 5, 10),
            Format::Float32 => float(code, 8, 23),
        }
    }

    /// Row by row what a product is, and the sum of its terms' magnitudes.
    fn product(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let terms = |x: &[f32], output: usize| -> Vec<f64> {
            x.iter().enumerate().map(|(input, x)| f64::from(*x) * self.number(output, input)).collect()
        };
        let sums = |terms: Vec<f64>| (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum());
        x.chunks(self.num_inputs)
            .flat_map(|x| (0..self.num_outputs).map(move |output| sums(terms(x, output))))
            .collect()
    }

    fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len() / self.num_inputs * self.num_outputs];
        multiply(vec![Product { matrix: self.rows(), x: &self.chunks(x), y: &mut y }]);
        y
    }

    fn chunks(&self, x: &[f32]) -> RowChunks {
        RowChunks::new(x, self.num_inputs)
    }
}

/// A floating-point number with a sign, so many bits of exponent and so many of fraction, without infinities.
fn float(code: u32, exponent_bits: u32, fraction_bits: u32) -> f64 {
    let fraction = f64::from(code & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
    let exponent = (code >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if code >> (exponent_bits + fraction_bits) & 1 == 1 { -1.0 } else { 1.0 };
    sign * if exponent == 0 {
        fraction * 2_f64.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2_f64.powi(exponent - bias)
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn numbers_of_every_format_are_as_taken_bit_by_bit() {
    for (format, group_size) in formats() {
        // Less than a chunk, a chunk and a rest, and outputs of several threads.
        for (num_outputs, num_inputs) in [
            (3, 2 * group_size),
            (4, least_inputs(format, group_size)),
            (10, CHUNK_INPUTS + least_inputs(format, group_size)),
            (9, CHUNK_INPUTS + 6 * group_size),
            (300, 1024),
        ] {
            let stored = Stored::new((format, group_size), num_outputs, num_inputs);
            for instructions in InstructionSet::all() {
                let mut found = vec![f32::NAN; num_outputs * num_inputs];
                stored.rows().numbers_by(instructions, &mut found);
                for (index, found) in found.iter().enumerate() {
                    let expected = stored.number(index / num_inputs, index % num_inputs);
                    // Affine numbers are rounded, at most where the product and where the sum is.
                    let tolerance = if is_affine(format) { 255.0 * 2.0 * 2e-7 } else { 0.0 };
                    let difference = (f64::from(*found) - expected).abs();
                    assert!(
                        difference <= tolerance,
                        "{instructions:?} {format:?} {group_size} {index}: {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_every_format_are_as_in_double_precision() {
    for (format, group_size) in formats() {
        for (num_rows, num_outputs, num_inputs) in [
            (1, 1, 2 * group_size),
            (7, 13, 6 * group_size),
            (2, 24, CHUNK_INPUTS + 2 * group_size),
            // The narrowest that there are, where a pair of vectors need not be whole.
            (1, 6, least_inputs(format, group_size)),
            (6, 18, 3 * least_inputs(format, group_size)),
            (3, 34, CHUNK_INPUTS + least_inputs(format, group_size)),
            (5, 16, 2 * CHUNK_INPUTS + least_inputs(format, group_size)),
            (70, 9, 2 * CHUNK_INPUTS + 128),
        ] {
            let stored = Stored::new((format, group_size), num_outputs, num_inputs);
            let x = numbers(num_rows * num_inputs, 3);
            let products = stored.product(&x);
            let x = stored.chunks(&x);
            for instructions in InstructionSet::all() {
                let mut y = vec![f32::NAN; products.len()];
                multiply_by(instructions, vec![Product { matrix: stored.rows(), x: &x, y: &mut y }]);
                for ((expected, magnitude), found) in products.iter().zip(y) {
                    let difference = (f64::from(found) - expected).abs();
                    assert!(
                        difference <= 1e-6 * magnitude,
                        "{instructions:?} {format:?} {group_size} {num_inputs}: {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bit_by_bit_whoever_is_beside_it_and_whatever_else_is_multiplied() {
    for (format, group_size) in formats() {
        // A chunk and a rest, and outputs of two pieces.
        let (num_outputs, num_inputs) = (203, CHUNK_INPUTS + 2 * group_size);
        let stored = Stored::new((format, group_size), num_outputs, num_inputs);
        let other = Stored::new((format, group_size), 5, 2 * group_size);
        let num_rows = 67;
        let x = numbers(num_rows * num_inputs, 5);
        let other_x = numbers(3 * other.num_inputs, 6);
        let mut together = vec![f32::NAN; num_rows * num_outputs];
        let mut once_more = together.clone();
        let mut of_other = vec![f32::NAN; 3 * other.num_outputs];
        let (chunks, none) = (stored.chunks(&x), stored.chunks(&[]));
        multiply(vec![
            Product { matrix: other.rows(), x: &other.chunks(&other_x), y: &mut of_other },
            Product { matrix: stored.rows(), x: &none, y: &mut [] },
            Product { matrix: stored.rows(), x: &chunks, y: &mut together },
            Product { matrix: stored.rows(), x: &chunks, y: &mut once_more },
        ]);
        assert_eq!(bits(&together), bits(&once_more));
        assert_eq!(bits(&of_other), bits(&other.multiply(&other_x)));
        for row in [0, 1, 2, 3, 4, 62, 63, 64, 65, 66] {
            let alone = stored.multiply(&x[row * num_inputs..][..num_inputs]);
            assert_eq!(bits(&alone), bits(&together[row * num_outputs..][..num_outputs]), "{format:?} {row}");
        }
        let seven = stored.multiply(&x[..7 * num_inputs]);
        assert_eq!(bits(&seven), bits(&together[..7 * num_outputs]), "{format:?}");
    }
}

#[test]
fn what_is_no_number_comes_out_as_none_and_only_where_it_belongs() {
    for (format, group_size) in formats() {
        let (num_outputs, num_inputs) = (11, CHUNK_INPUTS + 128);
        let x = numbers(5 * num_inputs, 7);
        let clean = Stored::new((format, group_size), num_outputs, num_inputs);
        let expected = clean.multiply(&x);
        assert!(expected.iter().all(|y| y.is_finite()));
        // In one row, in the last vector too.
        for (bad, at) in
            [(f32::NAN, 3), (f32::INFINITY, num_inputs - 1), (f32::NEG_INFINITY, CHUNK_INPUTS + 1)]
        {
            let mut x = x.clone();
            x[2 * num_inputs + at] = bad;
            let found = clean.multiply(&x);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let row = index / num_outputs;
                assert!(if row == 2 { !found.is_finite() } else { found == expected }, "{format:?} {index}");
            }
        }
        // In one group of one output: scales, and biases or the numbers themselves.
        let group = 9 * num_inputs / group_size - 1;
        let mut stored = vec![];
        let mut with = |change: &dyn Fn(&mut Stored)| {
            let mut changed = Stored::new((format, group_size), num_outputs, num_inputs);
            change(&mut changed);
            stored.push(changed);
        };
        match format {
            Format::Affine { .. } => {
                for bad in [f32::NAN, f32::INFINITY] {
                    with(&|stored| stored.scales[group] = bad);
                    with(&|stored| stored.biases[group] = bad);
                }
            }
            Format::Nvfp4 => {
                with(&|stored| stored.scale_bytes[group] = 0x7f);
                with(&|stored| stored.scale_bytes[group] = 0xff);
            }
            Format::Mxfp4 => with(&|stored| stored.scale_bytes[group] = 255),
            Format::Mxfp8 => {
                with(&|stored| stored.scale_bytes[group] = 255);
                with(&|stored| stored.words[group * 32 / 4] |= 0x7f00);
                with(&|stored| stored.words[group * 32 / 4] |= 0xff00_0000);
            }
            Format::Bfloat16 | Format::Float16 | Format::Float32 => {
                with(&|stored| stored.words[group * format.bits()] |= 0xff80_0000);
                with(&|stored| stored.words[group * format.bits() + 1] |= 0x7fff_7fff);
            }
        }
        let small = Stored::new((format, group_size), 5, 2 * group_size);
        let small_x = numbers(2 * group_size, 8);
        for stored in stored {
            // What a thread works with next does not meet what is left there.
            let mut y = vec![0.0; 5 * num_outputs];
            let mut small_y = vec![0.0; 5];
            multiply(vec![
                Product { matrix: stored.rows(), x: &stored.chunks(&x), y: &mut y },
                Product { matrix: small.rows(), x: &small.chunks(&small_x), y: &mut small_y },
            ]);
            assert_eq!(bits(&small_y), bits(&small.multiply(&small_x)), "{format:?}");
            for (index, (found, expected)) in stored.multiply(&x).iter().zip(&expected).enumerate() {
                let output = index % num_outputs;
                assert!(
                    if output == 8 { !found.is_finite() } else { found == expected },
                    "{format:?} {index}"
                );
            }
        }
    }
}

/// Compares the numbers of one output with those expected.
fn check_numbers(
    (format, group_size): (Format, usize),
    words: &[u32],
    (scales, biases, scale_bytes): (&[f32], &[f32], &[u8]),
    expected: [f32; 32],
) {
    let (scales, scale_bytes) = (scales.to_vec(), scale_bytes.to_vec());
    let (words, biases) = (words.to_vec(), biases.to_vec());
    let stored =
        Stored { words, scales, scale_bytes, biases, format, group_size, num_inputs: 32, num_outputs: 1 };
    let mut found = [f32::NAN; 32];
    stored.rows().numbers_into(&mut found);
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 4e-7, "{format:?}: {found} {expected}");
    }
}

#[test]
fn numbers_are_those_that_mlx_makes_of_the_same_words() {
    // The first row of what `mx.quantize` made, and `mx.dequantize` of it (MLX 0.32).
    check_numbers(
        (Format::Affine { bits: 3 }, 32),
        &[0xe076e6d4, 0xf99d959a, 0x737c87da],
        (&[-0.6015625], &[2.40625], &[]),
        [
            0.0, 1.203125, 0.6015625, 0.6015625, -1.203125, -0.6015625, -0.6015625, 0.6015625, 2.40625, 0.0,
            0.6015625, -0.6015625, 1.8046875, 0.6015625, -0.6015625, 0.0, -0.6015625, 0.6015625, -1.203125,
            0.0, -1.8046875, -0.6015625, -1.203125, -1.203125, -1.8046875, 2.40625, 1.203125, -1.203125,
            -1.8046875, -1.203125, 0.0, 0.6015625,
        ],
    );
    check_numbers(
        (Format::Affine { bits: 4 }, 32),
        &[0xa7acc65b, 0xcb6d547a, 0x676ec5e5, 0xbb90cef9],
        (&[0.22916667], &[-2.0625], &[]),
        [
            0.4583335,
            -0.9166666,
            -0.6875,
            0.6875,
            0.6875,
            0.22916675,
            -0.45833325,
            0.22916675,
            0.22916675,
            -0.45833325,
            -1.1458333,
            -0.9166666,
            0.91666675,
            -0.6875,
            0.4583335,
            0.6875,
            -0.9166666,
            1.1458335,
            -0.9166666,
            0.6875,
            1.1458335,
            -0.6875,
            -0.45833325,
            -0.6875,
            0.0,
            1.375,
            1.1458335,
            0.6875,
            -2.0625,
            0.0,
            0.4583335,
            0.4583335,
        ],
    );
    check_numbers(
        (Format::Mxfp4, 32),
        &[0x51140da5, 0x003520a9, 0x525d2a1a, 0x2b3b2219],
        (&[], &[], &[126]),
        [
            1.5, -0.5, -1.5, 0.0, 1.0, 0.25, 0.25, 1.5, -0.25, -0.5, 0.0, 0.5, 1.5, 0.75, 0.0, 0.0, -0.5,
            0.25, -0.5, 0.5, -1.5, 1.5, 0.5, 1.5, -0.25, 0.25, 0.5, 0.5, -0.75, 0.75, -0.75, 0.5,
        ],
    );
    check_numbers(
        (Format::Nvfp4, 16),
        &[0x3b765217, 0x95e5bdad, 0x7c6250bf, 0x6152de6f],
        (&[], &[], &[42, 41]),
        [
            1.875, 0.15625, 0.3125, 0.9375, 1.25, 1.875, -0.46875, 0.46875, -0.9375, -0.3125, -0.9375,
            -0.46875, 0.9375, -1.25, 0.9375, -0.15625, -1.6875, -0.421875, 0.0, 0.84375, 0.28125, 1.125,
            -0.5625, 1.6875, -1.6875, 1.125, -1.125, -0.84375, 0.28125, 0.84375, 0.140625, 1.125,
        ],
    );
    check_numbers(
        (Format::Mxfp8, 32),
        &[0x62667177, 0x646bdc69, 0x6c70e975, 0x6a5ff2eb, 0xee6968e4, 0xe86cf0eb, 0xf4ea726a, 0xd96adfdd],
        (&[], &[], &[120]),
        [
            1.875, 1.125, 0.4375, 0.3125, 0.5625, -0.1875, 0.6875, 0.375, 1.625, -0.5625, 1.0, 0.75, -0.6875,
            -1.25, 0.234375, 0.625, -0.375, 0.5, 0.5625, -0.875, -0.6875, -1.0, 0.75, -0.5, 0.625, 1.25,
            -0.625, -1.5, -0.203125, -0.234375, 0.625, -0.140625,
        ],
    );
}

#[test]
fn each_number_of_sixteen_bits_is_what_it_is() {
    let words: Vec<u32> = (0..1 << 15).map(|at| at << 17 | 1 << 16 | at << 1).collect();
    for (format, exponent_bits, fraction_bits) in [(Format::Bfloat16, 8, 7), (Format::Float16, 5, 10)] {
        let matrix = PackedMatrix {
            words: &words,
            scales: Scales::Ones,
            biases: None,
            num_outputs: 4,
            num_inputs: 1 << 14,
            group_size: 32,
            format,
        };
        for instructions in InstructionSet::all() {
            let mut found = vec![0.0; 1 << 16];
            matrix.numbers_by(instructions, &mut found);
            for (code, found) in found.into_iter().enumerate() {
                let code = code as u32;
                let is_finite =
                    code >> fraction_bits & ((1 << exponent_bits) - 1) != (1 << exponent_bits) - 1;
                let expected = float(code, exponent_bits, fraction_bits);
                if is_finite {
                    assert_eq!(f64::from(found).to_bits(), expected.to_bits(), "{format:?} {code:x}");
                } else if code & ((1 << fraction_bits) - 1) == 0 {
                    assert_eq!(found, f32::INFINITY.copysign(expected as f32), "{format:?} {code:x}");
                } else {
                    assert!(found.is_nan(), "{format:?} {code:x}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "all numbers are there")]
fn a_matrix_with_too_few_words_is_refused() {
    let stored = Stored::new((Format::Mxfp4, 32), 2, 64);
    PackedMatrix { words: &stored.words[1..], ..stored.rows() }.numbers_into(&mut [0.0; 128]);
}

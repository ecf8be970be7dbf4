//! Chains of elementwise operations as one kernel each, which MLX makes at run time.
//!
//! Owns these kernels and where there are any: on a real GPU. On a CPU MLX would call a C++ compiler for them, and our
//! own loops are faster. What is computed is `ops`'.

use std::{cell::RefCell, fmt};

use mlx_rs::{Array, error::Exception, transforms::compile::compile};

use super::{device::ComputeDevice, ops::Ops};
use crate::models::Activation;

type Result<T> = std::result::Result<T, Exception>;

/// A function of two arrays of the same shape.
type Kernel = Box<dyn for<'a> FnMut((&'a Array, &'a Array)) -> Result<Array>>;

/// Activations as single kernels, made when they are first asked for.
#[derive(Default)]
pub(super) struct CompiledActivations(RefCell<Vec<(Activation, Kernel)>>);

impl CompiledActivations {
    /// Those of a device of this kind, where it gains by them.
    pub(super) fn of(device: ComputeDevice) -> Option<Self> {
        let is_real = || ComputeDevice::current() == ComputeDevice::Gpu;
        (device == ComputeDevice::Gpu && is_real()).then(Self::default)
    }

    /// An activation of `gate`, times `up`, of any one shape.
    pub(super) fn gated(&self, activation: Activation, gate: &Array, up: &Array) -> Result<Array> {
        let mut kernels = self.0.borrow_mut();
        let known = kernels.iter().position(|(known, _)| *known == activation);
        let index = known.unwrap_or_else(|| {
            kernels.push((activation, kernel(activation)));
            kernels.len() - 1
        });
        (kernels[index].1)((gate, up))
    }
}

/// One that serves all shapes; by its own operations, since nothing may be computed while it is made.
fn kernel(activation: Activation) -> Kernel {
    let ops = Ops::by_operations(ComputeDevice::Gpu);
    let chain = move |(gate, up): (&Array, &Array)| ops.gated(activation, gate.clone(), up.clone());
    Box::new(compile(chain, true))
}

impl fmt::Debug for CompiledActivations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompiledActivations").field(&self.0.borrow().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Dtype;

    use super::*;
    use crate::mlx::sys;

    const ALL: [Activation; 4] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::SquaredRelu,
        Activation::ClampedSilu { limit: 7.0, sharpness: 1.702 },
    ];

    fn array(shape: &[i32], seed: f32, dtype: Dtype) -> Array {
        let numbers: Vec<f32> =
            (0..shape.iter().product()).map(|at: i32| (at as f32 + seed).sin() * 9.0).collect();
        let array = Array::from_slice(&numbers, shape).as_dtype(dtype).unwrap();
        array.eval().unwrap();
        array
    }

    /// Names of the operations that an array, not computed yet, is made by.
    fn operations(array: &Array) -> Vec<String> {
        let text = sys::operations_of(std::slice::from_ref(array));
        let lines = text.lines().filter(|line| line.contains(" -> "));
        lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    }

    #[test]
    fn an_activation_is_a_kernel_or_two_whatever_the_shapes_and_types() {
        let kernels = CompiledActivations::default();
        for activation in ALL {
            for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
                for shape in [&[1, 8][..], &[5, 8], &[3, 2, 8], &[32, 24]] {
                    let [gate, up] = [0.1, 0.7].map(|seed| array(shape, seed, dtype));
                    let gated = kernels.gated(activation, &gate, &up).unwrap();
                    assert_eq!((gated.shape(), gated.dtype()), (shape, dtype));
                    let operations = operations(&gated);
                    // MLX cuts chains that are deeper than it likes; of 16 bits, the type of a number that both need.
                    let max_kernels = if activation == Activation::GeluTanh { 3 } else { 1 };
                    assert!(
                        operations.len() <= max_kernels
                            && operations.iter().any(|name| name.starts_with("Compiled")),
                        "{activation:?}, {dtype:?}, {shape:?}: {operations:?}"
                    );
                }
            }
        }
        assert_eq!(kernels.0.borrow().len(), ALL.len(), "each is made once");
    }

    #[test]
    fn where_no_gpu_computes_nothing_is_compiled() {
        if ComputeDevice::current() == ComputeDevice::Cpu {
            assert!(ComputeDevice::KINDS.into_iter().all(|device| CompiledActivations::of(device).is_none()));
        }
    }

    #[test]
    #[ignore = "on a CPU MLX calls a C++ compiler for each kernel, and leaves them in the folder for temporary files"]
    fn a_kernel_has_the_numbers_of_its_operations() {
        let (kernels, ops) = (CompiledActivations::default(), Ops::by_operations(ComputeDevice::Gpu));
        for activation in ALL {
            for (dtype, limit) in [(Dtype::Float32, 1e-6), (Dtype::Bfloat16, 1.0 / 64.0)] {
                for shape in [[3, 8], [7, 5]] {
                    let [gate, up] = [0.1, 0.7].map(|seed| array(&shape, seed, dtype));
                    let found = kernels.gated(activation, &gate, &up).unwrap();
                    let expected = ops.gated(activation, gate, up).unwrap();
                    let [found, expected] = [found, expected].map(|array| {
                        let array = array.as_dtype(Dtype::Float32).unwrap();
                        array.eval().unwrap();
                        array.to_vec_exact::<f32>().unwrap()
                    });
                    for (found, expected) in found.iter().zip(&expected) {
                        let difference = (found - expected).abs();
                        assert!(
                            difference <= limit * expected.abs() + 1e-6,
                            "{activation:?}, {dtype:?}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}

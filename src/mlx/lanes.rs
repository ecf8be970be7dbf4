//! Numbers that are worked on side by side, as loops over slices of float32 have them.
//!
//! Owns how many they are and what is done with them where it is more than one operation each. Which instructions that
//! becomes is `sys`'s; what the loops are for, their files'.

/// Numbers in the widest vector that is made use of.
pub(super) const NUM_LANES: usize = 16;

pub(super) type Lanes = [f32; NUM_LANES];

/// `FUSED`: in one instruction, which the machine must have.
#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(left: f32, right: f32, sum: f32) -> f32 {
    if FUSED { left.mul_add(right, sum) } else { left * right + sum }
}

/// The sum of the lanes of each of four, in halves, as vectors are added up: one after the other they would wait for
/// each other.
#[inline(always)]
pub(super) fn sums_of_four(lanes: &[Lanes; 4]) -> [f32; 4] {
    halved::<4, 2>(&halved::<8, 4>(&halved::<16, 8>(lanes))).map(|[left, right]| left + right)
}

#[inline(always)]
fn halved<const N: usize, const HALF: usize>(numbers: &[[f32; N]; 4]) -> [[f32; HALF]; 4] {
    let mut halves = [[0.0; HALF]; 4];
    for (half, numbers) in halves.iter_mut().zip(numbers) {
        for lane in 0..HALF {
            half[lane] = numbers[lane] + numbers[lane + HALF];
        }
    }
    halves
}

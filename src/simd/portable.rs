//! [`Lanes`] on `wide`: SSE2, NEON, WebAssembly SIMD, or whatever else the crate was compiled for.
//!
//! `wide` chooses its instructions when the crate is compiled. A baseline x86-64 build gets SSE2, where
//! a fused multiply-add rounds twice; a build for an FMA target gives the same bits as the other backends.

use super::model::sum_of_lanes;
use super::{Isa, Kernel, Lanes};
use wide::{f32x16, f64x8};

/// What the crate was compiled for: every CPU that can run it at all has that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Isa for Portable {
    type F32 = f32x16;
    const SPECIALIZED: bool = false;
    // What `wide` asks for on x86. On other targets it is not asked whether it does.
    const FUSED: bool = cfg!(all(target_feature = "avx", target_feature = "fma"));
    type F64 = f64x8;

    #[inline(never)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

macro_rules! portable_lanes {
    ($register:ident, $element:ident, $lanes:literal) => {
        impl Lanes<$element, Portable> for $register {
            #[inline(always)]
            fn splat(_: Portable, value: $element) -> Self {
                Self::splat(value)
            }

            #[inline(always)]
            fn load(_: Portable, chunk: &[$element; $lanes]) -> Self {
                Self::new(*chunk)
            }

            #[inline(always)]
            fn load_tail(_: Portable, tail: &[$element], fill: Self) -> Self {
                let mut chunk = fill.to_array();
                chunk[..tail.len()].copy_from_slice(tail);
                Self::new(chunk)
            }

            #[inline(always)]
            fn store(self, chunk: &mut [$element; $lanes]) {
                *chunk = self.to_array();
            }

            #[inline(always)]
            fn store_tail(self, tail: &mut [$element]) {
                tail.copy_from_slice(&self.to_array()[..tail.len()]);
            }

            #[inline(always)]
            fn rotated(self, by: usize) -> Self {
                let mut lanes = self.to_array();
                lanes.rotate_right(by);
                Self::new(lanes)
            }

            #[inline(always)]
            fn with_first(self, other: Self, count: usize) -> Self {
                let mut lanes = self.to_array();
                lanes[..count].copy_from_slice(&other.to_array()[..count]);
                Self::new(lanes)
            }

            #[inline(always)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                Self::mul_add(self, factor, addend)
            }

            #[inline(always)]
            fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
                Self::mul_neg_add(self, factor, addend)
            }

            #[inline(always)]
            fn sum(self) -> f64 {
                // `reduce_add` adds in an order that depends on the build.
                sum_of_lanes(self.to_array())
            }
        }
    };
}

portable_lanes!(f32x16, f32, 16);
portable_lanes!(f64x8, f64, 8);

//! [`Lanes`] on plain arrays: the executable specification that every backend is tested against.
//!
//! It is slow (a fused multiply-add is a library call on a baseline build) and obvious, one lane after
//! the other. Its operations are calls, so that there is less to compile.

use super::{Isa, Kernel, Lanes};
use std::ops::{Add, Mul, Sub};

/// The instruction set that every CPU has: none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model;

impl Isa for Model {
    type F32 = Array<f32, 16>;
    const SPECIALIZED: bool = false;
    const FUSED: bool = true;
    type F64 = Array<f64, 8>;

    #[inline(never)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

/// A logical register as an array.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array<E, const N: usize>([E; N]);

macro_rules! model_lanes {
    ($element:ident, $lanes:literal) => {
        impl Add for Array<$element, $lanes> {
            type Output = Self;
            #[inline(never)]
            fn add(self, other: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
            }
        }

        impl Sub for Array<$element, $lanes> {
            type Output = Self;
            #[inline(never)]
            fn sub(self, other: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
            }
        }

        impl Mul for Array<$element, $lanes> {
            type Output = Self;
            #[inline(never)]
            fn mul(self, other: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane] * other.0[lane]))
            }
        }

        impl Lanes<$element, Model> for Array<$element, $lanes> {
            #[inline(never)]
            fn splat(_: Model, value: $element) -> Self {
                Self([value; $lanes])
            }

            #[inline(never)]
            fn load(_: Model, chunk: &[$element; $lanes]) -> Self {
                Self(*chunk)
            }

            #[inline(never)]
            fn load_tail(_: Model, tail: &[$element], fill: Self) -> Self {
                Self(std::array::from_fn(|lane| *tail.get(lane).unwrap_or(&fill.0[lane])))
            }

            #[inline(never)]
            fn store(self, chunk: &mut [$element; $lanes]) {
                *chunk = self.0;
            }

            #[inline(never)]
            fn store_tail(self, tail: &mut [$element]) {
                tail.copy_from_slice(&self.0[..tail.len()]);
            }

            #[inline(never)]
            fn rotated(self, by: usize) -> Self {
                Self(std::array::from_fn(|lane| self.0[(lane + $lanes - by) % $lanes]))
            }

            #[inline(never)]
            fn with_first(self, other: Self, count: usize) -> Self {
                Self(std::array::from_fn(|lane| if lane < count { other.0[lane] } else { self.0[lane] }))
            }

            #[inline(never)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
            }

            #[inline(never)]
            fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
                Self(std::array::from_fn(|lane| (-self.0[lane]).mul_add(factor.0[lane], addend.0[lane])))
            }

            #[inline(never)]
            fn sum(self) -> f64 {
                sum_of_lanes(self.0)
            }
        }
    };
}

model_lanes!(f32, 16);
model_lanes!(f64, 8);

/// The upper half is added to the lower half until one lane is left, from four lanes on in `f64`.
#[inline(always)]
pub(super) fn sum_of_lanes<E: Copy + Add<Output = E> + Into<f64>, const N: usize>(lanes: [E; N]) -> f64 {
    let four = halved::<E, N, 4>(lanes).map(E::into);
    halved::<f64, 4, 1>(four)[0]
}

/// The upper half of `N` lanes is added to the lower half until `M` are left.
#[inline(always)]
fn halved<E: Copy + Add<Output = E>, const N: usize, const M: usize>(mut lanes: [E; N]) -> [E; M] {
    let mut half = N / 2;
    while half >= M {
        for lane in 0..half {
            lanes[lane] = lanes[lane] + lanes[lane + half];
        }
        half /= 2;
    }
    std::array::from_fn(|lane| lanes[lane])
}

//! The number types that the kernels take, and what each is computed in.

use crate::grad_check::Checked;
use crate::kernel::Work;
use crate::kernel::wide::{Double, Wide};
use crate::simd::{Backend, Isa, Lanes};

/// A floating-point type that the kernels take: [`f32`] or [`f64`].
///
/// Elements are computed in their own type, 64 bytes at a time; the handful of values that a row has
/// (its mean, variance, `rstd`) are finished in `f64`.
///
/// The trait is sealed: a kernel for another type needs its own accuracy bounds and tests.
///
/// ```
/// use llm_operator::Element;
///
/// fn rms<T: Element>(values: &[T]) -> f64 {
///     let sum: f64 = values.iter().map(|value| value.to_f64().powi(2)).sum();
///     (sum / values.len() as f64).sqrt()
/// }
/// assert_eq!(rms(&[3.0_f32, -3.0]), 3.0);
/// ```
#[expect(private_bounds, reason = "the private bounds are what seals the trait")]
pub trait Element:
    Vectorized
    // The one place where data does not flow one way: so the checker is compiled with this crate, not with each user.
    + Checked
    + Copy
    + Default
    + PartialEq
    + PartialOrd
    + std::fmt::Debug
    + std::fmt::Display
    + Send
    + Sync
    + 'static
{
    /// The type's name: `f32` or `f64`.
    const NAME: &'static str;
    /// Half the distance from 1 to the next number: 2^-24 or 2^-53.
    const UNIT_ROUNDOFF: f64;

    /// The same value as an `f64`: always exact.
    fn to_f64(self) -> f64;

    /// The nearest value of this type, ties to even; beyond its range an infinity.
    fn from_f64(value: f64) -> Self;
}

/// How a type fills a 64-byte register, for each instruction set.
pub(crate) trait Vectorized: Sized + 'static {
    /// 64 bytes of elements in memory.
    type Chunk: Copy + AsRef<[Self]> + AsMut<[Self]> + 'static;
    /// 64 bytes of elements in registers.
    type Lanes<I: Isa>: Lanes<Self, I>;
    /// A number with at least twice the digits.
    type Wide: Wide + std::fmt::Debug;
    /// Whether squares of elements can be out of the range of `f64`.
    const HAS_WIDE_RANGE: bool;
    /// Elements in 64 bytes.
    const LANES: usize;
    /// Zero.
    const ZERO: Self;

    /// The bits of the value.
    fn bits(self) -> u64;

    /// Runs a kernel.
    ///
    /// Not generic, so that the kernels are compiled once, with this crate, and not again in each that depends on it.
    fn run(backend: Backend, work: Work<'_, Self>);

    /// Cuts a slice into 64-byte chunks and a tail of fewer than [`Self::LANES`] elements.
    fn chunks(slice: &[Self]) -> (&[Self::Chunk], &[Self]);

    /// Cuts a mutable slice into 64-byte chunks and a tail.
    fn chunks_mut(slice: &mut [Self]) -> (&mut [Self::Chunk], &mut [Self]);
}

macro_rules! element {
    ($type:ident, $name:literal, $lanes:literal, $isa_lanes:ident, $wide:ident, $has_wide_range:literal) => {
        impl Element for $type {
            const NAME: &'static str = $name;
            const UNIT_ROUNDOFF: f64 = $type::EPSILON as f64 / 2.0;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }
        }

        impl Vectorized for $type {
            type Chunk = [Self; $lanes];
            type Lanes<I: Isa> = I::$isa_lanes;
            type Wide = $wide;
            const HAS_WIDE_RANGE: bool = $has_wide_range;
            const LANES: usize = $lanes;
            const ZERO: Self = 0.0;

            #[inline(always)]
            fn bits(self) -> u64 {
                self.to_bits().into()
            }

            #[inline(never)]
            fn run(backend: Backend, work: Work<'_, Self>) {
                match work {
                    Work::Forward(kernel) => backend.run(kernel),
                    Work::Backward(kernel) => backend.run(kernel),
                    Work::LongForward(kernel) => backend.run(kernel),
                    Work::LongBackward(kernel) => backend.run(kernel),
                    Work::AddInto(kernel) => backend.run(kernel),
                    Work::AddLost(kernel) => backend.run(kernel),
                    Work::Copy(kernel) => backend.run(kernel),
                }
            }

            #[inline(always)]
            fn chunks(slice: &[Self]) -> (&[Self::Chunk], &[Self]) {
                slice.as_chunks()
            }

            #[inline(always)]
            fn chunks_mut(slice: &mut [Self]) -> (&mut [Self::Chunk], &mut [Self]) {
                slice.as_chunks_mut()
            }
        }
    };
}

element!(f32, "f32", 16, F32, f64, false);
element!(f64, "f64", 8, F64, Double, true);

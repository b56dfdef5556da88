//! What a register is: 64 bytes of elements, on every instruction set.
//!
//! An [`Isa`] is a token. To hold one is the proof that this CPU has the instruction set, because only
//! detection hands them out. A [`Lanes`] value carries its token, so that arithmetic on it is safe to
//! call and reads like arithmetic.
//!
//! Every backend has the same logical register: 16 `f32` or 8 `f64`, be it four xmm, two ymm, one zmm
//! or an array. Kernels see one lane count, sums are taken in one fixed order, and so backends with
//! fused multiply-add agree to the last bit.

mod backend;
pub(crate) mod model;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

pub use backend::Backend;

use crate::element::Vectorized;
use std::fmt::Debug;
use std::ops::{Add, Mul, Sub};

/// Proof that the CPU has an instruction set, and the registers that go with it.
pub(crate) trait Isa: Copy + Send + Sync + Debug + 'static {
    /// 16 `f32`.
    type F32: Lanes<f32, Self>;
    /// 8 `f64`.
    type F64: Lanes<f64, Self>;

    /// Whether more than the plainest loops is compiled: of known length for the commonest widths, over eight narrow rows
    /// at a time, past the caches. They give the same bits.
    const SPECIALIZED: bool;

    /// Registers of 64 bytes: those of SSE2, unless an instruction set says otherwise.
    const REGISTERS: usize = 4;

    /// Whether [`Lanes::mul_add`] is known to round once.
    const FUSED: bool;

    /// Runs a kernel compiled for this instruction set, as a call: a kernel inside of others is compiled once, not once in
    /// each of them.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// Eight registers as rows are turned into the registers of their columns.
    #[inline(always)]
    fn transposed(self, rows: [Self::F64; BATCH]) -> [Self::F64; BATCH] {
        let mut columns = [[0.0; BATCH]; BATCH];
        for i in 0..BATCH {
            let mut row = [0.0; BATCH];
            rows[i].store(&mut row);
            for j in 0..BATCH {
                columns[j][i] = row[j];
            }
        }
        let mut found = rows;
        for j in 0..BATCH {
            found[j] = Self::F64::load(self, &columns[j]);
        }
        found
    }

    /// Asks for the cache line of `value`, which is read soon.
    #[inline(always)]
    fn prefetch<V>(self, value: &V) {
        let _ = value;
    }

    /// Makes streaming stores visible to other threads, before a result is handed on.
    fn fence(self) {}
}

/// A piece of work that is compiled once for each instruction set.
///
/// `run` and everything that it calls, down to the operations of [`Lanes`], is `#[inline(always)]`: only
/// then is it compiled with the instruction set's target features.
pub(crate) trait Kernel {
    /// What the work gives.
    type Output;

    /// Does the work.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Registers that are summed together: as many as a register has `f64`.
pub(crate) const BATCH: usize = 8;

/// 64 bytes of elements in registers.
pub(crate) trait Lanes<E: Vectorized, I: Isa>:
    Copy + Debug + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// `value` in every lane.
    fn splat(isa: I, value: E) -> Self;

    /// Reads 64 bytes, at any alignment.
    fn load(isa: I, chunk: &E::Chunk) -> Self;

    /// Reads fewer elements than a register has; the other lanes are those of `fill`.
    fn load_tail(isa: I, tail: &[E], fill: Self) -> Self;

    /// Writes 64 bytes, at any alignment.
    fn store(self, chunk: &mut E::Chunk);

    /// Writes the first lanes to a slice shorter than a register.
    fn store_tail(self, tail: &mut [E]);

    /// Writes 64 bytes, at a multiple of 64 bytes, past the caches where the CPU can.
    ///
    /// Panics where the CPU can and `chunk` is not aligned.
    #[inline(always)]
    fn stream(self, chunk: &mut E::Chunk) {
        self.store(chunk);
    }

    /// Lane `i` moves to lane `i + by`, the last `by` lanes, fewer than all, to the front.
    fn rotated(self, by: usize) -> Self;

    /// The first `count` lanes are those of `other`.
    fn with_first(self, other: Self, count: usize) -> Self;

    /// `self * factor + addend`, with one rounding wherever the hardware has it.
    fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// `addend - self * factor`, likewise.
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self;

    /// The sum over the lanes: the upper half is added to the lower half until one lane is left, from four lanes on in `f64`.
    /// (Of 16 `f32`, two roundings more than all in `f64`, beside those of what is in the lanes, and a quarter of the conversions.)
    fn sum(self) -> f64;

    /// [`sum`](Self::sum) of eight registers: transposed, they take fewer additions than one by one.
    #[inline(always)]
    fn sums(isa: I, registers: &[Self; BATCH]) -> I::F64 {
        let mut found = [0.0; BATCH];
        for i in 0..BATCH {
            found[i] = registers[i].sum();
        }
        I::F64::load(isa, &found)
    }
}

/// Whether the CPU is one of AMD's, for which some ways through the kernels, of the same bits, are chosen otherwise:
///
/// - Rows without gamma and beta, backward of more than 2 KiB and forward of 3 to 16, are read from memory and then
///   written, one at a time. Such a CPU reads ahead by itself while streaming stores drain, as long as no other reads come
///   between: backward of 8192x768 without gamma takes as long as a sum of two arrays on an EPYC, and 1.4 times as
///   long with a row read while another is written; on a Xeon the latter takes 0.9 to 1.3 times as long as that sum.
/// - Backward of rows from memory goes in blocks where they are short, with gamma if dgamma or dbeta is wanted, and where they are
///   longer than 4 KiB and have gamma. Short ones with dgamma or dbeta go past the caches as whole cache lines alone.
pub(crate) fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86::is_amd();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Pages of 4 KiB whose addresses a core has at hand, where the CPU says.
pub(crate) fn addressed_pages() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return x86::addressed_pages();
    #[cfg(not(target_arch = "x86_64"))]
    return None;
}

/// The values of a register.
#[inline(always)]
pub(crate) fn values<I: Isa, L: Lanes<f64, I>>(register: L) -> [f64; BATCH] {
    let mut found = [0.0; BATCH];
    register.store(&mut found);
    found
}

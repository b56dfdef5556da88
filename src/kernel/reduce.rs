//! Sums of whole arrays, element by element: the partial `dgamma` and `dbeta` of groups of rows.

use crate::Element;
use crate::simd::{Isa, Kernel, Lanes};

/// `total += part`, element by element, and what rounding took from the totals is added up in `lost`.
///
/// (Knuth's exact error of an addition.) A sum of many equal parts would else round the same way each time.
#[derive(Debug)]
pub(crate) struct AddInto<'a, T> {
    pub(crate) total: &'a mut [T],
    pub(crate) lost: &'a mut [T],
    pub(crate) part: &'a [T],
}

impl<T: Element> Kernel for AddInto<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        add_into(isa, self.total, self.lost, self.part);
    }
}

/// The work of [`AddInto`].
#[inline(always)]
pub(super) fn add_into<T: Element, I: Isa>(isa: I, total: &mut [T], lost: &mut [T], part: &[T]) {
    let (part, part_tail) = T::chunks(part);
    let (total, total_tail) = T::chunks_mut(total);
    let (lost, lost_tail) = T::chunks_mut(lost);
    for ((total, lost), part) in total.iter_mut().zip(lost).zip(part) {
        let (sum, error) = add::<T, I>(T::Lanes::load(isa, total), T::Lanes::load(isa, part));
        sum.store(total);
        (T::Lanes::load(isa, lost) + error).store(lost);
    }
    if !part_tail.is_empty() {
        let zero = T::Lanes::splat(isa, T::ZERO);
        let load = |values: &[T]| T::Lanes::load_tail(isa, values, zero);
        let (sum, error) = add::<T, I>(load(total_tail), load(part_tail));
        sum.store_tail(total_tail);
        (load(lost_tail) + error).store_tail(lost_tail);
    }
}

/// Gives back to sums what rounding took, which [`AddInto`] added up.
#[derive(Debug)]
pub(crate) struct AddLost<'a, T> {
    pub(crate) total: &'a mut [T],
    pub(crate) lost: &'a [T],
}

impl<T: Element> Kernel for AddLost<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (total, lost) in self.total.iter_mut().zip(self.lost) {
            let sum = total.to_f64() + lost.to_f64();
            // The rounding error of an infinite sum is NaN: the sum stays what it is.
            *total = if sum.is_nan() { *total } else { T::from_f64(sum) };
        }
    }
}

/// `a + b` and its rounding error, exactly.
#[inline(always)]
fn add<T: Element, I: Isa>(a: T::Lanes<I>, b: T::Lanes<I>) -> (T::Lanes<I>, T::Lanes<I>) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

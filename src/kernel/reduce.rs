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
        let (part, part_tail) = T::chunks(self.part);
        let (total, total_tail) = T::chunks_mut(self.total);
        let (lost, lost_tail) = T::chunks_mut(self.lost);
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
}

/// `a + b` and its rounding error, exactly.
#[inline(always)]
fn add<T: Element, I: Isa>(a: T::Lanes<I>, b: T::Lanes<I>) -> (T::Lanes<I>, T::Lanes<I>) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

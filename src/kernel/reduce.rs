//! Sums of whole arrays, element by element: the partial `dgamma` and `dbeta` of blocks of rows.

use crate::Element;
use crate::simd::{Isa, Kernel, Lanes};

/// `total += part`, element by element.
#[derive(Debug)]
pub(crate) struct AddInto<'a, T> {
    pub(crate) total: &'a mut [T],
    pub(crate) part: &'a [T],
}

impl<T: Element> Kernel for AddInto<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (part, part_tail) = T::chunks(self.part);
        let (total, total_tail) = T::chunks_mut(self.total);
        for (total, part) in total.iter_mut().zip(part) {
            (T::Lanes::load(isa, total) + T::Lanes::load(isa, part)).store(total);
        }
        for (total, part) in total_tail.iter_mut().zip(part_tail) {
            *total = T::from_f64(total.to_f64() + part.to_f64());
        }
    }
}

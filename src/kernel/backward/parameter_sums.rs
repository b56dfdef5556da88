//! Where dgamma and dbeta are added up: eight rows in a block, blocks in a group, groups in the totals.

use crate::Element;
use crate::kernel::reduce;
use crate::simd::{Isa, Lanes};

/// Rows whose dgamma and dbeta are added up before they are added to the totals. A call that continues the sums of another
/// starts at a multiple of it.
pub(crate) const GROUP: usize = 128;

/// Sums of dgamma and dbeta: [`len`](Self::len) elements each, those of dbeta after those of dgamma.
#[derive(Debug)]
pub(crate) struct ParameterSums<'a, T> {
    pub(crate) total: &'a mut [T],
    /// What rounding took from the totals.
    pub(crate) lost: &'a mut [T],
    /// The sums of a group: zeros before and after, best at a multiple of 64 bytes.
    pub(crate) group: &'a mut [T],
    /// Whether the group is the first: it is added up in the totals, and `lost` and `group` are not used.
    pub(crate) is_first: bool,
    /// Whether the totals are zeros still: the first block is then added up in them, which gives the same sums but for the
    /// sign of zeros.
    pub(crate) is_zero: bool,
}

impl<T: Element> ParameterSums<'_, T> {
    /// Elements of each array, for rows of `width`.
    pub(crate) fn len(width: usize) -> usize {
        2 * Self::start_of_dbeta(width)
    }

    /// Where dbeta starts: at a multiple of 64 bytes after dgamma.
    pub(crate) fn start_of_dbeta(width: usize) -> usize {
        width.next_multiple_of(T::LANES)
    }

    /// dgamma and dbeta of the group.
    #[inline(always)]
    pub(super) fn of_group(&mut self, width: usize) -> (&mut [T], &mut [T]) {
        Self::halves(if self.is_first { self.total } else { self.group }, width)
    }

    /// dgamma and dbeta of an array of both.
    #[inline(always)]
    pub(super) fn halves(both: &mut [T], width: usize) -> (&mut [T], &mut [T]) {
        let (dgamma, dbeta) = both.split_at_mut(Self::start_of_dbeta(width));
        (&mut dgamma[..width], &mut dbeta[..width])
    }

    /// Adds a block of rows to the group, and leaves zeros.
    #[inline(always)]
    pub(super) fn add_block<I: Isa>(&mut self, isa: I, block: &mut [T]) {
        let group = T::chunks_mut(if self.is_first { self.total } else { self.group }).0;
        let zero = T::Lanes::splat(isa, T::ZERO);
        for (group, block) in group.iter_mut().zip(T::chunks_mut(block).0) {
            (T::Lanes::load(isa, group) + T::Lanes::load(isa, block)).store(group);
            zero.store(block);
        }
    }

    /// Adds the group to the totals, and starts another.
    #[inline(always)]
    pub(super) fn close_group<I: Isa>(&mut self, isa: I) {
        if !self.is_first {
            reduce::add_into(isa, self.total, self.lost, self.group);
            self.group.fill(T::ZERO);
        }
        self.is_first = false;
    }
}

/// How many rows were added up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// In the group, blocks of eight.
    pub(super) in_group: usize,
    /// Of the next block.
    pub(super) in_block: usize,
    /// Whether the array of the block holds any of them.
    pub(super) is_pending: bool,
}

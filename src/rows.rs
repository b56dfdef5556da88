//! Rows of known width, read from slices or from views of any dimension and stride.
//!
//! Past this point no shape can be wrong.

use crate::Element;
use ndarray::{ArrayViewD, Axis};
use std::ops::Range;

/// A matrix of `count` rows of `width` elements, to read from.
#[derive(Clone, Debug)]
pub(crate) struct Rows<'a, T> {
    storage: Storage<'a, T>,
    count: usize,
    width: usize,
}

#[derive(Clone, Debug)]
enum Storage<'a, T> {
    Contiguous(&'a [T]),
    /// The first `outer` axes index the rows, the others lie within one.
    Strided {
        view: ArrayViewD<'a, T>,
        outer: usize,
    },
}

impl<'a, T: Element> Rows<'a, T> {
    /// Rows that lie one after the other. `slice` is a whole number of rows.
    pub(crate) fn from_slice(slice: &'a [T], width: usize) -> Self {
        Self { storage: Storage::Contiguous(slice), count: slice.len() / width, width }
    }

    /// The rows of a view whose last `normalized_dims` axes hold `width` elements.
    pub(crate) fn from_view(view: ArrayViewD<'a, T>, normalized_dims: usize, width: usize) -> Self {
        let count = view.len() / width;
        let storage = match view.to_slice() {
            Some(slice) => Storage::Contiguous(slice),
            None => Storage::Strided { outer: view.ndim() - normalized_dims, view },
        };
        Self { storage, count, width }
    }

    /// The number of rows.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether [`block`](Self::block) hands out memory as it is.
    pub(crate) fn is_contiguous(&self) -> bool {
        matches!(self.storage, Storage::Contiguous(_))
    }

    /// Rows `range`, one after the other: as they lie in memory where they do, else gathered into `scratch`.
    pub(crate) fn block<'s>(&'s self, range: Range<usize>, scratch: &'s mut Vec<T>) -> &'s [T] {
        match &self.storage {
            Storage::Contiguous(slice) => &slice[range.start * self.width..range.end * self.width],
            Storage::Strided { view, outer } => {
                scratch.clear();
                for row in range {
                    let row = row_of(view, *outer, row);
                    match row.as_slice() {
                        Some(row) => scratch.extend_from_slice(row),
                        None => scratch.extend(row.iter()),
                    }
                }
                scratch
            }
        }
    }
}

/// The part of a view that one row is: the row's number, written in the base of the outer axes' lengths, picks it.
fn row_of<'v, T>(view: &'v ArrayViewD<'_, T>, outer: usize, mut row: usize) -> ArrayViewD<'v, T> {
    let mut found = view.view();
    for axis in (0..outer).rev() {
        let len = view.len_of(Axis(axis));
        found = found.index_axis_move(Axis(axis), row % len);
        row /= len;
    }
    found
}

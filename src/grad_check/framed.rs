//! Arrays between canaries: elements before and after that nobody has a reason to write.
//!
//! An array that lies within a longer vector is an array like any other to an operation in safe Rust, which cannot
//! reach beyond it. One with SIMD stores or foreign code inside can, and then a canary shows it.

use ndarray::{Array1, ArrayD, IxDyn, s};

use crate::Element;

/// Elements on each side: the widest register and more.
const FRAME: usize = 64;

/// What the canaries hold: neither of the values that buffers are poisoned with.
const CANARY: f64 = 7.25e-12;

/// An array in C order, filled with `value`, between canaries.
pub(super) fn framed<T: Element>(shape: &[usize], value: T) -> ArrayD<T> {
    let len: usize = shape.iter().product();
    if len == 0 {
        return ArrayD::from_elem(IxDyn(shape), value);
    }
    let mut all = Array1::from_elem(len + 2 * FRAME, T::from_f64(CANARY));
    all.slice_mut(s![FRAME..FRAME + len]).fill(value);
    // The vector stays as long as it is.
    all.slice_collapse(s![FRAME..FRAME + len]);
    all.into_shape_with_order(IxDyn(shape)).unwrap_or_default()
}

/// Whether an operation wrote beside an array that it was given framed: the first element, counted from the array's
/// own. Of an array that it replaced with its own nothing is known.
pub(super) fn written_beside<T: Element>(array: ArrayD<T>) -> Option<isize> {
    let len = array.len();
    let (all, offset) = array.into_raw_vec_and_offset();
    if offset != Some(FRAME) || all.len() != len + 2 * FRAME {
        return None;
    }
    let canary = T::from_f64(CANARY).to_f64().to_bits();
    let broken = |index: &usize| all[*index].to_f64().to_bits() != canary;
    let found = (0..FRAME).chain(FRAME + len..all.len()).find(broken)?;
    Some(found as isize - FRAME as isize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_framed_array_is_an_array_in_c_order() {
        let array = framed::<f32>(&[2, 3], 1.5);
        assert_eq!(array, ArrayD::from_elem(IxDyn(&[2, 3]), 1.5));
        assert!(array.is_standard_layout() && array.as_slice().is_some_and(|slice| slice.len() == 6));
        assert_eq!(written_beside(array), None);
        assert_eq!(framed::<f64>(&[0, 3], 1.5).shape(), [0, 3]);
    }

    #[test]
    fn what_is_written_beside_an_array_is_found() {
        for (position, expected) in [(FRAME - 1, -1), (0, -(FRAME as isize)), (FRAME + 6, 6)] {
            let (mut all, offset) = framed::<f64>(&[6], 0.0).into_raw_vec_and_offset();
            assert_eq!((all.len(), offset), (6 + 2 * FRAME, Some(FRAME)));
            all[position] = f64::NAN;
            let mut array = Array1::from_vec(all);
            array.slice_collapse(s![FRAME..FRAME + 6]);
            assert_eq!(written_beside(array.into_dyn()), Some(expected));
        }
        // An array of the operation's own has no canaries.
        assert_eq!(written_beside(ArrayD::from_elem(IxDyn(&[6 + 2 * FRAME]), 0.0)), None);
    }
}

//! Rows that are computed with care: narrow ones, and those whose squares leave the range.

use crate::Element;
use crate::kernel::careful::CarefulRow;
use crate::kernel::forward::Parameters;
use crate::kernel::wide::Wide;

/// Where the gradients of some rows go.
#[derive(Debug)]
pub(super) struct Targets<'a, T> {
    /// As many elements as x, where it is wanted, and whether to add to it.
    pub(super) dx: Option<(&'a mut [T], bool)>,
    /// `width` elements of dgamma and of dbeta, which are added to, where either is wanted.
    pub(super) sums: Option<(&'a mut [T], &'a mut [T])>,
}

/// One row outside the ordinary range, of any width.
#[inline(never)]
pub(super) fn rescued_row<T: Element>(parameters: &Parameters<'_, T>, x: &[T], dy: &[T], targets: Targets<'_, T>) {
    let width = if targets.sums.is_some() { x.len() } else { 0 };
    let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![T::Wide::new(0.0); width]);
    let sums = targets.sums.is_some().then_some((&mut dgamma[..], &mut dbeta[..]));
    let Targets { dx, sums: totals } = targets;
    careful_row(parameters, x, dy, dx, sums);
    add_sums(totals, &dgamma, &dbeta);
}

/// One row: its dx, and its part of dgamma and dbeta, which is added to `sums`.
#[inline(always)]
pub(super) fn careful_row<T: Element>(
    parameters: &Parameters<'_, T>,
    x: &[T],
    dy: &[T],
    dx: Option<(&mut [T], bool)>,
    sums: Option<(&mut [T::Wide], &mut [T::Wide])>,
) {
    let nan = T::from_f64(f64::NAN);
    let row = CarefulRow::new(x, parameters.epsilon);
    if let Some((dgamma, dbeta)) = sums {
        for (column, dy) in dy.iter().enumerate() {
            let dy = T::Wide::new(dy.to_f64());
            let xhat = row.as_ref().map_or(T::Wide::new(f64::NAN), |row| row.xhat(column));
            dgamma[column] = dgamma[column] + xhat * dy;
            dbeta[column] = dbeta[column] + dy;
        }
    }
    let Some((dx, accumulate)) = dx else {
        return;
    };
    let found = row.as_ref().and_then(|row| row.dx(dy, parameters.gamma));
    for (column, dx) in dx.iter_mut().enumerate() {
        let value = found.map_or(nan, |found| found.value(column));
        *dx = if accumulate { T::from_f64(dx.to_f64() + value.to_f64()) } else { value };
    }
}

/// Adds sums taken with care to those of the rows before.
#[inline(always)]
pub(super) fn add_sums<T: Element>(totals: Option<(&mut [T], &mut [T])>, dgamma: &[T::Wide], dbeta: &[T::Wide]) {
    if let Some((dgamma_total, dbeta_total)) = totals {
        for (total, part) in dgamma_total.iter_mut().zip(dgamma).chain(dbeta_total.iter_mut().zip(dbeta)) {
            *total = T::from_f64((T::Wide::new(total.to_f64()) + *part).value());
        }
    }
}

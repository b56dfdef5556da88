//! The identities of LayerNorm's gradient.

use ndarray::{ArrayD, CowArray, IxDyn};
use rayon::prelude::*;

use super::operation::Identity;
use super::verdict::ROUNDINGS_OF_TERMS;
use crate::Element;

/// What LayerNorm's gradients satisfy, row by row and column by column, whatever the numbers are: of each equation the
/// instance that fares worst.
///
/// With `g = dy gamma`, `xhat = (x - mean) rstd` and `c2 = mean(g xhat)`, all over a row of `width` elements:
///
/// - `sum(dx) = 0`: adding a constant to a row changes nothing;
/// - `sum(dx xhat) = rstd width c2 epsilon / (var + epsilon)`: scaling a row changes nothing but for `epsilon`;
/// - `dgamma = sum(dy xhat)` and `dbeta = sum(dy)`, over the rows, if `parameters` holds `dgamma` and `dbeta`.
///
/// `x`, `dy` and `dx` have one shape, of which the last dimension is normalized; `gamma` is as long as that. Nothing that
/// grows with the rows is allocated, but the sums of the columns for every 64 of them.
///
/// # What rounding explains
///
/// With `gamma(n) = 4 (16 + sqrt(n)) u`, the error granted to a sum of `n` rounded terms, `u` being the unit roundoff of
/// the gradients' type, an element of `dx` is granted
///
/// ```text
/// gamma(width) (rstd (|g| + mean|g| + size |c2| + |xhat| mean(|g| size)) + |dx| mean(|xhat| size)) + 8 u max|dx|
/// ```
///
/// the terms of [`layer_norm_terms`], each with its own magnitudes, and some roundings of the row's size. Both sides sum
/// these: as they are, and times `|xhat|`.
///
/// The statistics here are taken in `f64`, with a mean of twice its digits: each `x - mean` is then off by a few
/// roundings of itself, and by what the sum of the differences was off, a share of `mean|x - mean|`, however far the row
/// lies from zero. So `xhat` is off by at most `e = gamma64(width) (|xhat| + mean|xhat|)`, and `rstd` and `var + epsilon` by
/// `gamma64(width)` of themselves, where `gamma64` has the unit roundoff of `f64`. On the left of the second equation that
/// is `sum(|dx| e)`, on its right `rstd^3 epsilon sum(|g| e)`: `width c2` is `sum(g xhat)`, and what the factors are off
/// by is a part of the same sum. Both are granted in addition. In `f64` they count where `dx` is nearly right and its own
/// terms are small: of rows of two elements a mean that is rounded to `f64` alone would do more than all of `dx`.
///
/// The first two follow from `dx = rstd (g - mean(g) - xhat mean(g xhat))` and `sum(xhat) = 0`, `mean(xhat^2) = var /
/// (var + epsilon)` (J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016).
///
/// ```
/// use llm_operator::grad_check::layer_norm_identities;
/// use ndarray::array;
///
/// let (x, dy) = (array![[1.0, 2.0, 6.0]].into_dyn(), array![[0.5, -1.0, 0.25]].into_dyn());
/// // A gradient that forgets the mean and the variance term.
/// let dx = dy.clone();
/// let identities = layer_norm_identities(&x, None, &dy, 1e-5, &dx, None);
/// assert!(identities.iter().any(|identity| (identity.left - identity.right).abs() > identity.bound));
/// ```
pub fn layer_norm_identities<T: Element>(
    x: &ArrayD<T>,
    gamma: Option<&ArrayD<T>>,
    dy: &ArrayD<T>,
    epsilon: f64,
    dx: &ArrayD<T>,
    parameters: Option<(&ArrayD<T>, &ArrayD<T>)>,
) -> Vec<Identity> {
    T::layer_norm_identities(Layer { x, gamma, dy, epsilon }, dx, parameters)
}

/// What LayerNorm's gradients are of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a, T> {
    x: &'a ArrayD<T>,
    gamma: Option<&'a ArrayD<T>>,
    dy: &'a ArrayD<T>,
    epsilon: f64,
}

/// [`layer_norm_identities`].
pub(super) fn of_layer_norm<T: Element>(
    layer: Layer<'_, T>,
    dx: &ArrayD<T>,
    parameters: Option<(&ArrayD<T>, &ArrayD<T>)>,
) -> Vec<Identity> {
    let Layer { x, epsilon, .. } = layer;
    let width = x.shape().last().copied().unwrap_or(1).max(1);
    let granted_to_row = granted::<T>(width);
    let dx = dx.as_standard_layout();
    let dx = dx.as_slice().unwrap_or_default();
    let look = |[sum, sum_along]: &mut [Worst; 2], number: usize, row: &Row| {
        let Some(dx) = dx.get(number * width..(number + 1) * width).filter(|_| row.is_in_range()) else { return };
        let dx: Vec<f64> = dx.iter().map(|dx| dx.to_f64()).collect();
        let rstd = row.statistics.rstd;
        let of_row = ROUNDINGS_OF_TERMS * T::UNIT_ROUNDOFF * dx.iter().fold(0.0, |most: f64, dx| most.max(dx.abs()));
        let (mut total, mut along, mut granted_total, mut granted_along) = (0.0, 0.0, 0.0, 0.0);
        for ((dx, terms), xhat) in dx.iter().zip(row.terms(&dx)).zip(&row.xhat) {
            let granted = granted_to_row * terms + of_row;
            total += dx;
            along += dx * xhat;
            granted_total += granted;
            granted_along += granted * xhat.abs();
        }
        granted_along += granted::<f64>(width) * row.own_roundings(&dx, epsilon);
        sum.look("row", number, total, 0.0, granted_total);
        let expected = rstd * width as f64 * row.c2 * epsilon * rstd * rstd;
        sum_along.look("row", number, along, expected, granted_along);
    };
    let none = || SUMS_OF_DX.map(Worst::of);
    let (columns, worst) = Rows::new(layer).visit(none, look);
    let [mut sum, mut sum_along] = none();
    for [of_block, along_of_block] in worst {
        sum.merge(of_block);
        sum_along.merge(along_of_block);
    }
    let mut worst = vec![sum, sum_along];
    if let Some((dgamma, dbeta)) = parameters {
        let granted = granted::<T>(x.len() / width);
        let mut gamma = Worst::of("dgamma = sum(dy xhat)");
        let mut beta = Worst::of("dbeta = sum(dy)");
        for (number, ((column, dgamma), dbeta)) in columns.iter().zip(dgamma).zip(dbeta).enumerate() {
            gamma.look("column", number, dgamma.to_f64(), column.gamma, granted * column.gamma_size);
            beta.look("column", number, dbeta.to_f64(), column.beta, granted * column.beta_size);
        }
        worst.extend([gamma, beta]);
    }
    worst.into_iter().filter_map(|worst| worst.found).collect()
}

/// What the terms of LayerNorm's gradients amount to before they cancel: of `dx` the greatest in each row, of `dgamma`
/// and `dbeta` in each column.
///
/// The shapes are those of [`layer_norm_identities`]. This is what
/// [`Operation::gradient_terms`](super::Operation::gradient_terms) asks for. Of a row with `size = (|x| + |mean|)
/// rstd`, what the terms of `xhat` amount to, an element of `dx` has
///
/// ```text
/// rstd (|g| + mean|g| + size |c2| + |xhat| mean(|g| size)) + |dx| mean(|xhat| size)
/// ```
///
/// where the last part is what the rounding of the differences `x - mean` does to `rstd`; `dgamma` has `sum |dy| size`,
/// and `dbeta` has `sum |dy|`.
///
/// ```
/// use llm_operator::grad_check::layer_norm_terms;
/// use ndarray::array;
///
/// // Of one element a row, dx and dgamma are 0; but what cancels there is not.
/// let (x, dy) = (array![[3.0], [4.0]].into_dyn(), array![[0.5], [-1.0]].into_dyn());
/// let [dx, dgamma, dbeta] = layer_norm_terms::<f64>(&x, None, &dy, 1e-5);
/// assert!(dx.len() == 2 && dx[0] > 0.0 && dgamma[0] > 0.0);
/// assert_eq!(dbeta, [1.5]);
/// ```
pub fn layer_norm_terms<T: Element>(
    x: &ArrayD<T>,
    gamma: Option<&ArrayD<T>>,
    dy: &ArrayD<T>,
    epsilon: f64,
) -> [Vec<f64>; 3] {
    T::layer_norm_terms(Layer { x, gamma, dy, epsilon })
}

/// [`layer_norm_terms`].
pub(super) fn terms<T: Element>(layer: Layer<'_, T>) -> [Vec<f64>; 3] {
    let (columns, dx) = Rows::new(layer).visit(Vec::new, |dx, _, row| dx.push(row.greatest_terms()));
    [
        dx.into_iter().flatten().collect(),
        columns.iter().map(|column| column.gamma_size).collect(),
        columns.iter().map(|column| column.beta_size).collect(),
    ]
}

/// The equations of each row.
const SUMS_OF_DX: [&str; 2] = ["sum(dx) = 0", "sum(dx xhat) = rstd width c2 epsilon / (var + epsilon)"];

/// The relative error that is granted to a sum of this many rounded terms.
fn granted<T: Element>(terms: usize) -> f64 {
    4.0 * (16.0 + (terms as f64).sqrt()) * T::UNIT_ROUNDOFF
}

/// The instance of an equation that exceeds its bound by most.
struct Worst {
    name: &'static str,
    excess: f64,
    found: Option<Identity>,
}

impl Worst {
    fn of(name: &'static str) -> Self {
        Self { name, excess: 0.0, found: None }
    }

    fn look(&mut self, what: &str, number: usize, left: f64, right: f64, bound: f64) {
        let error = (left - right).abs();
        let excess = if error == 0.0 { 0.0 } else { error / bound };
        // What is not a number fails whatever the bound is.
        let excess = if excess.is_nan() { f64::INFINITY } else { excess };
        // A bound beyond the range says nothing.
        let says_nothing = bound == f64::INFINITY && error.is_finite();
        if !says_nothing && (self.found.is_none() || excess > self.excess) {
            self.excess = excess;
            self.found =
                Some(Identity { name: self.name.to_owned(), place: format!("{what} {number}"), left, right, bound });
        }
    }

    /// Takes over what was found later, where it is worse.
    fn merge(&mut self, later: Self) {
        if later.found.is_some() && (self.found.is_none() || later.excess > self.excess) {
            *self = later;
        }
    }
}

/// One row of a LayerNorm, in `f64`.
struct Row {
    statistics: Statistics,
    x: Vec<f64>,
    dy: Vec<f64>,
    xhat: Vec<f64>,
    g: Vec<f64>,
    /// `mean |g|`
    c1: f64,
    /// `mean(g xhat)`
    c2: f64,
}

impl Row {
    fn new(x: Vec<f64>, dy: Vec<f64>, gamma: Option<&[f64]>, epsilon: f64) -> Self {
        let width = x.len() as f64;
        let statistics = Statistics::of(&x, epsilon);
        let xhat: Vec<f64> = x.iter().map(|&x| statistics.normalized(x)).collect();
        let g: Vec<f64> = match gamma {
            Some(gamma) => dy.iter().zip(gamma).map(|(dy, gamma)| dy * gamma).collect(),
            None => dy.clone(),
        };
        let c1 = g.iter().map(|g| g.abs()).sum::<f64>() / width;
        let c2 = g.iter().zip(&xhat).map(|(g, xhat)| g * xhat).sum::<f64>() / width;
        Self { statistics, x, dy, xhat, g, c1, c2 }
    }

    /// Whether the statistics, as plain sums of squares give them, are within the range of `f64`.
    fn is_in_range(&self) -> bool {
        let rstd = self.statistics.rstd;
        // NaN is the operation's to explain.
        rstd.is_normal() || rstd.is_nan()
    }

    /// What the terms of each element of dx amount to before they cancel, with what the rounding of `xhat` does to the
    /// means over the row and to `rstd`.
    fn terms(&self, dx: &[f64]) -> impl Iterator<Item = f64> {
        let Self { statistics, c1, c2, .. } = self;
        let width = self.x.len() as f64;
        let sizes = || self.x.iter().map(|&x| statistics.size(x));
        let of_means = self.g.iter().zip(sizes()).map(|(g, size)| g.abs() * size).sum::<f64>() / width;
        let of_rstd = self.xhat.iter().zip(sizes()).map(|(xhat, size)| xhat.abs() * size).sum::<f64>() / width;
        let each = self.g.iter().zip(&self.x).zip(&self.xhat).zip(dx);
        each.map(move |(((g, &x), xhat), dx)| {
            let terms = g.abs() + c1 + statistics.size(x) * c2.abs() + xhat.abs() * of_means;
            statistics.rstd * terms + dx.abs() * of_rstd
        })
    }

    /// The greatest of these.
    fn greatest_terms(&self) -> f64 {
        let mean = self.g.iter().sum::<f64>() / self.x.len() as f64;
        let each = self.g.iter().zip(&self.xhat);
        let dx: Vec<f64> = each.map(|(g, xhat)| self.statistics.rstd * (g - mean - xhat * self.c2)).collect();
        self.terms(&dx).fold(0.0, f64::max)
    }

    /// What the roundings of this row's own `xhat` and `rstd` are relative to in `sum(dx xhat)` and in what it should be.
    fn own_roundings(&self, dx: &[f64], epsilon: f64) -> f64 {
        let rstd = self.statistics.rstd;
        let mean = self.xhat.iter().map(|xhat| xhat.abs()).sum::<f64>() / self.x.len() as f64;
        let each = self.xhat.iter().zip(dx).zip(&self.g);
        each.map(|((xhat, dx), g)| (xhat.abs() + mean) * (dx.abs() + epsilon * rstd * rstd * rstd * g.abs())).sum()
    }

    fn add_to(&self, columns: &mut [Column]) {
        for (((column, dy), xhat), &x) in columns.iter_mut().zip(&self.dy).zip(&self.xhat).zip(&self.x) {
            column.add(*dy, *xhat, self.statistics.size(x));
        }
    }
}

/// The rows of a LayerNorm.
struct Rows<'a, T: Element> {
    x: CowArray<'a, T, IxDyn>,
    dy: CowArray<'a, T, IxDyn>,
    width: usize,
    gamma: Option<Vec<f64>>,
    epsilon: f64,
}

/// Rows that one task looks at. What it finds of the columns is a few numbers for each, so that little grows with the rows.
const ROWS: usize = 64;

impl<'a, T: Element> Rows<'a, T> {
    fn new(layer: Layer<'a, T>) -> Self {
        let Layer { x, gamma, dy, epsilon } = layer;
        let width = x.shape().last().copied().unwrap_or(1).max(1);
        let gamma = gamma.map(|gamma| gamma.iter().map(|gamma| gamma.to_f64()).collect());
        Self { x: x.as_standard_layout(), dy: dy.as_standard_layout(), width, gamma, epsilon }
    }

    /// Looks at all rows, some at a time on all threads, and returns the sums over each column and what was found of each
    /// block of rows, in order.
    fn visit<F: Send>(
        &self,
        nothing: impl Fn() -> F + Sync,
        look: impl Fn(&mut F, usize, &Row) + Sync,
    ) -> (Vec<Column>, Vec<F>) {
        let [x, dy] = [&self.x, &self.dy].map(|array| array.as_slice().unwrap_or_default());
        let len = ROWS * self.width;
        let block = |(block, (x, dy)): (usize, (&[T], &[T]))| {
            let (mut columns, mut found) = (vec![Column::default(); self.width], nothing());
            for (number, (x, dy)) in x.chunks_exact(self.width).zip(dy.chunks_exact(self.width)).enumerate() {
                let [x, dy] = [x, dy].map(|row| row.iter().map(|value| value.to_f64()).collect());
                let row = Row::new(x, dy, self.gamma.as_deref(), self.epsilon);
                row.add_to(&mut columns);
                look(&mut found, block * ROWS + number, &row);
            }
            (columns, found)
        };
        let blocks: Vec<_> = x.par_chunks(len).zip(dy.par_chunks(len)).enumerate().map(block).collect();
        let mut columns = vec![Column::default(); self.width];
        let mut found = Vec::with_capacity(blocks.len());
        for (of_block, found_in_block) in blocks {
            columns.iter_mut().zip(&of_block).for_each(|(column, more)| column.merge(more));
            found.push(found_in_block);
        }
        (columns, found)
    }
}

struct Statistics {
    mean: f64,
    /// What the rounding of the mean left out.
    rest: f64,
    rstd: f64,
}

impl Statistics {
    /// Of the definition. A constant row without `epsilon` is normalized to zeros, and so are its gradients.
    fn of(x: &[f64], epsilon: f64) -> Self {
        let width = x.len() as f64;
        let mean = x.iter().sum::<f64>() / width;
        let rest = x.iter().map(|x| x - mean).sum::<f64>() / width;
        let variance = x.iter().map(|x| (x - mean - rest).powi(2)).sum::<f64>() / width;
        let denominator = variance + epsilon;
        Self { mean, rest, rstd: if denominator == 0.0 { 0.0 } else { 1.0 / denominator.sqrt() } }
    }

    fn normalized(&self, x: f64) -> f64 {
        (x - self.mean - self.rest) * self.rstd
    }

    /// What the terms of xhat amount to before they cancel: where x is near the mean, rounding is as large as
    /// elsewhere.
    fn size(&self, x: f64) -> f64 {
        (x.abs() + self.mean.abs()) * self.rstd
    }
}

/// The sums over the rows of one column.
#[derive(Debug, Clone, Copy, Default)]
struct Column {
    gamma: f64,
    gamma_size: f64,
    beta: f64,
    beta_size: f64,
}

impl Column {
    fn merge(&mut self, more: &Self) {
        self.gamma += more.gamma;
        self.gamma_size += more.gamma_size;
        self.beta += more.beta;
        self.beta_size += more.beta_size;
    }

    fn add(&mut self, dy: f64, xhat: f64, xhat_size: f64) {
        self.gamma += dy * xhat;
        self.gamma_size += dy.abs() * xhat_size;
        self.beta += dy;
        self.beta_size += dy.abs();
    }
}

//! The identities of LayerNorm's gradient.

use ndarray::ArrayD;

use super::operation::Identity;
use crate::Element;

/// What LayerNorm's gradients satisfy, row by row and column by column, whatever the numbers are.
///
/// With `g = dy gamma`, `xhat = (x - mean) rstd` and `c2 = mean(g xhat)`, all over a row of `width` elements:
///
/// - `sum(dx) = 0`: adding a constant to a row changes nothing;
/// - `sum(dx xhat) = rstd width c2 epsilon / (var + epsilon)`: scaling a row changes nothing but for `epsilon`;
/// - `dgamma = sum(dy xhat)` and `dbeta = sum(dy)`, over the rows, if `parameters` holds `dgamma` and `dbeta`.
///
/// `x`, `dy` and `dx` have one shape, of which the last dimension is normalized; `gamma` is as long as that. The statistics are
/// taken in `f64`. The bounds grant each element the rounding of its own terms and of sums as long as the row.
///
/// The first two follow from `dx = rstd (g - mean(g) - xhat mean(g xhat))` and `sum(xhat) = 0`, `mean(xhat^2) = var / (var + epsilon)`
/// (J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016).
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
    let width = x.shape().last().copied().unwrap_or(1).max(1);
    let gamma: Vec<f64> = gamma.map_or(vec![1.0; width], |gamma| gamma.iter().map(|g| g.to_f64()).collect());
    let [x, dy, dx] = [x, dy, dx].map(|array| array.iter().map(|value| value.to_f64()).collect::<Vec<_>>());
    let mut columns = vec![Column::default(); width];
    let mut identities = Vec::new();
    let rows = x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks(width));
    let count = x.len() / width;
    for (row, ((x, dy), dx)) in rows.enumerate() {
        let statistics = Statistics::of(x, epsilon);
        identities.extend(row_identities::<T>(row, x, dy, dx, &gamma, epsilon, &statistics));
        for ((column, x), dy) in columns.iter_mut().zip(x).zip(dy) {
            column.add(*dy, statistics.normalized(*x), statistics.size(*x));
        }
    }
    if let Some((dgamma, dbeta)) = parameters {
        let granted = granted::<T>(count);
        for (number, ((column, dgamma), dbeta)) in columns.iter().zip(dgamma).zip(dbeta).enumerate() {
            let identity = |name: &str, left: T, right: f64, size: f64| Identity {
                name: name.to_owned(),
                place: format!("column {number}"),
                left: left.to_f64(),
                right,
                bound: granted * size,
            };
            identities.push(identity("dgamma = sum(dy xhat)", *dgamma, column.gamma, column.gamma_size));
            identities.push(identity("dbeta = sum(dy)", *dbeta, column.beta, column.beta_size));
        }
    }
    identities
}

/// The relative error that is granted to a sum of this many rounded terms.
fn granted<T: Element>(terms: usize) -> f64 {
    4.0 * (16.0 + (terms as f64).sqrt()) * T::UNIT_ROUNDOFF
}

fn row_identities<T: Element>(
    row: usize,
    x: &[f64],
    dy: &[f64],
    dx: &[f64],
    gamma: &[f64],
    epsilon: f64,
    statistics: &Statistics,
) -> [Identity; 2] {
    let width = x.len() as f64;
    let xhat: Vec<f64> = x.iter().map(|&x| statistics.normalized(x)).collect();
    let g: Vec<f64> = dy.iter().zip(gamma).map(|(dy, gamma)| dy * gamma).collect();
    let c1 = g.iter().map(|g| g.abs()).sum::<f64>() / width;
    let c2 = g.iter().zip(&xhat).map(|(g, xhat)| g * xhat).sum::<f64>() / width;
    let rstd = statistics.rstd;
    // What the terms of an element of dx amount to before they cancel.
    let sizes = g.iter().zip(x).map(|(g, &x)| rstd * (g.abs() + c1 + statistics.size(x) * c2.abs()));
    let size: f64 = sizes.clone().sum();
    let size_along: f64 = sizes.zip(&xhat).map(|(size, xhat)| size * xhat.abs()).sum();
    let granted = granted::<T>(x.len());
    let place = format!("row {row}");
    [
        Identity {
            name: "sum(dx) = 0".to_owned(),
            place: place.clone(),
            left: dx.iter().sum(),
            right: 0.0,
            bound: granted * size,
        },
        Identity {
            name: "sum(dx xhat) = rstd width c2 epsilon / (var + epsilon)".to_owned(),
            place,
            left: dx.iter().zip(&xhat).map(|(dx, xhat)| dx * xhat).sum(),
            right: rstd * width * c2 * epsilon * rstd * rstd,
            bound: granted * size_along,
        },
    ]
}

struct Statistics {
    mean: f64,
    rstd: f64,
}

impl Statistics {
    /// The corrected two-pass of the definition. A constant row without `epsilon` is normalized to zeros, and so are its gradients.
    fn of(x: &[f64], epsilon: f64) -> Self {
        let width = x.len() as f64;
        let mean = x.iter().sum::<f64>() / width;
        let mean = mean + x.iter().map(|x| x - mean).sum::<f64>() / width;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
        let denominator = variance + epsilon;
        Self { mean, rstd: if denominator == 0.0 { 0.0 } else { 1.0 / denominator.sqrt() } }
    }

    fn normalized(&self, x: f64) -> f64 {
        (x - self.mean) * self.rstd
    }

    /// What the terms of xhat amount to before they cancel: where x is near the mean, rounding is as large as elsewhere.
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
    fn add(&mut self, dy: f64, xhat: f64, xhat_size: f64) {
        self.gamma += dy * xhat;
        self.gamma_size += dy.abs() * xhat_size;
        self.beta += dy;
        self.beta_size += dy.abs();
    }
}

//! LayerNorm as plain scalar `f64` loops: the definition that everything is measured against. Start here to see how
//! it works.
//!
//! # Forward
//!
//! For a row `x` of `C = width` elements, with sums and means over its elements,
//!
//! ```text
//! mean = sum(x) / C
//! var  = sum((x - mean)^2) / C
//! rstd = 1 / sqrt(var + epsilon)
//! xhat = (x - mean) * rstd
//! y    = gamma * xhat + beta
//! ```
//!
//! # Backward
//!
//! `dy_j = dL/dy_j` is given. Since `y_j = gamma_j * xhat_j + beta_j` in every row,
//!
//! ```text
//! dgamma_j = sum over rows of dy_j * xhat_j
//! dbeta_j  = sum over rows of dy_j
//! g_j      = dL/dxhat_j = dy_j * gamma_j
//! ```
//!
//! Within a row, `xhat_j` depends on `x_i` in three ways: directly, through the mean, and through `rstd`.
//!
//! ```text
//! dmean/dx_i = 1 / C
//! dvar/dx_i  = 2 (x_i - mean) / C              the term through the mean vanishes: sum(x - mean) = 0
//! drstd/dx_i = -1/2 * rstd^3 * dvar/dx_i = -rstd^2 * xhat_i / C
//!
//! dxhat_j/dx_i = rstd * ([i = j] - 1/C) + (x_j - mean) * drstd/dx_i
//!              = rstd * ([i = j] - 1/C - xhat_j * xhat_i / C)
//! ```
//!
//! Multiplied by `g_j` and summed over `j`:
//!
//! ```text
//! dx_i = rstd * (g_i - mean(g) - xhat_i * mean(g * xhat))
//! ```
//!
//! (Ba, Kiros and Hinton, "Layer Normalization", 2016, define the forward.) The loops below take ordinary sums in
//! order: they are right to about `C * 2^-53` relative to the row's spread, for rows that are neither huge nor tiny.

/// What [`forward`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// The normalized rows, as many elements as x.
    pub y: Vec<f64>,
    /// The mean of each row.
    pub mean: Vec<f64>,
    /// `1 / sqrt(var + epsilon)` of each row.
    pub rstd: Vec<f64>,
}

/// What [`backward`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Backward {
    /// The gradient with respect to x, as many elements as x.
    pub dx: Vec<f64>,
    /// With respect to gamma, `width` elements.
    pub dgamma: Vec<f64>,
    /// With respect to beta, `width` elements.
    pub dbeta: Vec<f64>,
}

/// Normalizes each row of `width` elements of `x`; gamma and beta have `width` elements where they are given.
///
/// # Panics
///
/// Where `width` is 0, x is not a whole number of rows, or gamma or beta is shorter than a row.
///
/// # Example
///
/// ```
/// let forward = llm_operator::reference::forward(&[1.0, 3.0], 2, Some(&[1.0, 10.0]), None, 0.0);
/// assert_eq!(forward.y, [-1.0, 10.0]);
/// ```
pub fn forward(x: &[f64], width: usize, gamma: Option<&[f64]>, beta: Option<&[f64]>, epsilon: f64) -> Forward {
    check(x, width);
    let mut found = Forward { y: Vec::new(), mean: Vec::new(), rstd: Vec::new() };
    for x in x.chunks_exact(width) {
        let (mean, rstd) = statistics(x, epsilon);
        for j in 0..width {
            let xhat = (x[j] - mean) * rstd;
            found.y.push(gamma.map_or(1.0, |gamma| gamma[j]) * xhat + beta.map_or(0.0, |beta| beta[j]));
        }
        found.mean.push(mean);
        found.rstd.push(rstd);
    }
    found
}

/// The gradients of a loss whose gradient with respect to y is `dy`; without gamma, dgamma is that at gamma = 1.
///
/// # Panics
///
/// Where `width` is 0, x is not a whole number of rows, dy is not as long as x, or gamma is shorter than a row.
///
/// # Example
///
/// ```
/// let backward = llm_operator::reference::backward(&[3.0, 5.0], &[1.0, 3.0], 2, None, 0.0);
/// assert_eq!((backward.dgamma, backward.dbeta), (vec![-3.0, 5.0], vec![3.0, 5.0]));
/// ```
pub fn backward(dy: &[f64], x: &[f64], width: usize, gamma: Option<&[f64]>, epsilon: f64) -> Backward {
    check(x, width);
    assert_eq!(dy.len(), x.len(), "dy has as many elements as x");
    let mut found = Backward { dx: Vec::new(), dgamma: vec![0.0; width], dbeta: vec![0.0; width] };
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let (mean, rstd) = statistics(x, epsilon);
        let xhat = |j: usize| (x[j] - mean) * rstd;
        let g = |j: usize| dy[j] * gamma.map_or(1.0, |gamma| gamma[j]);
        let mean_g = (0..width).map(g).sum::<f64>() / width as f64;
        let mean_product = (0..width).map(|j| g(j) * xhat(j)).sum::<f64>() / width as f64;
        for j in 0..width {
            found.dx.push(rstd * (g(j) - mean_g - xhat(j) * mean_product));
            found.dgamma[j] += dy[j] * xhat(j);
            found.dbeta[j] += dy[j];
        }
    }
    found
}

/// The mean and `rstd` of a row.
fn statistics(x: &[f64], epsilon: f64) -> (f64, f64) {
    let width = x.len() as f64;
    let mean = x.iter().sum::<f64>() / width;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

fn check(x: &[f64], width: usize) {
    assert!(width > 0, "a row has at least one element");
    assert_eq!(x.len() % width, 0, "x is a whole number of rows");
}

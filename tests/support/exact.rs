//! LayerNorm in about 106 bits: pairs of `f64` (Dekker, "A floating-point technique for extending the available
//! precision", 1971). Written from the definition alone, and itself checked against exact fractions in `accuracy.rs`.

use super::{Case, Outcome};
use llm_operator::Element;
use std::ops::{Add, Div, Mul, Sub};

/// The unevaluated sum of two `f64`, the second below half a unit in the last place of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Double(pub f64, pub f64);

fn two_sum(a: f64, b: f64) -> Double {
    let sum = a + b;
    let part = sum - a;
    Double(sum, (a - (sum - part)) + (b - part))
}

impl From<f64> for Double {
    fn from(value: f64) -> Self {
        Self(value, 0.0)
    }
}

impl Add for Double {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (high, low) = (two_sum(self.0, other.0), two_sum(self.1, other.1));
        let high = two_sum(high.0, high.1 + low.0);
        two_sum(high.0, high.1 + low.1)
    }
}

impl Sub for Double {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + Self(-other.0, -other.1)
    }
}

impl Mul for Double {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let product = self.0 * other.0;
        let error = self.0.mul_add(other.0, -product);
        two_sum(product, error + (self.0 * other.1 + self.1 * other.0))
    }
}

impl Div for Double {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let first = Self::from(self.0 / other.0);
        let rest = self - first * other;
        let second = Self::from(rest.0 / other.0);
        let rest = rest - second * other;
        first + second + Self::from(rest.0 / other.0)
    }
}

impl Double {
    pub fn sqrt(self) -> Self {
        let root = Self::from(self.0.sqrt());
        if self.0 == 0.0 { root } else { (root + self / root) * Self::from(0.5) }
    }

    pub fn value(self) -> f64 {
        self.0 + self.1
    }
}

fn sum(values: impl Iterator<Item = Double>) -> Double {
    values.fold(Double::default(), |sum, value| sum + value)
}

/// The definition, in `reference`'s notation, on the values as they are stored.
pub fn layer_norm<T: Element>(case: &Case<T>) -> Outcome<Double> {
    let width = case.width;
    let count = Double::from(width as f64);
    let double = |value: &T| Double::from(value.to_f64());
    let one = Double::from(1.0);
    let gamma = |j: usize| case.gamma.as_ref().map_or(one, |gamma| double(&gamma[j]));
    let beta = |j: usize| case.beta.as_ref().map_or(Double::default(), |beta| double(&beta[j]));
    let mut found = Outcome {
        y: vec![],
        mean: vec![],
        rstd: vec![],
        dx: vec![],
        dgamma: vec![Double::default(); width],
        dbeta: vec![Double::default(); width],
    };
    for (x, dy) in case.x.chunks_exact(width).zip(case.dy.chunks_exact(width)) {
        let mean = sum(x.iter().map(double)) / count;
        let variance = sum(x.iter().map(|x| (double(x) - mean) * (double(x) - mean))) / count;
        let rstd = one / (variance + Double::from(case.epsilon)).sqrt();
        let xhat: Vec<Double> = x.iter().map(|x| (double(x) - mean) * rstd).collect();
        let g: Vec<Double> = dy.iter().enumerate().map(|(j, dy)| double(dy) * gamma(j)).collect();
        let mean_g = sum(g.iter().copied()) / count;
        let mean_product = sum(g.iter().zip(&xhat).map(|(&g, &xhat)| g * xhat)) / count;
        for j in 0..width {
            found.y.push(xhat[j] * gamma(j) + beta(j));
            found.dx.push(rstd * (g[j] - mean_g - xhat[j] * mean_product));
            found.dgamma[j] = found.dgamma[j] + double(&dy[j]) * xhat[j];
            found.dbeta[j] = found.dbeta[j] + double(&dy[j]);
        }
        found.mean.push(mean);
        found.rstd.push(rstd);
    }
    found
}

/// The largest error of `found`, in units in the last place of the largest exact value.
pub fn ulps<T: Element>(found: &[T], exact: &[Double]) -> f64 {
    let largest = exact.iter().map(|exact| exact.value().abs()).fold(0.0, f64::max);
    let ulp = ulp::<T>(largest);
    let mut worst = 0.0_f64;
    for (found, exact) in found.iter().zip(exact) {
        let error = (Double::from(found.to_f64()) - *exact).value().abs() / ulp;
        // NaN is the worst error of all; `max` would pass over it.
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    worst
}

/// The distance between neighbours of `T` at a magnitude.
pub fn ulp<T: Element>(magnitude: f64) -> f64 {
    let least = if T::NAME == "f32" { 2.0_f64.powi(-149) } else { f64::from_bits(1) };
    if magnitude == 0.0 {
        return least;
    }
    (2.0_f64.powi(magnitude.log2().floor() as i32) * (2.0 * T::UNIT_ROUNDOFF)).max(least)
}

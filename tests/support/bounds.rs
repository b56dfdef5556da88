//! How far a result may be from the exact one, for rows of any finite bits: a bound that follows from the arithmetic.
//!
//! The documented accuracy (4 units in the last place of a row) is measured, and holds where the terms of a result do not
//! cancel. For bits that somebody else chose, only a bound will do that holds for every row. It is the usual first-order
//! analysis (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapters 3 and 4), with the exact terms.
//!
//! `u` is the unit roundoff of the element type. A sum in which a term takes part in at most `d` additions is within
//! `d u` times the sum of the magnitudes. `D` below is `d + 2` for the sums over a row ([`depth`]): the two more are for
//! products that are rounded before they are added. `sigma^2` is the exact variance and `rms = sigma * rstd`, at most 1.
//!
//! # Forward
//!
//! - The mean is that of `d = x - pilot` plus the pilot. Because of the second pass for a pilot that is too far off, the
//!   mean of `d^2` is at most `2 sigma^2`, and so the error of the mean is at most `1.5 D u sigma`.
//! - The sum of squares is at most `2 width sigma^2`, so its error is at most `2 D u` of the variance; that of the
//!   subtracted square of the mean of `d` at most `3 D u`. `rstd` has half of the relative error of the variance, and a
//!   rounding: `(2.5 D + 3) u`.
//! - `xhat` is a difference, a product and a correction: it adds `4 u` of itself, and `u kappa` for the rounding of the mean's correction,
//!   where `kappa = u |mean| rstd` is the most that the correction is, in deviations. Together at most
//!   `u (2.5 D + 8) (|xhat| + rms + kappa)`.
//! - `y` adds a product and a sum: `u (|gamma xhat| + |y|)`.
//!
//! # Backward
//!
//! `h = (x - mean) rstd` with the saved mean, which is `kappa` deviations from the exact one: `|h|` is at most
//! `X = |xhat| + kappa`, and its root mean square at most `R = rms + kappa`. `mean(h)`, which is taken off again, is
//! off by at most `D u R`. So `xhat` is off by at most `e = u (3.5 D + 12) (X + R)`.
//!
//! - `mean(g)` is off by at most `D u A`, with `A = mean |g|`; `p = mean(g xhat)` by at most `u (3.5 D + 12) (P + 2 R A)`, with
//!   `P = mean(|g| X)`.
//! - `dx = rstd (g - mean(g) - xhat p)`: the errors of its terms, and for each a few roundings, are together at most
//!   `u rstd (10 D + 32) (|g| + A + (X + R) (P + R A))`.
//! - `dgamma` is off by at most `e |dy|` for each row, and `u S` times the sum of magnitudes for the sum over rows, in which a term
//!   takes part in at most `S` additions: eight rows of a block, the blocks of a group, the rest in a tree. `dbeta` has the last
//!   term only.
//!
//! # Narrow rows
//!
//! Rows narrower than 16 are computed in twice the digits, as is documented: the same bound holds for y and dx of f32 with the
//! unit roundoff `w` of f64, and one rounding to the type is added. There the mean is not corrected: it is off by a rounding of
//! each addition, `width w (|mean| + sigma)`, and so each xhat by as much times `rstd`, at most `(width + 2) kappa` with the
//! `kappa` of f64. In y that is times `|gamma|`, in dx at most times `2 rstd (P + (|xhat| + R) A)`. (For f64 the general bound
//! is asserted.)
//!
//! # The ends of the range
//!
//! A result below the normal numbers is rounded to a multiple of the least subnormal one, and so are the parts of a product
//! in twice the digits: four of it are added to each bound. A result beyond the range is infinite. A sum over rows may be
//! anything where its terms, without their signs, leave the range.
//!
//! Rows of f64 outside the ordinary range are scaled by their largest `|dy|` and the largest `|gamma|`, each. A product `dy gamma` of
//! elements that both are next to nothing beside those loses digits: `2^-1000` of the product of the two is added to the bound of
//! `g`. And `xhat`, before it is multiplied, is rounded as subnormal numbers are (but in y of f32: there it is of f64 where it
//! is so small).

use super::number::Number;
use super::{Case, Outcome};
use llm_operator::Element;

/// Additions that a term of a sum over a row takes part in, at most: 16 in an accumulator, a tree of 4 accumulators, 8
/// runs of a segment, the tail, and a tree of lanes: 8 of f64, or 16 of f32 of which the last two levels are in f64. (The
/// segments are added up with compensation.) Two more: see above.
fn depth<T: Element>(width: usize) -> f64 {
    let chunks = width.div_ceil(64 / size_of::<T>());
    (chunks.min(16) + 2 + chunks.div_ceil(32).min(8) + 1 + 3 + 2) as f64
}

/// Additions that a term of a sum over rows takes part in, at most.
fn depth_of_rows(rows: usize) -> f64 {
    (rows.min(8) + rows.min(128).div_ceil(8) + 8) as f64
}

/// What a row is computed in: a unit roundoff, `D`, and the errors of its mean that are not corrected, in units of kappa.
fn inner<T: Element>(width: usize, depth: f64) -> (f64, f64, f64) {
    if width < 16 && T::NAME == "f32" {
        (f64::EPSILON / 2.0, width as f64 + 2.0, width as f64 + 2.0)
    } else {
        (T::UNIT_ROUNDOFF, depth, 0.0)
    }
}

/// The least positive number of a type.
fn least<T: Element>() -> Number {
    Number::power(if T::NAME == "f32" { -149 } else { -1074 })
}

/// The greatest number of a type.
fn greatest<T: Element>() -> Number {
    let digits = if T::NAME == "f32" { 24 } else { 53 };
    let exponent = if T::NAME == "f32" { 128 } else { 1024 };
    Number::power(exponent) - Number::power(exponent - digits)
}

fn is_finite<T: Element>(values: &[T]) -> bool {
    values.iter().all(|value| value.to_f64().is_finite())
}

/// The exact statistics and normalized values of a row of finite elements.
struct Row {
    mean: Number,
    /// The root of the variance.
    sigma: Number,
    /// `None` where the variance and `epsilon` are 0.
    rstd: Option<Number>,
    xhat: Vec<Number>,
    is_constant: bool,
}

impl Row {
    fn new<T: Element>(x: &[T], epsilon: f64) -> Self {
        let count = Number::of(x.len() as f64);
        // Differences from the first element are exact, and small where the row is far from zero.
        let first = Number::of(x[0]);
        let from_first: Vec<Number> = x.iter().map(|&x| Number::of(x) - first).collect();
        let shift = from_first.iter().copied().sum::<Number>() / count;
        let centred: Vec<Number> = from_first.iter().map(|&x| x - shift).collect();
        let variance = centred.iter().map(|d| d.squared()).sum::<Number>() / count;
        let denominator = variance + Number::of(epsilon);
        let rstd = (!denominator.is_zero()).then(|| Number::of(1.0) / denominator.sqrt());
        let xhat = centred.iter().map(|&d| rstd.map_or(Number::ZERO, |rstd| d * rstd)).collect();
        Self {
            mean: first + shift,
            sigma: variance.sqrt(),
            rstd,
            xhat,
            is_constant: x.iter().all(|&value| value == x[0]),
        }
    }

    fn rms(&self) -> Number {
        self.rstd.map_or(Number::ZERO, |rstd| self.sigma * rstd)
    }

    /// The most that the mean's rounding is, in deviations. The mean of a constant row is its element.
    fn kappa(&self, u: f64) -> Number {
        match self.rstd {
            Some(rstd) if !self.is_constant => self.mean.abs() * rstd * u,
            _ => Number::ZERO,
        }
    }
}

/// Judges results of one array.
struct Judge<'a> {
    what: &'a str,
    name: &'static str,
}

impl Judge<'_> {
    /// Fails unless `found` is `exact` within `bound`, or both are beyond the range.
    #[track_caller]
    fn within<T: Element>(&self, place: &str, found: T, exact: Number, bound: Number) {
        let bound = bound + least::<T>() * 4.0;
        let value = found.to_f64();
        let is_right = if value.is_finite() {
            (Number::of(value) - exact).abs() <= bound
        } else {
            // Within the bound of an infinity is what rounds to it.
            let beyond = if value > 0.0 { exact } else { -exact };
            !value.is_nan() && beyond + bound >= greatest::<T>()
        };
        let (exact, bound, name) = (exact.value(), bound.value(), self.name);
        assert!(is_right, "{}: {name}, {place}: found {value:e}, expected {exact:e} within {bound:e}", self.what);
    }

    #[track_caller]
    fn exactly<T: Element>(&self, place: &str, found: T, expected: T) {
        assert!(found == expected, "{}: {}, {place}: found {found}, expected {expected}", self.what, self.name);
    }

    #[track_caller]
    fn all_nan<T: Element>(&self, place: &str, found: &[T]) {
        let all = found.iter().all(|value| value.to_f64().is_nan());
        assert!(all, "{}: {}, {place}: expected NaN throughout, found {found:?}", self.what, self.name);
    }

    #[track_caller]
    fn not_finite<T: Element>(&self, place: &str, found: T) {
        assert!(
            !found.to_f64().is_finite(),
            "{}: {}, {place}: a NaN or an infinity became {found}",
            self.what,
            self.name
        );
    }
}

/// Fails unless y, mean and rstd are those of the case, within the bounds above.
#[track_caller]
pub fn assert_forward<T: Element>(case: &Case<T>, found: &Outcome<T>, what: &str) {
    let judge = |name| Judge { what, name };
    let (width, u) = (case.width, T::UNIT_ROUNDOFF);
    let d = depth::<T>(width);
    for (r, (x, y)) in case.x.chunks_exact(width).zip(found.y.chunks_exact(width)).enumerate() {
        let place = format!("row {r}");
        if !is_finite(x) {
            judge("y").all_nan(&place, y);
            judge("mean").all_nan(&place, &found.mean[r..=r]);
            judge("rstd").all_nan(&place, &found.rstd[r..=r]);
            continue;
        }
        let row = Row::new(x, case.epsilon);
        judge("mean").within(&place, found.mean[r], row.mean, row.mean.abs() * u + row.sigma * (1.5 * d * u));
        match row.rstd {
            Some(rstd) => judge("rstd").within(&place, found.rstd[r], rstd, rstd * ((2.5 * d + 3.0) * u)),
            None => judge("rstd").exactly(&place, found.rstd[r], T::from_f64(f64::INFINITY)),
        }
        // Narrow rows of f32 are computed in f64.
        let (inner, d, uncorrected) = inner::<T>(width, d);
        let spread = row.rms() + row.kappa(inner);
        let below_range = if T::NAME == "f64" { least::<T>() * 4.0 } else { Number::ZERO };
        for j in 0..width {
            let place = format!("row {r}, column {j}");
            let one = T::from_f64(1.0);
            let (gamma, beta) =
                (case.gamma.as_ref().map_or(one, |gamma| gamma[j]), case.beta.as_ref().map(|beta| beta[j]));
            if !(is_finite(&[gamma]) && beta.is_none_or(|beta| is_finite(&[beta]))) {
                judge("y").not_finite(&place, y[j]);
                continue;
            }
            if row.is_constant {
                judge("y").exactly(&place, y[j], beta.unwrap_or(T::from_f64(0.0)));
                continue;
            }
            let gamma = Number::of(gamma);
            let exact = gamma * row.xhat[j] + beta.map_or(Number::ZERO, Number::of);
            let inexact = (row.xhat[j].abs() + spread) * ((2.5 * d + 10.0) * inner) + row.kappa(inner) * uncorrected;
            let inexact = gamma.abs() * (inexact + below_range);
            judge("y").within(&place, y[j], exact, inexact + exact.abs() * (2.0 * u));
        }
    }
}

/// Fails unless dx, dgamma and dbeta are those of the case, within the bounds above.
#[track_caller]
pub fn assert_backward<T: Element>(case: &Case<T>, found: &Outcome<T>, what: &str) {
    let judge = |name| Judge { what, name };
    let (width, u) = (case.width, T::UNIT_ROUNDOFF);
    let rows = case.x.len() / width;
    let d = depth::<T>(width);
    let zero = T::from_f64(0.0);
    // Of each column: the exact sum, the sum of magnitudes, and what the rows allow for.
    let mut dgamma = vec![[Number::ZERO; 3]; width];
    let mut dbeta = vec![[Number::ZERO; 2]; width];
    let mut x_is_finite = true;
    for r in 0..rows {
        let (x, dy) = (&case.x[r * width..][..width], &case.dy[r * width..][..width]);
        let dx = &found.dx[r * width..][..width];
        let place = format!("row {r}");
        let row = is_finite(x).then(|| Row::new(x, case.epsilon));
        x_is_finite &= row.is_some();
        for j in 0..width {
            let Some((row, dy)) = row.as_ref().zip(is_finite(&dy[j..=j]).then(|| Number::of(dy[j]))) else { continue };
            let size = row.xhat[j].abs() + row.kappa(u);
            let part = dy.abs() * size;
            let inexact = (size + row.rms() + row.kappa(u)) * ((3.5 * d + 12.0) * u);
            let allowed = dy.abs() * (inexact + least::<T>() * 4.0);
            dgamma[j] = [dgamma[j][0] + dy * row.xhat[j], dgamma[j][1] + part, dgamma[j][2] + allowed];
        }
        for j in 0..width {
            if is_finite(&dy[j..=j]) {
                let dy = Number::of(dy[j]);
                dbeta[j] = [dbeta[j][0] + dy, dbeta[j][1] + dy.abs()];
            }
        }
        let (Some(row), true) = (row, is_finite(dy)) else {
            judge("dx").all_nan(&place, dx);
            continue;
        };
        let gamma = match &case.gamma {
            Some(gamma) if !is_finite(gamma) => continue,
            Some(gamma) => gamma.iter().map(|&gamma| Number::of(gamma)).collect(),
            None => vec![Number::of(1.0); width],
        };
        let Some(rstd) = row.rstd.filter(|_| width > 1) else {
            // One element, or a constant row without epsilon.
            dx.iter().for_each(|&dx| judge("dx").exactly(&place, dx, zero));
            continue;
        };
        // Narrow rows of f32 are computed in f64.
        let (inner, d, uncorrected) = inner::<T>(width, d);
        let count = Number::of(width as f64);
        let g: Vec<Number> = (0..width).map(|j| Number::of(dy[j]) * gamma[j]).collect();
        let mean = |term: &dyn Fn(usize) -> Number| (0..width).map(term).sum::<Number>() / count;
        let (kappa, spread) = (row.kappa(inner), row.rms() + row.kappa(inner));
        let mean_g = mean(&|j| g[j]);
        let product = mean(&|j| g[j] * row.xhat[j]);
        let largest = |values: &dyn Fn(usize) -> Number| (0..width).map(values).fold(Number::ZERO, Number::max);
        let out_of_sight = largest(&|j| Number::of(dy[j]).abs()) * largest(&|j| gamma[j].abs()) * Number::power(-1000);
        let size_of_g = mean(&|j| g[j].abs()) + if T::NAME == "f64" { out_of_sight * (1.0 / u) } else { Number::ZERO };
        let size_of_product = mean(&|j| g[j].abs() * (row.xhat[j].abs() + kappa));
        for j in 0..width {
            let exact = rstd * (g[j] - mean_g - row.xhat[j] * product);
            let size_of_xhat = row.xhat[j].abs() + kappa + spread;
            let terms = g[j].abs() + size_of_g + size_of_xhat * (size_of_product + spread * size_of_g);
            let shift = kappa * (2.0 * uncorrected) * (size_of_product + size_of_xhat * size_of_g);
            let bound = rstd * (terms * ((10.0 * d + 32.0) * inner) + shift) + exact.abs() * (2.0 * u);
            judge("dx").within(&format!("row {r}, column {j}"), dx[j], exact, bound);
        }
    }
    let additions = depth_of_rows(rows);
    for j in 0..width {
        let place = format!("column {j}");
        let dy_is_finite = (0..rows).all(|r| case.dy[r * width + j].to_f64().is_finite());
        let (limit, least) = (greatest::<T>() * 0.5, least::<T>() * rows as f64);
        if !dy_is_finite {
            judge("dbeta").not_finite(&place, found.dbeta[j]);
        } else if dbeta[j][1] < limit {
            judge("dbeta").within(&place, found.dbeta[j], dbeta[j][0], dbeta[j][1] * (additions * u) + least);
        }
        if !(dy_is_finite && x_is_finite) {
            judge("dgamma").not_finite(&place, found.dgamma[j]);
        } else if width == 1 {
            judge("dgamma").exactly(&place, found.dgamma[j], zero);
        } else if dgamma[j][1] + dgamma[j][2] < limit {
            let bound = dgamma[j][2] + dgamma[j][1] * (additions * u) + least;
            judge("dgamma").within(&place, found.dgamma[j], dgamma[j][0], bound);
        }
    }
}

//! What the wrong components have in common, in words.

use super::judge::rms;
use super::report::Counts;
use super::verdict::{Component, Verdict};

/// One input, as the patterns look at it.
pub(super) struct Picture<'a> {
    pub(super) x: &'a dyn Fn(usize) -> f64,
    pub(super) analytic: &'a [f64],
    pub(super) numeric: &'a [f64],
    pub(super) floor: &'a [f64],
    pub(super) row_len: usize,
    /// The components that are wrong or invalid, in order.
    bad: Vec<usize>,
    pub(super) counts: Counts,
}

/// Bad components that are collected one by one; beyond these the rows and columns say enough.
const SHOWN: usize = 4;

impl<'a> Picture<'a> {
    pub(super) fn new(
        x: &'a dyn Fn(usize) -> f64,
        [analytic, numeric, floor]: [&'a [f64]; 3],
        row_len: usize,
        visit: impl FnOnce(&mut dyn FnMut(usize, Component)),
    ) -> Self {
        let (mut bad, mut counts) = (Vec::new(), Counts::default());
        visit(&mut |element, component| {
            counts.add(component.verdict());
            if component.verdict() >= Verdict::Wrong {
                bad.push(element);
            }
        });
        Self { x, analytic, numeric, floor, row_len, bad, counts }
    }

    fn rows(&self) -> usize {
        self.analytic.len().div_ceil(self.row_len)
    }

    /// The patterns; none where nothing is wrong.
    pub(super) fn in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.bad.is_empty() {
            return words;
        }
        words.extend(self.not_finite());
        if self.counts.wrong > 0 {
            let explained =
                self.zeros().or_else(|| self.shifted()).or_else(|| self.swapped()).or_else(|| self.single());
            let explained = explained.or_else(|| self.one_row()).or_else(|| self.scale()).or_else(|| self.every_row());
            words.extend(explained);
            words.extend(self.columns());
            words.extend(self.cosine());
        }
        words
    }

    fn not_finite(&self) -> Option<String> {
        let mut found = self.bad.iter().filter(|&&element| !self.analytic[element].is_finite());
        let first = *found.next()?;
        let (row, column) = (first / self.row_len, first % self.row_len);
        let count = 1 + found.count();
        let value = self.analytic[first];
        Some(format!(
            "{count} components of the analytic gradient are not finite: the first, in row {row}, column {column}, \
             is {value}"
        ))
    }

    fn zeros(&self) -> Option<String> {
        self.analytic.iter().all(|&a| a == 0.0).then(|| "the analytic gradient is zero everywhere".to_owned())
    }

    /// Whether each row holds what belongs to the row before it, or after it.
    fn shifted(&self) -> Option<String> {
        let (rows, len) = (self.rows(), self.row_len);
        if rows < 2 || len < 2 {
            return None;
        }
        let sizes: Vec<f64> = (0..rows).map(|row| rms(&self.numeric[self.row(row)])).collect();
        for (offset, words) in [(1, "before"), (rows - 1, "after")] {
            let matches = (0..self.analytic.len()).all(|element| {
                let source = (element + self.analytic.len() - offset * len) % self.analytic.len();
                self.alike(element, source, sizes[source / len])
            });
            if matches {
                return Some(format!("each row holds the gradient of the row {words} it: rows are shifted by one"));
            }
        }
        None
    }

    /// Whether the analytic gradient of one element is the numeric gradient of another, whose row has this size.
    fn alike(&self, element: usize, other: usize, size: f64) -> bool {
        let (a, d) = (self.analytic[element], self.numeric[other]);
        // An element that is small in its row may hold a rounding of the row's size.
        let rounding = 1e-4 * (a.abs() + d.abs()) + 1e-5 * size;
        (a - d).abs() <= self.floor[element].max(self.floor[other]) + rounding
    }

    fn swapped(&self) -> Option<String> {
        let [first, second] = self.bad[..] else { return None };
        let alike = |a: usize, b: usize| self.alike(a, b, rms(&self.numeric[self.row(b / self.row_len)]));
        let crossed = alike(first, second) && alike(second, first);
        let place = |element| format!("row {}, column {}", element / self.row_len, element % self.row_len);
        crossed.then(|| format!("two components are swapped: {} and {}", place(first), place(second)))
    }

    fn single(&self) -> Option<String> {
        if self.bad.len() > SHOWN || 2 * self.bad.len() > self.analytic.len() {
            return None;
        }
        let each: Vec<String> = self
            .bad
            .iter()
            .filter(|&&element| self.analytic[element].is_finite())
            .map(|&element| {
                let (row, column) = (element / self.row_len, element % self.row_len);
                let ratio = self.analytic[element] / self.numeric[element];
                let what = if (ratio + 1.0).abs() < 1e-2 {
                    "has the wrong sign".to_owned()
                } else {
                    format!("is {ratio:.4} times what it should be")
                };
                format!("row {row}, column {column} {what}")
            })
            .collect();
        (!each.is_empty()).then(|| format!("few components are wrong, all others pass: {}", each.join("; ")))
    }

    fn one_row(&self) -> Option<String> {
        let row = self.bad.first()? / self.row_len;
        if self.rows() < 2 || self.bad.last()? / self.row_len != row {
            return None;
        }
        let zero = self.row(row).all(|element| self.analytic[element] == 0.0);
        let what = match self.fit(row) {
            _ if zero => "is zero".to_owned(),
            Some(Fit { constant, constant_alone: true, .. }) => {
                format!("is off by a constant, {constant:.3e}: its mean term")
            }
            Some(Fit { slope_alone: true, .. }) => "is off by a multiple of x - mean: its variance term".to_owned(),
            _ => "has no simple error".to_owned(),
        };
        Some(format!("all wrong components lie in row {row}, which {what}"))
    }

    fn row(&self, row: usize) -> std::ops::Range<usize> {
        row * self.row_len..((row + 1) * self.row_len).min(self.analytic.len())
    }

    /// Whether the analytic gradient is a multiple of the numeric one.
    fn scale(&self) -> Option<String> {
        let pairs = || self.analytic.iter().zip(self.numeric).filter(|(a, d)| a.is_finite() && d.is_finite());
        let squares: f64 = pairs().map(|(_, d)| d * d).sum();
        let ratio = pairs().map(|(a, d)| a * d).sum::<f64>() / squares;
        let rest: f64 = pairs().map(|(a, d)| (a - ratio * d).powi(2)).sum();
        let error: f64 = pairs().map(|(a, d)| (a - d).powi(2)).sum();
        let multiple = rest < 1e-2 * error && pairs().count() > 1;
        let count = self.row_len as f64;
        let known = [
            (count / (count - 1.0), "n / (n - 1)"),
            ((count - 1.0) / count, "(n - 1) / n"),
            ((count / (count - 1.0)).sqrt(), "sqrt(n / (n - 1))"),
            (((count - 1.0) / count).sqrt(), "sqrt((n - 1) / n)"),
        ];
        let named = known.iter().find(|(known, _)| (known - ratio).abs() < 0.1 * (known - 1.0).abs());
        let named = named.map_or(String::new(), |(_, name)| format!(", which is {name} of a row"));
        multiple.then(|| format!("the analytic gradient is {ratio:.6} times the numeric one: a constant scale{named}"))
    }

    /// Whether the error of each row is a constant, a multiple of `x - mean`, or the sum of both.
    fn every_row(&self) -> Option<String> {
        let mut fits = (0..self.rows()).filter_map(|row| self.fit(row)).peekable();
        fits.peek()?;
        let (mut constants, mut slopes, mut both, mut rows) = (0, 0, 0, 0);
        let (mut error, mut size) = (0.0, 0.0);
        for fit in fits {
            rows += 1;
            constants += usize::from(fit.constant_alone);
            slopes += usize::from(fit.slope_alone);
            both += usize::from(fit.constant_alone || fit.slope_alone || fit.slope);
            error += fit.error;
            size += fit.size;
        }
        let most = |count: usize| 10 * count >= 9 * rows;
        if most(constants) {
            return Some("each row is off by a constant of its own: the mean term".to_owned());
        }
        if most(slopes) {
            return Some("each row is off by a multiple of x - mean: the variance term".to_owned());
        }
        // Both terms together amount to 1 / sqrt(n) of the gradient, and an n-th part of them to far less.
        let small = (error / size).sqrt() < 1.0 / self.row_len as f64;
        let cause = if small { ", an n-th part of them: n - 1 for n" } else { "" };
        most(both).then(|| {
            format!("each row is off by a constant and a multiple of x - mean: the mean and variance terms{cause}")
        })
    }

    /// The least-squares fit of a row's error by a constant and by `x - mean`; none of a row without error.
    fn fit(&self, row: usize) -> Option<Fit> {
        let row = self.row(row);
        let count = row.len() as f64;
        let error = |element: usize| self.analytic[element] - self.numeric[element];
        let mean = row.clone().map(self.x).sum::<f64>() / count;
        let constant = row.clone().map(error).sum::<f64>() / count;
        let squares: f64 = row.clone().map(|element| ((self.x)(element) - mean).powi(2)).sum();
        let slope = row.clone().map(|element| error(element) * ((self.x)(element) - mean)).sum::<f64>() / squares;
        let total: f64 = row.clone().map(|element| error(element).powi(2)).sum();
        let noise: f64 = row.clone().map(|element| self.floor[element].powi(2)).sum();
        if row.len() < 4 || !total.is_finite() || total <= 4.0 * noise {
            return None;
        }
        let size: f64 = row.clone().map(|element| self.numeric[element].powi(2)).sum();
        let by_constant = total - count * constant * constant;
        let by_slope = total - squares * slope * slope;
        let by_both = by_constant - squares * slope * slope;
        let explained = |rest: f64| rest <= 1e-2 * total + noise;
        let constant_alone = explained(by_constant);
        let slope_alone = explained(by_slope);
        let slope = !constant_alone && explained(by_both);
        Some(Fit { constant, constant_alone, slope_alone, slope, error: total, size })
    }

    /// Which columns hold the wrong components, if not all do.
    fn columns(&self) -> Option<String> {
        let len = self.row_len;
        // What is not finite was named already, and may lie elsewhere.
        let wrong: Vec<usize> =
            self.bad.iter().copied().filter(|&element| self.analytic[element].is_finite()).collect();
        if self.rows() < 2 || wrong.len() <= SHOWN || wrong.first()? / len == wrong.last()? / len {
            return None;
        }
        let mut columns: Vec<usize> = wrong.iter().map(|element| element % len).collect();
        columns.sort_unstable();
        columns.dedup();
        let (first, last) = (*columns.first()?, *columns.last()?);
        if columns.len() > len * 3 / 4 {
            return None;
        }
        if last == len - 1 && columns.len() == len - first {
            return Some(format!("all wrong components lie in columns {first}..={last} of {len}: the tail of the row"));
        }
        for lanes in [16, 8, 4, 2] {
            if columns.len() > 1 && columns.iter().all(|column| column % lanes == first % lanes) {
                let lane = first % lanes;
                return Some(format!("all wrong components lie in columns that are {lane} modulo {lanes}: one lane"));
            }
        }
        Some(format!("all wrong components lie in {} of {len} columns, {first} to {last}", columns.len()))
    }

    fn cosine(&self) -> Option<String> {
        let pairs = self.analytic.iter().zip(self.numeric).filter(|(a, d)| a.is_finite() && d.is_finite());
        let (mut product, mut a_squares, mut d_squares) = (0.0, 0.0, 0.0);
        for (a, d) in pairs {
            product += a * d;
            a_squares += a * a;
            d_squares += d * d;
        }
        let cosine = product / f64::sqrt(a_squares * d_squares);
        cosine.is_finite().then(|| format!("cosine of the analytic and the numeric gradient: {cosine:.6}"))
    }
}

struct Fit {
    constant: f64,
    /// The error is this constant, but for noise.
    constant_alone: bool,
    /// The error is a multiple of `x - mean`.
    slope_alone: bool,
    /// The error is the sum of both, and neither alone.
    slope: bool,
    error: f64,
    size: f64,
}

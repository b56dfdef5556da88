//! The numeric gradient of an input, one component at a time, with the step that each component needs.

use super::error::{CheckError, unless_stopped};
use super::exhaustive::{Difference, OutputNoise, Request, differences, output_noise};
use super::judge::Judge;
use super::measured::Measured;
use super::noise::Noise;
use super::problem::Problem;
use super::session::Spread;
use super::step::{MOST_GROWTH, Reach, Step, balanced, nearest_power_of_two, row_scale, sharper};
use super::verdict::Verdict;
use crate::Element;

/// Components whose third derivative is looked at before the step of the others is chosen.
const PILOTS: usize = 8;

/// How often an inconclusive component is looked at again, with a step of its own.
const RETRIES: usize = 2;

/// Components in a batch, at least; a batch ends with a row. What is known of each is kept no longer than its batch.
const BATCH: usize = 1 << 9;

/// Measures the chosen components of input `k`.
pub(super) fn measure<T: Element>(
    problem: &Problem<'_, T>,
    noise: &Noise,
    k: usize,
    step: Step,
    judge: &Judge,
    analytic: &[f64],
    elements: Spread,
) -> Result<Measured, CheckError> {
    let noise = output_noise(problem, noise, k)?;
    let steps = match step {
        Step::Fixed(eps) => Steps::Fixed(eps),
        Step::Balanced => Steps::balanced(problem, &noise, k)?,
    };
    let fixed = if let Step::Fixed(eps) = step { Some(eps) } else { None };
    let mut measured = Measured::not_looked_at(analytic.len(), fixed);
    let batches = Batches { problem, noise: &noise, k, judge, analytic, steps };
    unless_stopped(batches.measure(elements, &mut measured))?;
    Ok(measured)
}

/// What the components of an input are measured with.
struct Batches<'a, T: Element> {
    problem: &'a Problem<'a, T>,
    noise: &'a OutputNoise<T>,
    k: usize,
    judge: &'a Judge,
    analytic: &'a [f64],
    steps: Steps,
}

impl<T: Element> Batches<'_, T> {
    fn measure(&self, elements: Spread, measured: &mut Measured) -> Result<(), CheckError> {
        let row_len = self.judge.row_len();
        let mut left = elements.iter().peekable();
        while left.peek().is_some() {
            let mut batch: Vec<usize> = Vec::with_capacity(BATCH);
            while let Some(element) =
                left.next_if(|element| batch.len() < BATCH || element / row_len == batch[batch.len() - 1] / row_len)
            {
                batch.push(element);
            }
            let request = |&element: &usize| self.request(element, self.steps.of_row(element / row_len));
            let requests: Vec<_> = batch.iter().map(request).collect();
            let mut found = differences(self.problem, self.noise, &requests)?;
            batch.iter().zip(&found).for_each(|(&element, found)| measured.set(element, found));
            for _ in 0..if let Steps::Balanced { .. } = self.steps { RETRIES } else { 0 } {
                if !self.retry(&batch, &mut found, measured)? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn request(&self, element: usize, step: f64) -> Request {
        // A fixed step is distrusted as a whole.
        let far = self.reach(element).is_some_and(|reach| reach.is_far(step));
        Request { input: self.k, element, step, far }
    }

    /// How far an element may be moved by steps that are chosen for it.
    fn reach(&self, element: usize) -> Option<Reach> {
        let row_len = self.judge.row_len();
        match &self.steps {
            Steps::Fixed(_) => None,
            Steps::Balanced { scales, .. } => Some(Reach::of_row(scales[element / row_len], row_len)),
        }
    }

    /// Looks again at each component of a batch that is inconclusive, with the step that its own noise and truncation
    /// ask for. Returns whether anything became sharper.
    fn retry(&self, batch: &[usize], found: &mut [Difference], measured: &mut Measured) -> Result<bool, CheckError> {
        let Self { problem, noise, judge, analytic, .. } = *self;
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(false) };
        let row_len = judge.row_len();
        let start = first / row_len * row_len;
        let rows = start..((last / row_len + 1) * row_len).min(analytic.len());
        let [a, d, floor] = [analytic, &measured.numeric, &measured.floor].map(|all| &all[rows.clone()]);
        let mut requests = Vec::new();
        judge.components_of(start, analytic.len(), a, d, floor, |element, component| {
            let element = start + element;
            // Every component of these rows that was looked at is in the batch.
            let Ok(position) = batch.binary_search(&element) else { return };
            let Difference { step: old, sigma, truncation, .. } = found[position];
            let Some(reach) = self.reach(element) else { return };
            let step = sharper(old, sigma, truncation, MOST_GROWTH, reach);
            if component.verdict() == Verdict::Inconclusive && step.is_normal() && step != old {
                requests.push((position, self.request(element, step)));
            }
        });
        let (positions, requests): (Vec<usize>, Vec<Request>) = requests.into_iter().unzip();
        let mut sharper = false;
        for (position, difference) in positions.into_iter().zip(differences(problem, noise, &requests)?) {
            if difference.floor() < found[position].floor() {
                found[position] = difference;
                measured.set(batch[position], &difference);
                sharper = true;
            }
        }
        Ok(sharper)
    }
}

/// The step that each component is first looked at with.
enum Steps {
    Fixed(f64),
    /// For each row its scale times the step, in units of that scale, that suits the pilots.
    Balanced {
        relative: f64,
        scales: Vec<f64>,
    },
}

impl Steps {
    fn balanced<T: Element>(problem: &Problem<'_, T>, noise: &OutputNoise<T>, k: usize) -> Result<Self, CheckError> {
        let input = problem.input(k);
        let row_len = problem.declared[k].row_len();
        let scales: Vec<f64> = scales(input, row_len);
        let len = input.len();
        let pilot_step = pilot_step::<T>();
        // Spread over rows and columns alike: a stride that shares no factor with the length of a row.
        let pilots = PILOTS.min(len);
        let stride = (len / pilots.max(1)).max(1);
        let requests: Vec<_> = (0..pilots)
            .map(|pilot| pilot * stride + (pilot * 5) % row_len.min(stride))
            .map(|element| Request {
                input: k,
                element,
                step: nearest_power_of_two(pilot_step * scales[element / row_len]),
                far: false,
            })
            .collect();
        let found = differences(problem, noise, &requests)?;
        let mut relative: Vec<f64> = requests
            .iter()
            .zip(&found)
            .map(|(request, found)| {
                balanced(found.step, found.sigma, found.truncation) / scales[request.element / row_len]
            })
            .filter(|step| step.is_normal())
            .collect();
        relative.sort_by(f64::total_cmp);
        // A step that is too small costs noise, one that is too great costs truncation, and that as its square.
        let relative = relative.get(relative.len() / 3).copied().unwrap_or(pilot_step);
        Ok(Self::Balanced { relative, scales })
    }

    fn of_row(&self, row: usize) -> f64 {
        match self {
            Self::Fixed(eps) => *eps,
            Self::Balanced { relative, scales } => nearest_power_of_two(relative * scales[row]),
        }
    }
}

/// The first step of all, in units of a row's scale: so large that truncation can be seen, `2^-10` in `f64` and `2^-4`
/// in `f32`.
pub(super) fn pilot_step<T: Element>() -> f64 {
    if T::UNIT_ROUNDOFF < 1e-12 { 2.0_f64.powi(-10) } else { 2.0_f64.powi(-4) }
}

/// The scale of each row of an input.
pub(super) fn scales<T: Element>(input: &[T], row_len: usize) -> Vec<f64> {
    if row_len > 1 {
        input.chunks(row_len).map(|row| row_scale::<T>(row.iter().map(|x| x.to_f64()))).collect()
    } else {
        // A row of one element says nothing about its scale; the whole input does, unless the element is far larger.
        let whole = row_scale::<T>(input.iter().map(|x| x.to_f64()));
        input.iter().map(|x| whole.max(0.1 * x.to_f64().abs())).collect()
    }
}

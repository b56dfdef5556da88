//! The checker never accuses a right gradient, and never passes one that is spoiled beyond its tolerance.
//!
//! The gradients are those of LayerNorm, which the other targets hold to the definition. x, gamma and dy are normal, of
//! any size, and x is as much as 100 deviations from zero; the bytes choose sizes, the shape, `epsilon`, the mode, and what is
//! spoiled. Modes that look at a sample only are left out: there a single wrong element may be missed, as is documented.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use llm_operator::grad_check::{GradCheck, Mode, Operation, Report, Verdict};
use llm_operator::{Element, LayerNormOperation};
use llm_operator_fuzz::support::Random;
use llm_operator_fuzz::{power_of_two, with_type};
use ndarray::{ArrayD, IxDyn};
use spoiled::Spoiled;

#[path = "../../tests/support/spoiled.rs"]
mod spoiled;

/// How much: both signs, from all of something down to its last bits in `f32`, as often as not near what the checker accepts.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Size(i8);

impl Size {
    fn value(self) -> f64 {
        power_of_two(-i32::from(self.0.unsigned_abs() % 24)) * f64::from(self.0.signum())
    }
}

/// What is done to one of the gradients. What can be is linear in the upstream gradient, so that only the differences see
/// it.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Spoil {
    /// Nothing is left.
    Zero,
    /// Every element is too large by this part of itself.
    Scale(Size),
    /// To one element is added a part of another.
    Move {
        place: u16,
        other: u16,
        by: Size,
    },
    /// One element has the wrong sign.
    Negate {
        place: u16,
    },
    /// Two elements have each other's place.
    Swap {
        one: u16,
        other: u16,
    },
    /// The elements of a row are those of its neighbour to the left.
    Rotate {
        row: u8,
    },
    /// The last elements of every row are missing.
    DropTail {
        elements: u8,
    },
    /// To every element of a row is added a part of its first.
    Shift {
        row: u8,
        by: Size,
    },
    NotANumber {
        place: u16,
    },
}

#[derive(Clone, Debug)]
struct Setup {
    f64: bool,
    rows: usize,
    width: usize,
    gamma: bool,
    beta: bool,
    epsilon: f64,
    mode: Mode,
    /// Of x, gamma, beta and dy: the mean in deviations, and the deviation.
    sizes: [(f64, f64); 4],
    seed: u16,
    /// Which input's gradient is spoiled, and how.
    spoil: (u8, Spoil),
}

impl<'a> Arbitrary<'a> for Setup {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let size = |bytes: &mut Unstructured<'a>, mean: f64| -> Result<(f64, f64)> {
            let mean = mean * f64::from(bytes.arbitrary::<i8>()?) / 128.0;
            Ok((mean, power_of_two(i32::from(bytes.arbitrary::<i8>()? % 20))))
        };
        let (has_gamma, epsilon) =
            (bytes.arbitrary()?, [1e-5, 1e-12, 1e-2, 0.0][usize::from(bytes.arbitrary::<u8>()? % 4)]);
        let (x, gamma, dy) = (size(bytes, 100.0)?, size(bytes, 2.0)?, size(bytes, 2.0)?);
        let (mean, deviation) = size(bytes, 2.0)?;
        // A beta far larger than what it is added to leaves no digits of it in y, whose differences are then noise.
        let added_to = x.1 / (x.1 * x.1 + epsilon).sqrt() * if has_gamma { gamma.1 } else { 1.0 };
        let beta = (mean, deviation.min(8.0 * added_to));
        Ok(Self {
            f64: bytes.arbitrary()?,
            rows: usize::from(bytes.arbitrary::<u8>()? % 5 + 1),
            width: usize::from(bytes.arbitrary::<u8>()? % 24 + 1),
            gamma: has_gamma,
            beta: bytes.arbitrary()?,
            epsilon,
            mode: [Mode::Auto, Mode::Local, Mode::Exhaustive][usize::from(bytes.arbitrary::<u8>()? % 3)],
            sizes: [x, gamma, beta, dy],
            seed: bytes.arbitrary()?,
            spoil: bytes.arbitrary()?,
        })
    }
}

fuzz_target!(|setup: Setup| with_type!(setup.f64, |T| check::<T>(&setup)));

fn check<T: Element>(setup: &Setup) {
    let Setup { rows, width, gamma, beta, epsilon, .. } = *setup;
    let mut right = LayerNormOperation::new(&[rows, width]).epsilon(epsilon);
    right = if gamma { right.gamma() } else { right };
    right = if beta { right.beta() } else { right };
    let mut random = Random(setup.seed.into());
    let mut array = |shape: &[usize], (mean, deviation): (f64, f64)| {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || T::from_f64((mean + random.normal()) * deviation))
    };
    let all = [
        Some(array(&[rows, width], setup.sizes[0])),
        gamma.then(|| array(&[width], setup.sizes[1])),
        beta.then(|| array(&[width], setup.sizes[2])),
    ];
    let inputs: Vec<ArrayD<T>> = all.into_iter().flatten().collect();
    let dy = array(&[rows, width], setup.sizes[3]);

    let mut gradients: Vec<ArrayD<T>> =
        inputs.iter().map(|input| ArrayD::from_elem(input.raw_dim(), T::from_f64(0.0))).collect();
    right.backward(&inputs, &dy, &mut gradients).expect("the arguments are right");
    let run = |operation: &dyn Operation<T>| -> Report {
        GradCheck::new().mode(setup.mode).run(operation, &inputs, &dy).expect("the arguments are right")
    };
    let report = run(&right);
    assert!(report.verdict <= Verdict::Inconclusive, "a right gradient is accused: {setup:?}\n{report}");

    let which = usize::from(setup.spoil.0) % gradients.len();
    let spoiled = spoiled(&gradients[which], setup.spoil.1);
    if differs(&gradients[which], &spoiled, LIMIT * if T::NAME == "f32" { 1e-3 } else { 1e-6 }) {
        let spoil = |gradients: &mut [ArrayD<T>]| gradients[which] = self::spoiled(&gradients[which], setup.spoil.1);
        let report = run(&Spoiled { right, spoil });
        assert!(report.verdict != Verdict::Passed, "a wrong gradient passes: {setup:?}\n{report}");
    }
}

/// Tolerances beyond which a gradient that passes is a fault. It passes within one tolerance of a difference quotient,
/// which is itself within one of the exact gradient: its floor is. The others are for the rounding of the gradient that is
/// spoiled, and for scales that grow with it.
const LIMIT: f64 = 4.0;

/// A gradient with something done to it.
fn spoiled<T: Element>(right: &ArrayD<T>, spoil: Spoil) -> ArrayD<T> {
    let width = right.shape().last().copied().unwrap_or(1);
    let mut values: Vec<f64> = right.iter().map(|value| value.to_f64()).collect();
    let (count, rows) = (values.len(), values.len() / width);
    match spoil {
        Spoil::Zero => values.fill(0.0),
        Spoil::Scale(by) => values.iter_mut().for_each(|value| *value *= 1.0 + by.value()),
        Spoil::Move { place, other, by } => {
            values[usize::from(place) % count] += by.value() * values[usize::from(other) % count];
        }
        Spoil::Negate { place } => values[usize::from(place) % count] *= -1.0,
        Spoil::Swap { one, other } => values.swap(usize::from(one) % count, usize::from(other) % count),
        Spoil::Rotate { row } => values[usize::from(row) % rows * width..][..width].rotate_right(1),
        Spoil::DropTail { elements } => {
            let kept = width - usize::from(elements) % (width + 1);
            values.chunks_exact_mut(width).for_each(|row| row[kept..].fill(0.0));
        }
        Spoil::Shift { row, by } => {
            let row = usize::from(row) % rows;
            let shift = by.value() * values[row * width];
            values[row * width..][..width].iter_mut().for_each(|value| *value += shift);
        }
        Spoil::NotANumber { place } => values[usize::from(place) % count] = f64::NAN,
    }
    ArrayD::from_shape_vec(right.raw_dim(), values.into_iter().map(T::from_f64).collect()).expect("the same shape")
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
}

/// Whether an element differs by more than `limit` of what a tolerance is relative to: the greatest of its two values and
/// of its row's size.
fn differs<T: Element>(right: &ArrayD<T>, spoiled: &ArrayD<T>, limit: f64) -> bool {
    let width = right.shape().last().copied().unwrap_or(1);
    let values = |array: &ArrayD<T>| -> Vec<f64> { array.iter().map(|value| value.to_f64()).collect() };
    let (right, spoiled) = (values(right), values(spoiled));
    right.chunks(width).zip(spoiled.chunks(width)).any(|(right, spoiled)| {
        let size = rms(right);
        let far = |(right, spoiled): (&f64, &f64)| {
            (right - spoiled).abs() > limit * size.max(right.abs()).max(spoiled.abs()) || spoiled.is_nan()
        };
        right.iter().zip(spoiled).any(far)
    })
}

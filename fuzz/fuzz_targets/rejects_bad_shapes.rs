//! Arguments of any length and shape: a call that is not right is refused with an error that names an argument at fault, and
//! writes nothing; a right one is accepted, and writes everything. Nothing panics.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use llm_operator::{Error, GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut};
use ndarray::{ArrayD, ArrayViewD, IxDyn};

/// Normalized dimensions, `epsilon`, and a length for each slice; `None` where an optional argument is left out.
#[derive(Clone, Debug)]
struct Setup {
    normalized: Vec<usize>,
    epsilon: f64,
    x: usize,
    /// y of forward and dy of backward.
    y: usize,
    gamma: Option<usize>,
    beta: Option<usize>,
    /// mean and `rstd`.
    statistics: [usize; 2],
    with_statistics: bool,
    /// dx, dgamma, dbeta.
    gradients: [Option<usize>; 3],
    accumulate: bool,
    /// Of x as a view, of dy as a view, and the normalized dimensions of the layer that runs backward.
    shapes: [Vec<usize>; 2],
    backward_normalized: Vec<usize>,
}

impl<'a> Arbitrary<'a> for Setup {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let normalized = shape(bytes)?;
        // Mostly what would be right, so that each check is reached with all others passed.
        let width = product(&normalized).filter(|&width| width <= 512).unwrap_or(7);
        let rows = usize::from(bytes.arbitrary::<u8>()? % 5);
        let mut length = |right: usize| -> Result<usize> {
            let off = usize::from(bytes.arbitrary::<u8>()?);
            Ok(if off < 224 { right } else { (right + off % 9).saturating_sub(4) })
        };
        let (x, y) = (length(rows * width)?, length(rows * width)?);
        let statistics = [length(rows)?, length(rows)?];
        let lengths = [length(width)?, length(width)?, length(rows * width)?, length(width)?, length(width)?];
        let mut optional =
            |length: usize| -> Result<Option<usize>> { Ok(bytes.arbitrary::<bool>()?.then_some(length)) };
        let (gamma, beta) = (optional(lengths[0])?, optional(lengths[1])?);
        let gradients = [optional(lengths[2])?, optional(lengths[3])?, optional(lengths[4])?];
        let epsilon = if bytes.arbitrary()? { 1e-5 } else { f64::from_bits(bytes.arbitrary()?) };
        let mut trailing = |wrong: u8| -> Result<Vec<usize>> {
            if bytes.arbitrary::<u8>()? < wrong {
                return shape(bytes);
            }
            let outer: Vec<usize> = (0..bytes.arbitrary::<u8>()? % 3).map(|_| rows).collect();
            Ok([outer, normalized.clone()].concat())
        };
        let shapes = [trailing(32)?, trailing(32)?];
        let same_layer = bytes.arbitrary::<u8>()? < 224;
        let backward_normalized = if same_layer { normalized.clone() } else { shape(bytes)? };
        let (with_statistics, accumulate) = bytes.arbitrary()?;
        Ok(Self {
            normalized,
            epsilon,
            x,
            y,
            gamma,
            beta,
            statistics,
            with_statistics,
            gradients,
            accumulate,
            shapes,
            backward_normalized,
        })
    }
}

/// Up to four dimensions: small, zero, or so large that they overflow together.
fn shape(bytes: &mut Unstructured<'_>) -> Result<Vec<usize>> {
    let dims = bytes.arbitrary::<u8>()? % 5;
    (0..dims)
        .map(|_| {
            let small = usize::from(bytes.arbitrary::<u8>()?);
            Ok(match small {
                0..240 => small % 9,
                240..248 => bytes.arbitrary()?,
                _ => 1 << (small - 248 + 28),
            })
        })
        .collect()
}

fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &len| product.checked_mul(len))
}

/// What is wrong with the layer itself.
fn faults_of_layer(normalized: &[usize], setup: &Setup) -> Vec<&'static str> {
    let mut faults = vec![];
    let width = product(normalized);
    if normalized.is_empty() || normalized.contains(&0) || width.is_none() {
        faults.push("width");
    }
    if !(setup.epsilon >= 0.0 && setup.epsilon < f64::INFINITY) {
        faults.push("epsilon");
    }
    if setup.gamma.is_some_and(|len| Some(len) != width) {
        faults.push("gamma");
    }
    if setup.beta.is_some_and(|len| Some(len) != width) {
        faults.push("beta");
    }
    faults
}

/// What each output is filled with, to see that it is or is not written.
const UNTOUCHED: f32 = -777.25;

/// Whether an output was written, as far as one can see: x is made so that no result is `UNTOUCHED`.
fn is_untouched(output: &[f32]) -> bool {
    output.iter().all(|&value| value == UNTOUCHED)
}

/// The result against what is wrong; `outputs` are those that a right call writes.
fn judge<T>(setup: &Setup, result: Result<T, Error>, faults: &[&str], outputs: &[&[f32]]) -> Option<T> {
    match result {
        Ok(value) => {
            assert!(faults.is_empty(), "{faults:?} is wrong and was accepted: {setup:?}");
            let all_written = outputs.iter().all(|output| output.iter().all(|&value| value != UNTOUCHED));
            assert!(all_written, "an output was not written: {setup:?}");
            Some(value)
        }
        Err(error) => {
            let message = error.to_string();
            let named = faults.iter().any(|fault| message.starts_with(&format!("{fault}: expected ")));
            assert!(named, "wrong: {faults:?}, but the error is {message:?}: {setup:?}");
            assert!(outputs.iter().all(|output| is_untouched(output)), "a refused call wrote: {setup:?}");
            None
        }
    }
}

/// Finite values that differ.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * i % 23) as f32 / 8.0 - 1.0).collect()
}

fuzz_target!(|setup: Setup| {
    slices(&setup);
    views(&setup);
});

fn slices(setup: &Setup) {
    let [x, dy] = [setup.x, setup.y].map(values);
    let [gamma, beta] = [setup.gamma, setup.beta].map(|len| len.map(values));
    let mut layer = LayerNorm::with_shape(&setup.normalized).epsilon(setup.epsilon);
    layer = gamma.as_ref().map_or(layer.clone(), |gamma| layer.gamma(gamma));
    layer = beta.as_ref().map_or(layer.clone(), |beta| layer.beta(beta));
    let of_layer = faults_of_layer(&setup.normalized, setup);
    let width = product(&setup.normalized).filter(|&width| width > 0);
    let rows = width.map(|width| x.len() / width);
    let whole = width.is_some_and(|width| x.len().is_multiple_of(width));
    let fault = |is_wrong: bool, name: &'static str| is_wrong.then_some(name);

    let mut y = vec![UNTOUCHED; setup.y];
    let [mut mean, mut rstd] = setup.statistics.map(|len| vec![UNTOUCHED; len]);
    let statistics = setup.with_statistics.then_some(StatisticsMut { mean: &mut mean, rstd: &mut rstd });
    let result = layer.forward_into(&x, &mut y, statistics);
    let [wrong_mean, wrong_rstd] = setup.statistics.map(|len| Some(len) != rows);
    let mut faults = of_layer.clone();
    faults.extend(fault(!whole, "x"));
    faults.extend(fault(y.len() != x.len(), "y"));
    faults.extend(fault(setup.with_statistics && wrong_mean, "statistics.mean"));
    faults.extend(fault(setup.with_statistics && wrong_rstd, "statistics.rstd"));
    let outputs: &[&[f32]] = if setup.with_statistics { &[&y, &mean, &rstd] } else { &[&y] };
    judge(setup, result, &faults, outputs);

    let [mean, rstd] = setup.statistics.map(|len| vec![1.0; len]);
    let mut outputs = setup.gradients.map(|len| vec![UNTOUCHED; len.unwrap_or(0)]);
    let [dx, dgamma, dbeta] = outputs
        .each_mut()
        .map(|output| if setup.accumulate { GradientMut::Accumulate(output) } else { GradientMut::Overwrite(output) });
    let [has_dx, has_dgamma, has_dbeta] = setup.gradients.map(|len| len.is_some());
    let gradients = GradientsMut {
        dx: has_dx.then_some(dx),
        dgamma: has_dgamma.then_some(dgamma),
        dbeta: has_dbeta.then_some(dbeta),
    };
    let result = layer.backward_into(&dy, &x, Statistics { mean: &mean, rstd: &rstd }, gradients);
    let mut faults = of_layer;
    faults.extend(fault(!whole, "x"));
    faults.extend(fault(dy.len() != x.len(), "dy"));
    faults.extend(fault(wrong_mean, "statistics.mean"));
    faults.extend(fault(wrong_rstd, "statistics.rstd"));
    faults.extend(fault(setup.gradients[0].is_some_and(|len| len != x.len()), "dx"));
    faults.extend(fault(setup.gradients[1].is_some_and(|len| Some(len) != width), "dgamma"));
    faults.extend(fault(setup.gradients[2].is_some_and(|len| Some(len) != width), "dbeta"));
    if setup.accumulate {
        // A gradient of 0 that is added leaves what was there, so only a refused call can be told.
        if judge(setup, result, &faults, &[]).is_none() {
            assert!(outputs.iter().all(|output| is_untouched(output)), "a refused call wrote: {setup:?}");
        }
    } else {
        judge(setup, result, &faults, &outputs.each_ref().map(|output| &output[..]));
    }
}

fn views(setup: &Setup) {
    // Shapes with too many elements to allocate are left to the slices.
    let [x, dy] = setup.shapes.each_ref().map(|shape| {
        let size = product(shape).filter(|&size| size <= 1 << 14)?;
        // A shape with a 0 may still be one that no array has.
        ArrayD::from_shape_vec(IxDyn(shape), values(size)).ok()
    });
    let (Some(x), Some(dy)) = (x, dy) else { return };
    let [gamma, beta] = [setup.gamma, setup.beta].map(|len| len.map(values));
    let layer = |normalized: &[usize]| {
        let mut layer = LayerNorm::with_shape(normalized).epsilon(setup.epsilon);
        layer = gamma.as_ref().map_or(layer.clone(), |gamma| layer.gamma(gamma));
        beta.as_ref().map_or(layer.clone(), |beta| layer.beta(beta))
    };
    let mut faults = faults_of_layer(&setup.normalized, setup);
    if !x.shape().ends_with(&setup.normalized) {
        faults.push("x");
    }
    let forward: ArrayViewD<'_, f32> = x.view();
    let result = layer(&setup.normalized).forward(forward);
    let Some((y, cache)) = judge(setup, result, &faults, &[]) else { return };
    assert_eq!(y.shape(), x.shape());

    let mut faults = faults_of_layer(&setup.backward_normalized, setup);
    if setup.backward_normalized != setup.normalized {
        faults.push("cache");
    }
    if dy.shape() != x.shape() {
        faults.push("dy");
    }
    let result = layer(&setup.backward_normalized).backward(dy.view(), &cache);
    if let Some(gradients) = judge(setup, result, &faults, &[]) {
        assert_eq!(gradients.dx.shape(), x.shape());
        let parameters = [(gamma, gradients.dgamma), (beta, gradients.dbeta)];
        for (parameter, gradient) in parameters {
            assert_eq!(gradient.map(|gradient| gradient.shape().to_vec()), parameter.map(|_| setup.normalized.clone()));
        }
    }
}

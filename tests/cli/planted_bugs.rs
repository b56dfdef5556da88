//! Gradients in files: right ones pass, and each planted bug is found and named in words.

use crate::folder::{Folder, Run};
use llm_operator::numpy_random::default_rng;
use ndarray_npy::{ReadableElement, WritableElement};

/// The mean of x, and the shapes: register tails of 6, 0, 7 and 1 elements, few rows and many, and a row far from zero.
const CASES: [(f64, &[usize]); 5] =
    [(0.0, &[2, 4, 6]), (0.0, &[16, 64]), (0.0, &[3, 5, 7]), (0.0, &[200, 17]), (50.0, &[8, 768])];

const EPSILON: f64 = 1e-5;

/// What may be wrong with a gradient, and the words of the report that name it.
const BUGS: [(Bug, &[&str]); 16] = [
    (Bug::Zeros, &["zero everywhere"]),
    (Bug::OneElement, &["is 1.1000 times what it should be"]),
    (Bug::RowZeroed, &["which is zero"]),
    (Bug::TwoSwapped, &["two components are swapped"]),
    (Bug::Scale, &["1.0200", "a constant scale"]),
    (Bug::OneSign, &["has the wrong sign"]),
    (Bug::TailDropped, &["the tail of the row"]),
    (Bug::RowsShifted, &["rows are shifted by one"]),
    (Bug::RowOffset, &["is off by a constant"]),
    (Bug::OneNan, &["1 components of the analytic gradient are not finite"]),
    (Bug::DegreesOfFreedom, &["n - 1"]),
    (Bug::GammaForgotten, &["gamma is forgotten"]),
    (Bug::MeanTermDropped, &["the mean term"]),
    (Bug::VarianceTermDropped, &["the variance term"]),
    (Bug::RowMissingInDgamma, &["gamma: row", "is missing from the sum over the rows"]),
    (Bug::DbetaDoubled, &["beta: the analytic gradient is 2.0000"]),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    Zeros,
    OneElement,
    RowZeroed,
    TwoSwapped,
    Scale,
    OneSign,
    TailDropped,
    RowsShifted,
    RowOffset,
    OneNan,
    DegreesOfFreedom,
    GammaForgotten,
    MeanTermDropped,
    VarianceTermDropped,
    RowMissingInDgamma,
    DbetaDoubled,
}

/// The two types of files.
trait Float: ReadableElement + WritableElement + Copy + Into<f64> {
    fn of(value: f64) -> Self;
}

impl Float for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Float for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// A LayerNorm in a folder: its inputs, and the gradients that `backward` gives for them.
struct Layer {
    folder: Folder,
    shape: Vec<usize>,
    width: usize,
    x: Vec<f64>,
    g: Vec<f64>,
    gamma: Option<Vec<f64>>,
    dx: Vec<f64>,
    dgamma: Vec<f64>,
    dbeta: Vec<f64>,
}

impl Layer {
    fn new<T: Float>((mean, shape): (f64, &[usize]), with_gamma: bool, seed: u64) -> Self {
        let mut rng = default_rng(seed);
        let width = shape[shape.len() - 1];
        let mut draw = |shape: &[usize], mean: f64| -> Vec<T> {
            rng.standard_normal(shape).iter().map(|value| T::of(mean + value)).collect()
        };
        let (x, g) = (draw(shape, mean), draw(shape, 0.0));
        let gamma = with_gamma.then(|| draw(&[width], 0.0));
        let folder = Folder::new();
        folder.array("x.npy", shape, &x).array("g.npy", shape, &g);
        if let Some(gamma) = &gamma {
            folder.array("gamma.npy", &[width], gamma);
        }
        let flag = if with_gamma { " --gamma gamma.npy" } else { "" };
        let line = "--dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";
        folder.run(&format!("backward --x x.npy --g g.npy{flag} {line}")).passed();
        let [dx, dgamma, dbeta] = ["dx.npy", "dgamma.npy", "dbeta.npy"]
            .map(|name| folder.read::<T>(name).iter().map(|&value| value.into()).collect());
        let [x, g] = [x, g].map(wide);
        Self { folder, shape: shape.to_vec(), width, x, g, gamma: gamma.map(wide), dx, dgamma, dbeta }
    }

    /// Judges the gradients in the files.
    fn check(&self) -> Run {
        let flag = if self.gamma.is_some() { " --gamma gamma.npy" } else { "" };
        let theirs = "--dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";
        self.folder.run(&format!("check --x x.npy --g g.npy{flag} {theirs}"))
    }

    /// Writes the gradients with a bug in them.
    fn plant<T: Float>(&self, bug: Bug) {
        let (mut dx, mut dgamma, mut dbeta) = (self.dx.clone(), self.dgamma.clone(), self.dbeta.clone());
        match bug {
            Bug::DegreesOfFreedom | Bug::GammaForgotten | Bug::MeanTermDropped | Bug::VarianceTermDropped => {
                dx = self.wrong_formula(bug);
            }
            Bug::RowMissingInDgamma => {
                let row = self.x.len() / self.width / 2;
                let (xhat, _) = self.normalized(row, 0.0);
                let g = &self.g[row * self.width..];
                dgamma.iter_mut().zip(xhat).zip(g).for_each(|((dgamma, xhat), g)| *dgamma -= g * xhat);
            }
            Bug::DbetaDoubled => dbeta.iter_mut().for_each(|dbeta| *dbeta *= 2.0),
            _ => spoil(&mut dx, self.width, bug),
        }
        let write = |name: &str, shape: &[usize], values: &[f64]| {
            self.folder.array(name, shape, &values.iter().map(|&value| T::of(value)).collect::<Vec<_>>());
        };
        write("dx.npy", &self.shape, &dx);
        write("dgamma.npy", &[self.width], &dgamma);
        write("dbeta.npy", &[self.width], &dbeta);
    }

    /// xhat and rstd of a row, whose variance is divided by the width less `ddof`.
    fn normalized(&self, row: usize, ddof: f64) -> (Vec<f64>, f64) {
        let x = &self.x[row * self.width..][..self.width];
        let mean = x.iter().sum::<f64>() / self.width as f64;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (self.width as f64 - ddof);
        let rstd = 1.0 / (var + EPSILON).sqrt();
        (x.iter().map(|x| (x - mean) * rstd).collect(), rstd)
    }

    /// dx as a wrong formula has it.
    fn wrong_formula(&self, bug: Bug) -> Vec<f64> {
        let mut dx = Vec::new();
        for (row, g) in self.g.chunks(self.width).enumerate() {
            let (xhat, rstd) = self.normalized(row, f64::from(u8::from(bug == Bug::DegreesOfFreedom)));
            let g: Vec<f64> = match &self.gamma {
                Some(gamma) if bug != Bug::GammaForgotten => g.iter().zip(gamma).map(|(g, gamma)| g * gamma).collect(),
                _ => g.to_vec(),
            };
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / self.width as f64;
            let mut c1 = mean(&mut g.iter().copied());
            let mut c2 = mean(&mut g.iter().zip(&xhat).map(|(g, xhat)| g * xhat));
            match bug {
                Bug::MeanTermDropped => c1 = 0.0,
                Bug::VarianceTermDropped => c2 = 0.0,
                _ => {}
            }
            dx.extend(g.iter().zip(&xhat).map(|(g, xhat)| rstd * (g - c1 - xhat * c2)));
        }
        dx
    }
}

fn wide<T: Float>(values: Vec<T>) -> Vec<f64> {
    values.into_iter().map(Into::into).collect()
}

/// Spoils a right gradient, in its middle row or everywhere.
fn spoil(dx: &mut [f64], width: usize, bug: Bug) {
    let middle = dx.len() / width / 2 * width;
    let row = middle..middle + width;
    match bug {
        Bug::Zeros => dx.fill(0.0),
        Bug::OneElement => dx[middle + width / 3] *= 1.1,
        Bug::RowZeroed => dx[row].fill(0.0),
        Bug::TwoSwapped => dx.swap(middle, middle + width - 1),
        Bug::Scale => dx.iter_mut().for_each(|value| *value *= 1.02),
        Bug::OneSign => dx[middle + 1] *= -1.0,
        Bug::TailDropped => {
            let tail = [16, 8, 4].map(|lanes| width % lanes).into_iter().find(|tail| (1..width).contains(tail));
            let tail = tail.unwrap_or(16);
            dx.chunks_mut(width).for_each(|row| row[width - tail..].fill(0.0));
        }
        Bug::RowsShifted => dx.rotate_right(width),
        Bug::RowOffset => {
            let row = &mut dx[row];
            let rms = (row.iter().map(|value| value * value).sum::<f64>() / width as f64).sqrt();
            row.iter_mut().for_each(|value| *value += 0.05 * rms);
        }
        Bug::OneNan => dx[middle + 2] = f64::NAN,
        _ => unreachable!("this bug is another formula"),
    }
}

/// Every bug in every shape, with and without gamma; all that is missed is listed.
fn every_bug_is_caught<T: Float>() {
    let mut missed = Vec::new();
    for (number, case) in CASES.into_iter().enumerate() {
        for with_gamma in [false, true] {
            let layer = Layer::new::<T>(case, with_gamma, 100 + number as u64);
            for (bug, words) in BUGS {
                if bug == Bug::GammaForgotten && !with_gamma {
                    continue;
                }
                layer.plant::<T>(bug);
                let run = layer.check();
                if run.code != 1 || words.iter().any(|words| !run.stdout.contains(words)) {
                    missed.push(format!("{bug:?} in {case:?}, gamma {with_gamma}: {}\n{}", run.code, run.stdout));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{} bugs are not caught or not named:\n{}", missed.len(), missed.join("\n"));
}

#[test]
fn every_planted_bug_in_f64_is_found_and_named() {
    every_bug_is_caught::<f64>();
}

#[test]
fn every_planted_bug_in_f32_is_found_and_named() {
    every_bug_is_caught::<f32>();
}

#[test]
fn right_gradients_are_not_accused() {
    for case in CASES {
        for seed in [1, 2, 3] {
            for with_gamma in [false, true] {
                let passed = [
                    Layer::new::<f64>(case, with_gamma, seed).check().passed(),
                    Layer::new::<f32>(case, with_gamma, seed).check().passed(),
                ];
                assert!(passed.iter().all(|text| text.contains("verdict: passed")), "{case:?}, seed {seed}");
            }
        }
    }
}

/// A loss that is the sum of y does not change with x, so that no gradient of x could be told from another.
#[test]
fn a_blind_loss_certifies_nothing() {
    for case in CASES {
        let layer = Layer::new::<f64>(case, false, 5);
        layer.folder.array("g.npy", &layer.shape, &vec![1.0; layer.g.len()]);
        layer.folder.run("backward --x x.npy --g g.npy --dx dx.npy").passed();
        for line in ["check --x x.npy --g g.npy", "check --x x.npy --g g.npy --dx dx.npy"] {
            let run = layer.folder.run(line);
            assert_eq!((run.code, &run.stderr[..]), (3, ""), "{case:?}: {}", run.stdout);
            assert!(run.stdout.contains("the loss does not see it"), "{case:?}: {}", run.stdout);
        }
    }
}

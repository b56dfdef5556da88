//! What the tests share: backends, inputs, poisoned buffers, and LayerNorm in more digits than the kernels have.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part of this module")]

pub mod bounds;
pub mod call;
pub mod exact;
pub mod number;

use llm_operator::{Backend, Element, GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut};

/// The backends that this machine has. `LLM_OPERATOR_REQUIRE` (names, separated by commas) makes the absence of one a
/// failure; without it, what is missing is printed.
pub fn backends() -> Vec<Backend> {
    let required = std::env::var("LLM_OPERATOR_REQUIRE").unwrap_or_default();
    for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        assert!(
            Backend::from_name(name).is_ok(),
            "this machine lacks the backend {name}, which LLM_OPERATOR_REQUIRE asks for"
        );
    }
    for name in ["avx2", "avx512"] {
        if Backend::from_name(name).is_err() {
            println!("skipped: this machine lacks the backend {name}");
        }
    }
    Backend::available()
}

/// Whether a backend rounds a multiplication and an addition once, so that its bits are the model's.
pub fn is_fused(backend: &Backend) -> bool {
    backend.name() != "portable" || cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64")
}

/// Widths on both sides of every boundary of the kernels.
pub fn boundary_widths() -> Vec<usize> {
    let mut widths: Vec<usize> = (1..=65).collect();
    widths.extend([
        96, 192, // six and twelve chunks of f32, twelve and more of f64
        127, 128, 129, // eight chunks of f32, sixteen of f64
        255, 256, 257, 511, 512, 513, // the rows held in registers
        768, 1000, 1023, 1024, 1025, // common widths and their neighbours
        2047, 2048, 2049, // a segment of f64
        4095, 4096, 4097, // a segment of f32
        8191, 8193, 10_000, // several segments
    ]);
    widths
}

/// A small generator of its own, so that a failure repeats: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2.0_f64.powi(-53)
    }

    /// About standard normal: twelve uniforms less six.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    pub fn normals<T: Element>(&mut self, count: usize, mean: f64, deviation: f64) -> Vec<T> {
        (0..count).map(|_| T::from_f64(mean + deviation * self.normal())).collect()
    }
}

/// A buffer poisoned with NaN between two canaries, at an offset in elements from a multiple of 64 bytes.
#[derive(Clone, Debug)]
pub struct Framed<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

const CANARY: f64 = -12345.0;
const CANARIES: usize = 16;

impl<T: Element> Framed<T> {
    pub fn new(len: usize, offset: usize) -> Self {
        let aligned = 64 / size_of::<T>();
        let mut memory = vec![T::from_f64(CANARY); CANARIES + aligned + offset + len + CANARIES];
        let address = memory.as_ptr().addr() + CANARIES * size_of::<T>();
        let start = CANARIES + (address.next_multiple_of(64) - address) / size_of::<T>() + offset;
        memory[start..start + len].fill(T::from_f64(f64::NAN));
        Self { memory, start, len }
    }

    pub fn from_slice(values: &[T], offset: usize) -> Self {
        let mut framed = Self::new(values.len(), offset);
        framed.slice_mut().copy_from_slice(values);
        framed
    }

    pub fn slice(&self) -> &[T] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn slice_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// The values, after a look at the canaries.
    pub fn finish(self) -> Vec<T> {
        let (before, after) = (&self.memory[..self.start], &self.memory[self.start + self.len..]);
        for canary in before.iter().chain(after) {
            assert_eq!(canary.to_f64(), CANARY, "a write outside the buffer");
        }
        self.slice().to_vec()
    }
}

/// A call of forward and backward.
#[derive(Clone, Debug)]
pub struct Case<T> {
    pub width: usize,
    pub x: Vec<T>,
    pub dy: Vec<T>,
    pub gamma: Option<Vec<T>>,
    pub beta: Option<Vec<T>>,
    pub epsilon: f64,
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<T> {
    pub y: Vec<T>,
    pub mean: Vec<T>,
    pub rstd: Vec<T>,
    pub dx: Vec<T>,
    pub dgamma: Vec<T>,
    pub dbeta: Vec<T>,
}

impl<T: Element> Case<T> {
    /// Normal values, with gamma and beta as asked for.
    pub fn random(rows: usize, width: usize, gamma: bool, beta: bool, seed: u64) -> Self {
        let mut random = Random(seed);
        Self {
            width,
            x: random.normals(rows * width, 0.3, 1.7),
            dy: random.normals(rows * width, -0.1, 1.0),
            gamma: gamma.then(|| random.normals(width, 1.0, 0.5)),
            beta: beta.then(|| random.normals(width, 0.0, 0.5)),
            epsilon: 1e-5,
        }
    }

    pub fn layer(&self, backend: Backend) -> LayerNorm<'_, T> {
        let mut layer = LayerNorm::new(self.width).epsilon(self.epsilon).backend(backend);
        if let Some(gamma) = &self.gamma {
            layer = layer.gamma(gamma);
        }
        if let Some(beta) = &self.beta {
            layer = layer.beta(beta);
        }
        layer
    }

    /// Runs both passes, with every array at `offset` elements from its allocation, poisoned and framed.
    pub fn run(&self, backend: Backend, offset: usize) -> Outcome<T> {
        self.run_layer(&self.layer(backend), offset)
    }

    /// The same with a layer of its own settings.
    pub fn run_layer(&self, layer: &LayerNorm<'_, T>, offset: usize) -> Outcome<T> {
        let rows = self.x.len() / self.width;
        let (x, dy) = (Framed::from_slice(&self.x, offset), Framed::from_slice(&self.dy, offset));
        let mut y = Framed::new(self.x.len(), offset);
        let [mut mean, mut rstd] = [(); 2].map(|()| Framed::new(rows, offset));
        let statistics = StatisticsMut { mean: mean.slice_mut(), rstd: rstd.slice_mut() };
        layer.forward_into(x.slice(), y.slice_mut(), Some(statistics)).unwrap();
        let mut dx = Framed::new(self.x.len(), offset);
        let [mut dgamma, mut dbeta] = [(); 2].map(|()| Framed::new(self.width, offset));
        let gradients = GradientsMut {
            dx: Some(GradientMut::Overwrite(dx.slice_mut())),
            dgamma: Some(GradientMut::Overwrite(dgamma.slice_mut())),
            dbeta: Some(GradientMut::Overwrite(dbeta.slice_mut())),
        };
        let statistics = Statistics { mean: mean.slice(), rstd: rstd.slice() };
        layer.backward_into(dy.slice(), x.slice(), statistics, gradients).unwrap();
        Outcome {
            y: y.finish(),
            mean: mean.finish(),
            rstd: rstd.finish(),
            dx: dx.finish(),
            dgamma: dgamma.finish(),
            dbeta: dbeta.finish(),
        }
    }
}

impl<T: Element> Outcome<T> {
    /// The arrays by name.
    pub fn arrays(&self) -> [(&'static str, &[T]); 6] {
        [
            ("y", &self.y),
            ("mean", &self.mean),
            ("rstd", &self.rstd),
            ("dx", &self.dx),
            ("dgamma", &self.dgamma),
            ("dbeta", &self.dbeta),
        ]
    }

    /// Fails at the first element whose bits differ; NaN equals NaN.
    pub fn assert_same_bits(&self, other: &Self, what: &str) {
        for ((name, found), (_, expected)) in self.arrays().into_iter().zip(other.arrays()) {
            for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                let same = a.to_f64().to_bits() == b.to_f64().to_bits() || (a.to_f64().is_nan() && b.to_f64().is_nan());
                assert!(same, "{what}: {name}[{i}] is {a}, expected {b}");
            }
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
        }
    }
}

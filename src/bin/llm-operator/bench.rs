//! `bench`: the time of forward and backward beside that of copying the same bytes.

use crate::report;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use llm_operator::{
    Backend, Element, GradientMut, GradientsMut, LayerNorm, Statistics, StatisticsMut, Streaming, roofline,
};
use std::time::{Duration, Instant};

/// Shapes from one short row to a hundred megabytes.
const SHAPES: &str = "1x768,64x768,1024x64,4096x256,2048x1024,8192x768,2048x4096,32768x1024,65536x64,16x65536";

/// Time forward and backward, and copies of the same bytes, on this machine.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Shapes, as 64x768 (rows x width), separated by commas.
    #[arg(long, default_value = SHAPES, value_delimiter = ',')]
    shapes: Vec<Shape>,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// The type of all elements.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// What to time, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Op::value_variants().to_vec())]
    ops: Vec<Op>,
    /// Seconds for one figure.
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    seconds: f64,
    /// Write outputs past the caches: where they cannot stay there, always, or never.
    #[arg(long, value_enum, default_value_t = Stores::Auto)]
    streaming: Stores,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stores {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Op {
    /// With gamma and beta; saves mean and rstd.
    Forward,
    /// Without gamma and beta; saves mean and rstd.
    ForwardPlain,
    /// With gamma; gives dx, dgamma and dbeta.
    Backward,
    /// Without gamma; gives dx.
    BackwardPlain,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Forward => "forward",
            Op::ForwardPlain => "forward_plain",
            Op::Backward => "backward",
            Op::BackwardPlain => "backward_plain",
        }
    }

    fn is_forward(self) -> bool {
        matches!(self, Op::Forward | Op::ForwardPlain)
    }

    fn has_parameters(self) -> bool {
        matches!(self, Op::Forward | Op::Backward)
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    width: usize,
}

impl std::str::FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rows, width) = text.split_once('x').context("expected rows x width, such as 64x768")?;
        let shape = Self { rows: rows.parse()?, width: width.parse()? };
        if shape.rows == 0 || shape.width == 0 {
            bail!("expected at least one row, and one element a row");
        }
        // x, dy, the output, gamma, beta, their gradients and the statistics are fewer than eight arrays of that size.
        let needed = shape.rows.checked_mul(shape.width).and_then(|elements| elements.checked_mul(8));
        if needed.is_none_or(|needed| Vec::<f64>::new().try_reserve_exact(needed).is_err()) {
            bail!("expected a shape that fits in memory");
        }
        Ok(shape)
    }
}

fn seconds(text: &str) -> Result<f64> {
    let seconds: f64 = text.parse()?;
    if !(seconds > 0.0 && seconds <= 3600.0) {
        bail!("expected more than 0 and at most 3600 seconds");
    }
    Ok(seconds)
}

impl Arguments {
    /// Prints a line for each figure as soon as it is there: one JSON object with `json`, else a row of a table.
    pub(crate) fn run(&self, json: bool) -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads.into()).build()?;
        let backend = Backend::chosen()?;
        // The whole measurement runs in the pool: a call from outside would wake a thread of it each time.
        pool.install(|| match self.dtype {
            Dtype::F32 => self.run_type::<f32>(backend, json),
            Dtype::F64 => self.run_type::<f64>(backend, json),
        })
    }

    fn run_type<T: Element>(&self, backend: Backend, json: bool) -> Result<()> {
        if !json {
            let head = format!(
                "{}, {} thread(s), backend {}; medians; copy: the same bytes, by the faster of ordinary and streaming stores
                 {:>12} {:>15} {:>12} {:>9} {:>12} {:>9}",
                T::NAME, self.threads, backend.name(), "shape", "op", "us", "GB/s", "copy us", "op/copy",
            );
            report::line(&head)?;
        }
        for &shape in &self.shapes {
            let mut arrays = Arrays::<T>::new(shape);
            let mut copies = [None; 2];
            for &op in &self.ops {
                let copy = &mut copies[usize::from(op.is_forward())];
                let copy = match *copy {
                    Some(copy) => copy,
                    None => *copy.insert(arrays.time_copy(backend, op.is_forward(), self.seconds)?),
                };
                let time = arrays.time(op, shape.width, self.streaming, self.seconds)?;
                let figure = Figure { shape, op, time, copy };
                let text = if json { figure.json::<T>(self.threads, backend) } else { figure.row::<T>() };
                if !report::line(&text)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// One line of the table; times in microseconds.
#[derive(Debug, Clone, Copy)]
struct Figure {
    shape: Shape,
    op: Op,
    time: f64,
    copy: f64,
}

impl Figure {
    fn json<T: Element>(self, threads: u16, backend: Backend) -> String {
        let Self { shape: Shape { rows, width }, op, time, copy } = self;
        let line = serde_json::json!({
            "impl": "ours", "op": op.name(), "dtype": T::NAME, "rows": rows, "width": width,
            "threads": threads, "backend": backend.name(), "us": time, "copy_us": copy,
        });
        line.to_string()
    }

    fn row<T: Element>(self) -> String {
        let Self { shape: Shape { rows, width }, op, time, copy } = self;
        let arrays = if op.is_forward() { 2 } else { 3 };
        let gigabytes = (arrays * rows * width * size_of::<T>()) as f64 / (time * 1e3);
        let (shape, ratio) = (format!("{rows}x{width}"), time / copy);
        format!("{shape:>12} {:>15} {time:>12.2} {gigabytes:>9.1} {copy:>12.2} {ratio:>9.2}", op.name())
    }
}

/// Bytes of a page of memory.
const PAGE: usize = 4 << 10;

/// An array that starts 64 bytes behind a multiple of 4 KiB, as PyTorch's larger tensors do (all of them: such memory comes in
/// pages of its own, behind the allocator's notes). Between arrays that lie 64 bytes apart modulo 4 KiB, as they happen to in
/// a heap, a loop can take 1.4 times as long: CPUs compare the last 12 bits of addresses to see whether a load has to wait for a
/// store.
#[derive(Debug)]
struct Array<T> {
    room: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Array<T> {
    fn new(len: usize, element: impl Fn(usize) -> T) -> Self {
        let mut room = vec![T::default(); len + PAGE / size_of::<T>()];
        let start = (64_usize.wrapping_sub(room.as_ptr().addr()) % PAGE) / size_of::<T>();
        for i in 0..len {
            room[start + i] = element(i);
        }
        Self { room, start, len }
    }
}

impl<T> std::ops::Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.room[self.start..self.start + self.len]
    }
}

impl<T> std::ops::DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.room[self.start..self.start + self.len]
    }
}

/// The memory of one shape.
#[derive(Debug)]
struct Arrays<T> {
    x: Array<T>,
    dy: Array<T>,
    output: Array<T>,
    gamma: Array<T>,
    beta: Array<T>,
    dgamma: Array<T>,
    dbeta: Array<T>,
    mean: Array<T>,
    rstd: Array<T>,
}

impl<T: Element> Arrays<T> {
    fn new(shape: Shape) -> Self {
        let fill = |len: usize, step: usize| {
            Array::new(len, |i| T::from_f64((i.wrapping_mul(step) % 1009) as f64 / 1009.0 - 0.4))
        };
        let len = shape.rows * shape.width;
        Self {
            x: fill(len, 757),
            dy: fill(len, 331),
            output: fill(len, 1),
            gamma: fill(shape.width, 7),
            beta: fill(shape.width, 13),
            dgamma: fill(shape.width, 1),
            dbeta: fill(shape.width, 1),
            mean: fill(shape.rows, 1),
            rstd: fill(shape.rows, 1),
        }
    }

    /// The faster of ordinary and streaming stores.
    fn time_copy(&mut self, backend: Backend, is_forward: bool, seconds: f64) -> Result<f64> {
        let mut fastest = f64::INFINITY;
        for stream in [false, true] {
            let Self { x, dy, output, .. } = self;
            let time = median_microseconds(seconds / 2.0, || {
                if is_forward {
                    roofline::copy(backend, x, output, stream)?;
                } else {
                    roofline::add(backend, x, dy, output, stream)?;
                }
                Ok(())
            })?;
            fastest = fastest.min(time);
        }
        Ok(fastest)
    }

    fn time(&mut self, op: Op, width: usize, streaming: Stores, seconds: f64) -> Result<f64> {
        let Self { x, dy, output, gamma, beta, dgamma, dbeta, mean, rstd } = self;
        let mut layer = LayerNorm::new(width).streaming(match streaming {
            Stores::Auto => Streaming::Auto,
            Stores::Always => Streaming::Always,
            Stores::Never => Streaming::Never,
        });
        if op.has_parameters() {
            layer = layer.gamma(gamma).beta(beta);
        }
        layer.forward_into(x, output, Some(StatisticsMut { mean, rstd }))?;
        median_microseconds(seconds, || {
            if op.is_forward() {
                layer.forward_into(x, output, Some(StatisticsMut { mean, rstd }))?;
            } else {
                let gradients = GradientsMut {
                    dx: Some(GradientMut::Overwrite(output)),
                    dgamma: op.has_parameters().then_some(GradientMut::Overwrite(dgamma)),
                    dbeta: op.has_parameters().then_some(GradientMut::Overwrite(dbeta)),
                };
                layer.backward_into(dy, x, Statistics { mean, rstd }, gradients)?;
            }
            Ok(())
        })
    }
}

/// The median time of a call, over samples of about 200 microseconds, each of as many calls as that takes.
fn median_microseconds(seconds: f64, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    call()?;
    let start = Instant::now();
    call()?;
    let inner = (200e-6 / start.elapsed().as_secs_f64().max(1e-9)).clamp(1.0, 1e6) as u32;
    let (begin, budget) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut samples = vec![];
    while begin.elapsed() < budget || samples.len() < 7 {
        let start = Instant::now();
        for _ in 0..inner {
            call()?;
        }
        samples.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(inner));
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}

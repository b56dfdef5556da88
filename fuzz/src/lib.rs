//! What the targets share: a call made of any bytes.
//!
//! A target decodes its bytes to a [`AnyCall`], makes it, and asks the oracle of the tests (`tests/support`) whether the
//! result is right. `Debug` prints a test to paste into `tests/kernels/any_bits.rs`, which has the same oracle.
//!
//! The bytes choose a shape, how memory lies, a backend, `epsilon`, and for each array a few numbers from which it is
//! filled, then single elements by their bits. So a handful of bytes makes rows of every kind, and a mutation of one of
//! them moves one thing: the mean of a row, the size of gamma, or one element that becomes a NaN.

use arbitrary::{Arbitrary, Result, Unstructured};
use llm_operator::{Backend, Streaming};
use std::fmt;
use std::sync::OnceLock;
use support::call::{Bits, Call, Layout};
use support::{Case, Random};

#[path = "../../tests/support/mod.rs"]
pub mod support;

/// A call in either element type.
#[derive(Clone)]
pub enum AnyCall {
    F32(Call<f32>),
    F64(Call<f64>),
}

impl<'a> Arbitrary<'a> for AnyCall {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(if bytes.arbitrary()? { Self::F64(call(bytes)?) } else { Self::F32(call(bytes)?) })
    }
}

impl fmt::Debug for AnyCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32(call) => call.fmt(formatter),
            Self::F64(call) => call.fmt(formatter),
        }
    }
}

/// Elements of an array, at most: the oracle takes about a microsecond for each.
const ELEMENTS: usize = 2100;

fn call<T: Bits>(bytes: &mut Unstructured<'_>) -> Result<Call<T>> {
    let width = width(bytes)?;
    let rows = usize::from(bytes.arbitrary::<u8>()? % 20 + 1).min(ELEMENTS / width).max(1);
    let layout = match bytes.arbitrary::<u8>()? % 8 {
        0..4 => Layout::C,
        4 => Layout::Fortran,
        5 => Layout::Gaps(usize::from(bytes.arbitrary::<u8>()? % 16 + 1)),
        6 => Layout::Steps(usize::from(bytes.arbitrary::<u8>()? % 3 + 2)),
        _ => Layout::Reversed,
    };
    let streaming = match bytes.arbitrary::<u8>()? % 3 {
        0 => Streaming::Auto,
        1 => Streaming::Always,
        _ => Streaming::Never,
    };
    let offset = usize::from(bytes.arbitrary::<u8>()? % 16);
    let names = backends();
    let backend = names[usize::from(bytes.arbitrary::<u8>()?) % names.len()];
    let epsilon = match bytes.arbitrary::<u8>()? % 4 {
        0 => 1e-5,
        1 => 0.0,
        2 => power_of_two(i32::from(bytes.arbitrary::<i16>()? % 1024)),
        _ => f64::from_bits(bytes.arbitrary()?).abs(),
    };
    // The arguments are right in these targets; `rejects_bad_shapes` makes the wrong ones.
    let epsilon = if epsilon.is_finite() { epsilon } else { 1e-5 };
    let present: u8 = bytes.arbitrary()?;
    Ok(Call {
        case: Case {
            width,
            x: elements(bytes, rows * width)?,
            dy: elements(bytes, rows * width)?,
            gamma: (present & 1 != 0).then(|| elements(bytes, width)).transpose()?,
            beta: (present & 2 != 0).then(|| elements(bytes, width)).transpose()?,
            epsilon,
        },
        backend,
        offset,
        layout,
        streaming,
    })
}

/// The backends of this machine and the model, named once.
fn backends() -> &'static [&'static str] {
    static NAMES: OnceLock<Vec<&'static str>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let mut names: Vec<_> = support::backends().iter().map(Backend::name).collect();
        names.push("model");
        names
    })
}

/// Mostly small; sometimes beside a boundary of the kernels: the widest has two segments of f64.
fn width(bytes: &mut Unstructured<'_>) -> Result<usize> {
    let choice = usize::from(bytes.arbitrary::<u8>()?);
    Ok(match choice {
        0..192 => choice + 1,
        _ => [255, 256, 257, 300, 511, 512, 513, 768, 1023, 1024, 1025, 2047, 2048, 2049, 2100][choice % 15],
    })
}

/// Fills an array, then sets single elements.
fn elements<T: Bits>(bytes: &mut Unstructured<'_>, count: usize) -> Result<Vec<T>> {
    let kind: u8 = bytes.arbitrary()?;
    let mut random = Random(bytes.arbitrary::<u16>()?.into());
    let (least, most) = if T::NAME == "f32" { (-149, 127) } else { (-1074, 1023) };
    let mut power = || -> Result<f64> {
        let exponent = i32::from(bytes.arbitrary::<i16>()?);
        // Around 1 as often as anywhere.
        let exponent = if exponent % 2 == 0 { exponent / 2 % 8 } else { exponent };
        Ok(power_of_two((exponent % (most + 1)).max(least)))
    };
    let mut found: Vec<T> = match kind % 5 {
        0 | 1 => {
            let (deviation, mean) = (power()?, power()?);
            let mean = if kind % 5 == 0 { 0.0 } else { mean };
            (0..count).map(|_| T::from_f64(mean + deviation * random.normal())).collect()
        }
        2 => vec![T::from_f64(power()?); count],
        // Neighbours: the last bits of one number.
        3 => {
            let first = T::to_bits(T::from_f64(power()?));
            (0..count).map(|_| T::from_bits(first + random.next() % 4)).collect()
        }
        // Any finite bits.
        _ => {
            let any = || T::from_bits(random.next());
            std::iter::repeat_with(any).filter(|value| value.to_f64().is_finite()).take(count).collect()
        }
    };
    for _ in 0..bytes.arbitrary::<u8>()? % 6 {
        let place = usize::from(bytes.arbitrary::<u16>()?) % count;
        found[place] = T::from_bits(bytes.arbitrary()?);
    }
    Ok(found)
}

/// Exact down to the least subnormal number.
pub fn power_of_two(exponent: i32) -> f64 {
    if exponent < -1022 { 2.0_f64.powi(-1022) * 2.0_f64.powi(exponent + 1022) } else { 2.0_f64.powi(exponent) }
}

/// Makes a call that is one of a kind: `run` is given it with its element type.
#[macro_export]
macro_rules! with_call {
    ($call:expr, |$name:ident| $body:expr) => {
        match $call {
            $crate::AnyCall::F32($name) => $body,
            $crate::AnyCall::F64($name) => $body,
        }
    };
}

/// Runs something with `T` as f64 or as f32.
#[macro_export]
macro_rules! with_type {
    ($is_f64:expr, |$type:ident| $body:expr) => {
        if $is_f64 {
            type $type = f64;
            $body
        } else {
            type $type = f32;
            $body
        }
    };
}

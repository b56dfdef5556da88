//! Ways through the kernels that the CPU's maker and the place of the arrays decide upon: each gives the same bits, whatever the
//! CPU.

use super::backward::{Backward, ParameterSums};
use super::forward::{Forward, Parameters, Place};
use super::{Work, room};
use crate::numpy_random::default_rng;
use crate::{Backend, Element};

/// Two batches, and some rows.
const ROWS: usize = 19;

/// What backward is given and asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Plain,
    WithGamma,
    WithSums,
}

/// What becomes of dx.
#[derive(Clone, Copy, Debug)]
enum Output {
    Overwrite,
    Add,
    Nothing,
}

/// y, mean, rstd, dx and the sums of dgamma and dbeta, written at `offset` elements from a multiple of 64 bytes.
fn run<T: Element>(
    backend: Backend,
    [x, dy, gamma]: [&[T]; 3],
    (mode, output, offset): (Mode, Output, usize),
    (place, is_amd): (Place, bool),
) -> Vec<u64> {
    let width = gamma.len();
    let gamma = (mode != Mode::Plain).then_some(gamma);
    let parameters = Parameters { width, gamma, beta: gamma, epsilon: 1e-5 };
    let [mut y_room, mut dx_room, mut sums_room, mut staged, mut block] = [(); 5].map(|()| Vec::new());
    let [y, dx] = [&mut y_room, &mut dx_room].map(|buffer| &mut room(buffer, x.len() + offset)[offset..]);
    let sums = room(&mut sums_room, ParameterSums::<T>::len(width));
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![T::ZERO; ROWS]);
    let (mean_mut, rstd_mut) = (Some(&mut mean[..]), Some(&mut rstd[..]));
    let forward =
        Forward { parameters, x, y: &mut *y, mean: mean_mut, rstd: rstd_mut, place, is_amd, staged: &mut staged };
    T::run(backend, Work::Forward(forward));
    let total = &mut *sums;
    let backward = Backward {
        parameters,
        x,
        dy,
        mean: &mean,
        rstd: &rstd,
        dx: match output {
            Output::Overwrite => Some((&mut *dx, false)),
            Output::Add => Some((&mut *dx, true)),
            Output::Nothing => None,
        },
        sums: (mode == Mode::WithSums).then_some(ParameterSums {
            total,
            lost: &mut [],
            group: &mut [],
            is_first: true,
            is_zero: true,
        }),
        place,
        is_amd,
        staged: &mut staged,
        block: &mut block,
    };
    T::run(backend, Work::Backward(backward));
    [&*y, &mean, &rstd, &*dx, &*sums].concat().into_iter().map(|value| value.to_f64().to_bits()).collect()
}

fn rows_have_the_same_bits_by_either_way<T: Element>() {
    // Around the limits of each way: of short rows with and without a tail, of those that go whole, apart or in tiles.
    let widths = [
        16, 24, 32, 40, 48, 64, 70, 80, 96, 100, 112, 128, 150, 192, 193, 250, 256, 257, 300, 320, 384, 385, 513, 768,
        832, 1024, 1040, 1600, 1664, 2050, 2112, 3072, 4096, 4097,
    ];
    for width in widths {
        let mut rng = default_rng(width as u64);
        let mut array =
            |len: usize| -> Vec<T> { rng.standard_normal(&[len]).iter().map(|&value| T::from_f64(value)).collect() };
        let (mut x, mut dy, gamma) = (array(ROWS * width), array(ROWS * width), array(width));
        // Rows that are written again, of each output, in the first batch and in the second.
        x[width..2 * width].fill(T::from_f64(1e-40));
        x[width] = T::from_f64(0.0);
        let tiny = if T::HAS_WIDE_RANGE { 1e-300 } else { 1e-36 };
        for row in [3, 9] {
            dy[row * width..(row + 1) * width].iter_mut().for_each(|dy| *dy = T::from_f64(dy.to_f64() * tiny));
        }
        let modes = [Mode::Plain, Mode::WithGamma, Mode::WithSums];
        let outputs = [Output::Overwrite, Output::Add, Output::Nothing];
        let calls =
            modes.into_iter().flat_map(|mode| outputs.map(|output| [0, 1].map(|offset| (mode, output, offset))));
        let calls: Vec<_> = calls.flatten().collect();
        for (backend, call) in
            Backend::available().into_iter().flat_map(|backend| calls.iter().map(move |call| (backend, *call)))
        {
            let run = |way| run(backend, [&x, &dy, &gamma], call, way);
            let others = run((Place::Memory, false));
            for way in [(Place::Memory, true), (Place::Cache, false), (Place::Cache, true)] {
                assert!(run(way) == others, "{} {backend:?}, width {width}, {call:?}, {way:?}", T::NAME);
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_in_either_place_by_the_ways_of_either_maker() {
    rows_have_the_same_bits_by_either_way::<f32>();
    rows_have_the_same_bits_by_either_way::<f64>();
}

//! Ways through the kernels that the CPU's maker and the place of the arrays decide upon: each gives the bits of one row at a
//! time, whatever the CPU.

use super::backward::{Backward, ParameterSums};
use super::forward::{Forward, Parameters, Place};
use super::{Work, room};
use crate::numpy_random::default_rng;
use crate::{Backend, Element};

/// Three batches, and some rows.
const ROWS: usize = 27;

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

/// y, mean, rstd, dx and the sums of dgamma and dbeta, of any rows, written at `offset` elements from a multiple of 64 bytes.
fn run<T: Element>(
    backend: Backend,
    [x, dy, gamma]: [&[T]; 3],
    (mode, output, offset): (Mode, Output, usize),
    (place, is_amd): (Place, bool),
) -> [Vec<u64>; 5] {
    let width = gamma.len();
    let rows = x.len() / width;
    let gamma = (mode != Mode::Plain).then_some(gamma);
    let parameters = Parameters { width, gamma, beta: gamma, epsilon: 1e-5 };
    let [mut y_room, mut dx_room, mut sums_room, mut block] = [(); 4].map(|()| Vec::new());
    // What the room of an earlier call holds is nobody's result.
    let mut staged = vec![T::from_f64(f64::NAN); 8 * width + 3 * T::LANES];
    let [y, dx] = [&mut y_room, &mut dx_room].map(|buffer| &mut room(buffer, x.len() + offset)[offset..]);
    let sums = room(&mut sums_room, ParameterSums::<T>::len(width));
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![T::ZERO; rows]);
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
    [&*y, &mean, &rstd, &*dx, &*sums].map(|values| values.iter().map(|value| value.to_f64().to_bits()).collect())
}

fn rows_have_the_same_bits_by_either_way<T: Element>() {
    // Around the limits of each way: of short rows with and without a tail, of those that go whole, apart or in tiles.
    let widths = [
        16, 24, 32, 35, 40, 48, 50, 56, 64, 70, 72, 80, 96, 100, 112, 125, 128, 144, 150, 180, 192, 193, 200, 250, 256,
        257, 300, 320, 384, 385, 513, 768, 819, 820, 832, 1024, 1040, 1600, 1638, 1639, 1664, 2050, 2112, 3072, 4096,
        4097,
    ];
    for width in widths {
        let mut rng = default_rng(width as u64);
        let mut array =
            |len: usize| -> Vec<T> { rng.standard_normal(&[len]).iter().map(|&value| T::from_f64(value)).collect() };
        let (mut x, mut dy, gamma) = (array(ROWS * width), array(ROWS * width), array(width));
        // Rows that are written again, of each output, in the first batch and in others; and one that only looks so, all of whose
        // elements are alike.
        for row in [1, 12, 18] {
            x[row * width..(row + 1) * width].fill(T::from_f64(1e-40));
            x[row * width] = T::from_f64(0.0);
        }
        x[10 * width..11 * width].fill(T::from_f64(0.3));
        let tiny = if T::HAS_WIDE_RANGE { 1e-300 } else { 1e-36 };
        for row in [3, 9] {
            dy[row * width..(row + 1) * width].iter_mut().for_each(|dy| *dy = T::from_f64(dy.to_f64() * tiny));
        }
        let modes = [Mode::Plain, Mode::WithGamma, Mode::WithSums];
        let outputs = [Output::Overwrite, Output::Add, Output::Nothing];
        let calls =
            modes.into_iter().flat_map(|mode| outputs.map(|output| [0, 5].map(|offset| (mode, output, offset))));
        let calls: Vec<_> = calls.flatten().collect();
        for (backend, call) in
            Backend::available().into_iter().flat_map(|backend| calls.iter().map(move |call| (backend, *call)))
        {
            let by_row = |row: usize| {
                let [x, dy] = [&x, &dy].map(|all| &all[row * width..(row + 1) * width]);
                run(backend, [x, dy, &gamma], call, (Place::Cache, false))
            };
            let [mut y, mut mean, mut rstd, mut dx] = [(); 4].map(|()| Vec::new());
            for [y_of_row, mean_of_row, rstd_of_row, dx_of_row, _] in (0..ROWS).map(by_row) {
                y.extend(y_of_row);
                mean.extend(mean_of_row);
                rstd.extend(rstd_of_row);
                dx.extend(dx_of_row);
            }
            let [.., sums] = run(backend, [&x, &dy, &gamma], call, (Place::Cache, false));
            let expected = [y, mean, rstd, dx, sums];
            for way in [Place::Memory, Place::Cache].into_iter().flat_map(|place| [(place, false), (place, true)]) {
                let found = run(backend, [&x, &dy, &gamma], call, way);
                assert!(found == expected, "{} {backend:?}, width {width}, {call:?}, {way:?}", T::NAME);
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_in_either_place_by_the_ways_of_either_maker() {
    rows_have_the_same_bits_by_either_way::<f32>();
    rows_have_the_same_bits_by_either_way::<f64>();
}

//! Ways through the kernels that the CPU's maker decides upon: each gives the same bits, whatever the CPU.

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

/// y, mean, rstd, dx and the sums of dgamma and dbeta, written past the caches at `offset` elements from a multiple of 64 bytes.
fn run<T: Element>(backend: Backend, [x, dy, gamma]: [&[T]; 3], mode: Mode, offset: usize, is_amd: bool) -> Vec<u64> {
    let width = gamma.len();
    let gamma = (mode != Mode::Plain).then_some(gamma);
    let parameters = Parameters { width, gamma, beta: gamma, epsilon: 1e-5 };
    let [mut y_room, mut dx_room, mut sums_room, mut staged, mut block] = [(); 5].map(|()| Vec::new());
    let [y, dx] = [&mut y_room, &mut dx_room].map(|buffer| &mut room(buffer, x.len() + offset)[offset..]);
    let sums = room(&mut sums_room, ParameterSums::<T>::len(width));
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![T::ZERO; ROWS]);
    let place = Place::Memory;
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
        dx: Some((&mut *dx, false)),
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

fn rows_read_apart_have_the_same_bits<T: Element>() {
    for width in [16, 64, 257, 513, 768, 1024, 1040, 2050, 2112, 3072, 4096, 4097] {
        let mut rng = default_rng(width as u64);
        let mut array =
            |len: usize| -> Vec<T> { rng.standard_normal(&[len]).iter().map(|&value| T::from_f64(value)).collect() };
        let (mut x, mut dy, gamma) = (array(ROWS * width), array(ROWS * width), array(width));
        // A row that is written again, of each output.
        x[width..2 * width].fill(T::from_f64(1e-40));
        x[width] = T::from_f64(0.0);
        dy[3 * width..4 * width].iter_mut().for_each(|dy| *dy = T::from_f64(dy.to_f64() * 1e-36));
        for backend in Backend::available() {
            for (offset, mode) in [0, 1]
                .into_iter()
                .flat_map(|offset| [Mode::Plain, Mode::WithGamma, Mode::WithSums].map(|mode| (offset, mode)))
            {
                let [together, apart] = [false, true].map(|apart| run(backend, [&x, &dy, &gamma], mode, offset, apart));
                assert!(together == apart, "{} {backend:?}, width {width}, offset {offset}, {mode:?}", T::NAME);
            }
        }
    }
}

#[test]
fn rows_that_are_read_apart_from_writing_have_the_same_bits() {
    rows_read_apart_have_the_same_bits::<f32>();
    rows_read_apart_have_the_same_bits::<f64>();
}

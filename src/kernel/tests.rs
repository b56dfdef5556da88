//! Ways through the kernels that the CPU's maker decides upon: each gives the same bits, whatever the CPU.

use super::backward::Backward;
use super::forward::{Forward, Parameters, Place};
use super::{Work, room};
use crate::numpy_random::default_rng;
use crate::{Backend, Element};

const ROWS: usize = 5;

/// y, mean, rstd, and dx without gamma, written past the caches at `offset` elements from a multiple of 64 bytes.
fn run<T: Element>(backend: Backend, values: [&[T]; 2], width: usize, offset: usize, is_amd: bool) -> Vec<u64> {
    let [x, dy] = values;
    let parameters = Parameters { width, gamma: None, beta: None, epsilon: 1e-5 };
    let [mut y_room, mut dx_room, mut staged, mut block] = [(); 4].map(|()| Vec::new());
    let [y, dx] = [&mut y_room, &mut dx_room].map(|buffer| &mut room(buffer, x.len() + offset)[offset..]);
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![T::ZERO; ROWS]);
    let place = Place::Memory;
    let (mean_mut, rstd_mut) = (Some(&mut mean[..]), Some(&mut rstd[..]));
    let forward =
        Forward { parameters, x, y: &mut *y, mean: mean_mut, rstd: rstd_mut, place, is_amd, staged: &mut staged };
    T::run(backend, Work::Forward(forward));
    let backward = Backward {
        parameters,
        x,
        dy,
        mean: &mean,
        rstd: &rstd,
        dx: Some((&mut *dx, false)),
        sums: None,
        place,
        is_amd,
        staged: &mut staged,
        block: &mut block,
    };
    T::run(backend, Work::Backward(backward));
    [&*y, &mean, &rstd, &*dx].concat().into_iter().map(|value| value.to_f64().to_bits()).collect()
}

fn rows_read_apart_have_the_same_bits<T: Element>() {
    for width in [16, 64, 257, 513, 768, 1024, 2050, 2112, 3072, 4096, 4097] {
        let mut rng = default_rng(width as u64);
        let mut array =
            || -> Vec<T> { rng.standard_normal(&[ROWS * width]).iter().map(|&value| T::from_f64(value)).collect() };
        let (mut x, mut dy) = (array(), array());
        // A row that is written again, of each output.
        x[width..2 * width].fill(T::from_f64(1e-40));
        x[width] = T::from_f64(0.0);
        dy[3 * width..4 * width].iter_mut().for_each(|dy| *dy = T::from_f64(dy.to_f64() * 1e-36));
        for backend in Backend::available() {
            for offset in [0, 1] {
                let [together, apart] = [false, true].map(|apart| run(backend, [&x, &dy], width, offset, apart));
                assert!(together == apart, "{} {backend:?}, width {width}, offset {offset}", T::NAME);
            }
        }
    }
}

#[test]
fn rows_that_are_read_apart_from_writing_have_the_same_bits() {
    rows_read_apart_have_the_same_bits::<f32>();
    rows_read_apart_have_the_same_bits::<f64>();
}

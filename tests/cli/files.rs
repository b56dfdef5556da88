//! `forward` and `backward` on files: the values, shapes, types and orders that NumPy gives.
//!
//! The expected values were printed by NumPy 2.4 from
//!
//! ```python
//! x = numpy.array([[1., 2, 4], [0, -1, 3]]); g = numpy.array([[.5, -1, 2], [1, 3, -2]])
//! gamma = numpy.array([1., 2, .5]); beta = numpy.array([0., 1, -1])
//! mean = x.mean(axis, keepdims=True); rstd = 1 / numpy.sqrt(x.var(axis, keepdims=True) + 1e-5)
//! xhat = (x - mean) * rstd; y = xhat * gamma + beta
//! dxhat = g * gamma
//! dx = rstd * (dxhat - dxhat.mean(axis, keepdims=True) - xhat * (dxhat * xhat).mean(axis, keepdims=True))
//! dgamma = (g * xhat).sum(rows); dbeta = g.sum(rows)
//! ```
//!
//! with `axis = -1, rows = 0`, and once with x of shape (1, 2, 3), `axis = (-2, -1), rows = 0`.

use crate::folder::{Folder, assert_close, f64_bytes, npy};

const X: [f64; 6] = [1.0, 2.0, 4.0, 0.0, -1.0, 3.0];
const G: [f64; 6] = [0.5, -1.0, 2.0, 1.0, 3.0, -2.0];
const GAMMA: [f64; 3] = [1.0, 2.0, 0.5];
const BETA: [f64; 3] = [0.0, 1.0, -1.0];

const Y: [f64; 6] = [
    -1.0690415314502977,
    0.46547923427485094,
    -0.3318490428435641,
    -0.39223159141458575,
    -0.9611579570729285,
    -0.3135947150244749,
];
const MEAN: [f64; 2] = [2.3333333333333335, 0.6666666666666666];
const RSTD: [f64; 2] = [0.8017811485877232, 0.5883473871218786];
const DX: [f64; 6] = [
    0.9163188582553745,
    -1.3744825826116027,
    0.4581637243562282,
    -1.1766927376636975,
    0.8825261721329674,
    0.2941665655307304,
];
const DGAMMA: [f64; 3] = [-0.9267523571397346, -2.6744765527468184, -0.0730173112763568];
const DBETA: [f64; 3] = [1.5, 2.0, 0.0];

/// `DX` at gamma = 1.
const DX_PLAIN: [f64; 6] = [
    0.6872365665544065,
    -1.030862581242983,
    0.34362601468857695,
    -0.271543329082358,
    0.20366275797692296,
    0.06788057110543556,
];

/// A few roundings of values near 1.
const F64: f64 = 4e-15;
const F32: f64 = 2e-6;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.array("x.npy", &[2, 3], &X).array("g.npy", &[2, 3], &G);
    folder.array("gamma.npy", &[3], &GAMMA).array("beta.npy", &[3], &BETA);
    folder
}

#[test]
fn forward_writes_numpys_y_mean_and_rstd() {
    let folder = folder();
    let line = "forward --x x.npy --gamma gamma.npy --beta beta.npy --y y.npy --mean mean.npy --rstd rstd.npy";
    let stdout = folder.run(line).passed();
    assert_eq!(stdout, "y: f64 [2, 3] -> y.npy\nmean: f64 [2] -> mean.npy\nrstd: f64 [2] -> rstd.npy\n");
    assert_close(&folder.read::<f64>("y.npy"), &[2, 3], &Y, F64);
    assert_close(&folder.read::<f64>("mean.npy"), &[2], &MEAN, F64);
    assert_close(&folder.read::<f64>("rstd.npy"), &[2], &RSTD, F64);
}

#[test]
fn backward_writes_numpys_gradients() {
    let folder = folder();
    let line = "backward --x x.npy --g g.npy --gamma gamma.npy --beta beta.npy --dx dx.npy --dgamma dgamma.npy \
                --dbeta dbeta.npy";
    let stdout = folder.run(line).passed();
    assert_eq!(stdout, "dx: f64 [2, 3] -> dx.npy\ndgamma: f64 [3] -> dgamma.npy\ndbeta: f64 [3] -> dbeta.npy\n");
    assert_close(&folder.read::<f64>("dx.npy"), &[2, 3], &DX, F64);
    assert_close(&folder.read::<f64>("dgamma.npy"), &[3], &DGAMMA, F64);
    assert_close(&folder.read::<f64>("dbeta.npy"), &[3], &DBETA, F64);
}

#[test]
fn parameter_gradients_may_be_asked_for_without_the_parameters() {
    let folder = folder();
    folder.run("backward --x x.npy --g g.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy").passed();
    assert_close(&folder.read::<f64>("dx.npy"), &[2, 3], &DX_PLAIN, F64);
    assert_close(&folder.read::<f64>("dgamma.npy"), &[3], &DGAMMA, F64);
    assert_close(&folder.read::<f64>("dbeta.npy"), &[3], &DBETA, F64);
}

#[test]
fn gamma_counts_without_beta_and_beta_without_gamma() {
    let folder = folder();
    folder.run("backward --x x.npy --g g.npy --gamma gamma.npy --dx dx.npy").passed();
    assert_close(&folder.read::<f64>("dx.npy"), &[2, 3], &DX, F64);
    folder.run("forward --x x.npy --gamma gamma.npy --y y.npy").passed();
    let without_beta: Vec<f64> = Y.iter().zip(BETA.iter().cycle()).map(|(y, beta)| y - beta).collect();
    assert_close(&folder.read::<f64>("y.npy"), &[2, 3], &without_beta, F64);
    folder.run("forward --x x.npy --beta beta.npy --y y.npy").passed();
    let gamma = GAMMA.iter().cycle();
    let without_gamma: Vec<f64> =
        without_beta.iter().zip(gamma).zip(BETA.iter().cycle()).map(|((y, gamma), beta)| y / gamma + beta).collect();
    assert_close(&folder.read::<f64>("y.npy"), &[2, 3], &without_gamma, F64);
}

#[test]
fn outputs_have_the_type_of_x() {
    let folder = Folder::new();
    let single = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
    folder.array("x.npy", &[2, 3], &single(&X)).array("g.npy", &[2, 3], &single(&G));
    folder.array("gamma.npy", &[3], &single(&GAMMA)).array("beta.npy", &[3], &single(&BETA));
    let line = "forward --x x.npy --gamma gamma.npy --beta beta.npy --y y.npy --mean mean.npy --rstd rstd.npy";
    folder.run(line).passed();
    assert_close(&folder.read::<f32>("y.npy"), &[2, 3], &Y, F32);
    assert_close(&folder.read::<f32>("mean.npy"), &[2], &MEAN, F32);
    assert_close(&folder.read::<f32>("rstd.npy"), &[2], &RSTD, F32);
    let line = "backward --x x.npy --g g.npy --gamma gamma.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";
    folder.run(line).passed();
    assert_close(&folder.read::<f32>("dx.npy"), &[2, 3], &DX, F32);
    assert_close(&folder.read::<f32>("dgamma.npy"), &[3], &DGAMMA, F32);
    assert_close(&folder.read::<f32>("dbeta.npy"), &[3], &DBETA, F32);
}

#[test]
fn several_dimensions_are_normalized_together() {
    let folder = Folder::new();
    folder.array("x.npy", &[1, 2, 3], &X).array("g.npy", &[1, 2, 3], &G);
    folder.run("forward --x x.npy --normalized-dims 2 --y y.npy --mean mean.npy --rstd rstd.npy").passed();
    let xhat = [
        -0.29276951999438444,
        0.29276951999438444,
        1.4638475999719223,
        -0.8783085599831533,
        -1.4638475999719223,
        0.8783085599831533,
    ];
    assert_close(&folder.read::<f64>("y.npy"), &[1, 2, 3], &xhat, F64);
    assert_close(&folder.read::<f64>("mean.npy"), &[1], &[1.5], F64);
    assert_close(&folder.read::<f64>("rstd.npy"), &[1], &[0.5855390399887689], F64);
    // Two dimensions of beta normalize as many of x.
    folder.array("beta.npy", &[2, 3], &[0.0; 6]);
    let line = "backward --x x.npy --g g.npy --beta beta.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy";
    folder.run(line).passed();
    let dx = [
        -0.1784495486092791,
        -0.7974488513720025,
        1.4777867830351643,
        -0.1449892858353246,
        0.766779536921783,
        -1.1236786341403415,
    ];
    assert_close(&folder.read::<f64>("dx.npy"), &[1, 2, 3], &dx, F64);
    let dgamma: Vec<f64> = xhat.iter().zip(G).map(|(xhat, g)| xhat * g).collect();
    assert_close(&folder.read::<f64>("dgamma.npy"), &[2, 3], &dgamma, F64);
    assert_close(&folder.read::<f64>("dbeta.npy"), &[2, 3], &G, F64);
}

#[test]
fn the_number_of_normalized_dimensions_changes_statistics_but_not_shapes() {
    let folder = folder();
    folder.run("forward --x x.npy --normalized-dims 2 --y y.npy --mean mean.npy").passed();
    assert_close(&folder.read::<f64>("mean.npy"), &[], &[1.5], F64);
    assert_eq!(folder.read::<f64>("y.npy").shape(), [2, 3]);
}

#[test]
fn fortran_order_is_read_and_c_order_is_written() {
    let folder = Folder::new();
    let fortran = |values: &[f64]| {
        let columns: Vec<f64> = (0..3).flat_map(|column| [values[column], values[column + 3]]).collect();
        npy(1, "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 3), }", &f64_bytes(&columns))
    };
    folder.bytes("x.npy", &fortran(&X)).bytes("g.npy", &fortran(&G));
    folder.run("backward --x x.npy --g g.npy --dx dx.npy").passed();
    assert_close(&folder.read::<f64>("dx.npy"), &[2, 3], &DX_PLAIN, F64);
    // A gamma of two dimensions, too: all of x is one row.
    folder.bytes("gamma.npy", &fortran(&X));
    folder.run("forward --x x.npy --gamma gamma.npy --y y.npy").passed();
    folder.run("forward --x x.npy --normalized-dims 2 --y plain.npy").passed();
    let (y, plain) = (folder.read::<f64>("y.npy"), folder.read::<f64>("plain.npy"));
    let expected: Vec<f64> = plain.iter().zip(X).map(|(plain, gamma)| plain * gamma).collect();
    assert_close(&y, &[2, 3], &expected, F64);
}

#[test]
fn versions_1_2_and_3_of_the_format_are_read() {
    let folder = Folder::new();
    for version in [1, 2, 3] {
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }";
        folder.bytes("x.npy", &npy(version, header, &f64_bytes(&X)));
        folder.run("forward --x x.npy --mean mean.npy").passed();
        assert_close(&folder.read::<f64>("mean.npy"), &[2], &MEAN, F64);
    }
}

#[test]
fn epsilon_is_added_to_the_variance() {
    let folder = Folder::new();
    folder.array("x.npy", &[1, 2], &[3.0, 5.0]);
    folder.run("forward --x x.npy --epsilon 3 --rstd rstd.npy").passed();
    assert_close(&folder.read::<f64>("rstd.npy"), &[1], &[0.5], 0.0);
    folder.run("forward --x x.npy --epsilon 0 --y y.npy").passed();
    assert_close(&folder.read::<f64>("y.npy"), &[1, 2], &[-1.0, 1.0], 0.0);
}

#[test]
fn no_rows_give_empty_outputs_and_parameter_gradients_of_zero() {
    let folder = Folder::new();
    folder.zeros("x.npy", &[4, 0, 3]).zeros("g.npy", &[4, 0, 3]);
    folder.run("forward --x x.npy --y y.npy --mean mean.npy --rstd rstd.npy").passed();
    assert_eq!(folder.read::<f64>("y.npy").shape(), [4, 0, 3]);
    assert_eq!(folder.read::<f64>("mean.npy").shape(), [4, 0]);
    assert_eq!(folder.read::<f64>("rstd.npy").shape(), [4, 0]);
    folder.run("backward --x x.npy --g g.npy --dx dx.npy --dgamma dgamma.npy --dbeta dbeta.npy").passed();
    assert_eq!(folder.read::<f64>("dx.npy").shape(), [4, 0, 3]);
    assert_close(&folder.read::<f64>("dgamma.npy"), &[3], &[0.0; 3], 0.0);
    assert_close(&folder.read::<f64>("dbeta.npy"), &[3], &[0.0; 3], 0.0);
}

#[test]
fn json_lists_the_files_that_were_written() {
    let folder = folder();
    let report = folder.run("forward --json --x x.npy --y y.npy --mean mean.npy").json(0);
    assert_eq!(report["command"], "forward");
    assert_eq!(report["backend"], "portable");
    let expected = serde_json::json!([
        { "name": "y", "path": "y.npy", "dtype": "f64", "shape": [2, 3] },
        { "name": "mean", "path": "mean.npy", "dtype": "f64", "shape": [2] },
    ]);
    assert_eq!(report["outputs"], expected);
    let report = folder.run("--json backward --x x.npy --g g.npy --dx dx.npy").json(0);
    assert_eq!(report["command"], "backward");
    assert_eq!(report["outputs"][0]["name"], "dx");
}

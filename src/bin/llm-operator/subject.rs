//! What is checked: the arguments that name a LayerNorm and its inputs, drawn or in files.

use crate::case::{Case, Generated, Inputs};
use crate::layer::{LayerArguments, LayerFiles};
use crate::npy::{ElementType, FileElement, Input};
use crate::progress::Progress;
use clap::ValueEnum;
use std::fmt;
use std::path::{Path, PathBuf};

/// The arguments that `check` and `sweep` share.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SubjectArguments {
    /// Shape of x and g.
    #[arg(long, value_name = "N,...", default_value = "2,4,6", value_parser = parse_shape)]
    shape: Shape,

    /// Seed of x, g, gamma and beta, which are drawn in this order as NumPy's `default_rng` draws them.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    seed: u64,

    /// Type in which gradients and differences are computed.
    #[arg(long, value_enum, default_value_t = Dtype::F64)]
    dtype: Dtype,

    /// Check gamma and beta, too.
    #[arg(long)]
    affine: bool,

    /// Distribution of the values.
    #[arg(long, value_enum, default_value_t = Inputs::Uniform)]
    inputs: Inputs,

    /// File of x, instead of random values.
    #[arg(long, value_name = "FILE", requires = "g", conflicts_with_all = GENERATED)]
    x: Option<PathBuf>,

    /// File of the upstream gradient, of the shape and type of x.
    #[arg(long, value_name = "FILE", requires = "x")]
    g: Option<PathBuf>,

    #[command(flatten)]
    layer: LayerArguments,
}

/// The arguments that make random values.
const GENERATED: [&str; 5] = ["shape", "seed", "dtype", "affine", "inputs"];

/// The element types that can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    F64,
}

/// A shape. (A type of its own, as `clap` takes a `Vec` for an argument that is given many times.)
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape(Vec<usize>);

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<String> = self.0.iter().map(usize::to_string).collect();
        formatter.write_str(&lengths.join(","))
    }
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    let lengths: Result<Vec<usize>, _> = text.split(',').map(|length| length.trim().parse()).collect();
    Ok(Shape(lengths.map_err(|_| "expected lengths with commas between them, such as 2,4,6".to_owned())?))
}

/// The files of a subject, opened and of fitting types and shapes.
pub(crate) struct Files {
    pub(crate) x: Input,
    g: Input,
    pub(crate) layer: LayerFiles,
}

/// A LayerNorm and its inputs, before any of them is drawn or read.
pub(crate) struct Subject<'a> {
    arguments: &'a SubjectArguments,
    pub(crate) files: Option<Files>,
}

impl<'a> Subject<'a> {
    /// Opens the files, if there are any.
    pub(crate) fn open(arguments: &'a SubjectArguments) -> anyhow::Result<Self> {
        let (Some(x), Some(g)) = (&arguments.x, &arguments.g) else { return Ok(Self { arguments, files: None }) };
        let (x, g) = (Input::open("--x", x)?, Input::open("--g", g)?);
        g.expect_type_of(&x)?;
        g.expect_shape_of(&x)?;
        let layer = LayerFiles::open(&arguments.layer, &x)?;
        Ok(Self { arguments, files: Some(Files { x, g, layer }) })
    }

    /// Where the inputs come from.
    pub(crate) fn source(&self) -> &'static str {
        if self.files.is_some() { "files" } else { "generated" }
    }

    /// The type of the inputs.
    pub(crate) fn element(&self) -> ElementType {
        match (&self.files, self.arguments.dtype) {
            (Some(files), _) => files.x.element,
            (None, Dtype::F32) => ElementType::F32,
            (None, Dtype::F64) => ElementType::F64,
        }
    }

    /// Whether this is the case without arguments, which is the notebook's own.
    pub(crate) fn is_notebook(&self) -> bool {
        let SubjectArguments { shape, seed, dtype, affine, inputs, layer, .. } = self.arguments;
        self.files.is_none()
            && shape.0 == [2, 4, 6]
            && *seed == 1000
            && *dtype == Dtype::F64
            && *inputs == Inputs::Uniform
            && !affine
            && layer.norm.epsilon == 1e-5
            && layer.norm.normalized_dims.unwrap_or(1) == 1
    }

    /// Draws or reads the inputs, which must be of type `T`.
    pub(crate) fn case<T: FileElement>(&self) -> anyhow::Result<Case<T>> {
        let Some(Files { x, g, layer }) = &self.files else { return self.generated().draw() };
        let progress = Progress::bytes("Reading", x.size + g.size + layer.size());
        Case::read(x, g, layer, &progress)
    }

    fn generated(&self) -> Generated<'a> {
        let SubjectArguments { shape, seed, affine, inputs, layer, .. } = self.arguments;
        Generated {
            shape: &shape.0,
            seed: *seed,
            inputs: *inputs,
            affine: *affine,
            normalized_dims: layer.norm.normalized_dims.unwrap_or(1),
            epsilon: layer.norm.epsilon,
        }
    }

    /// The arguments that name this subject again.
    pub(crate) fn repeat(&self) -> String {
        let SubjectArguments { shape, seed, dtype, inputs, affine, x, g, layer } = self.arguments;
        let epsilon = layer.norm.epsilon;
        if let (Some(x), Some(g)) = (x, g) {
            let mut line = format!("--x {} --g {}", quoted(x), quoted(g));
            for (flag, path) in [("gamma", &layer.gamma), ("beta", &layer.beta)] {
                line.extend(path.iter().map(|path| format!(" --{flag} {}", quoted(path))));
            }
            line.extend(layer.norm.normalized_dims.map(|dims| format!(" --normalized-dims {dims}")));
            return format!("{line} --epsilon {epsilon:e}");
        }
        let name = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
        format!(
            "--shape {shape} --seed {seed} --dtype {} --inputs {}{} --normalized-dims {} --epsilon {epsilon:e}",
            name(dtype),
            name(inputs),
            if *affine { " --affine" } else { "" },
            self.generated().normalized_dims,
        )
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

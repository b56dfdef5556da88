//! Input files: NumPy's `.npy`, opened and judged by the header before any of the data is read.
//!
//! `ndarray-npy` knows the format. It trusts a header, though: it allocates what the header claims, and takes
//! big-endian data. So the header is looked at first here, against the size of the file, and nothing larger than the
//! file is ever allocated.

use crate::progress::Progress;
use anyhow::{Context, anyhow, bail, ensure};
use llm_operator::Element;
use ndarray::ArrayD;
use ndarray_npy::npy::header::{Header, ParseHeaderError, ReadHeaderError};
use ndarray_npy::{ReadNpyExt, ReadableElement, WritableElement};
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// NumPy's own limit for the headers of files that it does not trust.
const MAX_HEADER: u64 = 10_000;

/// An element type that files hold.
pub(crate) trait FileElement: Element + ReadableElement + WritableElement {}

impl FileElement for f32 {}
impl FileElement for f64 {}

/// A file and the flag that names it: `--x (x.npy)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) flag: &'static str,
    pub(crate) path: PathBuf,
}

impl Source {
    pub(crate) fn new(flag: &'static str, path: &Path) -> Self {
        Self { flag, path: path.to_owned() }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.flag, self.path.display())
    }
}

/// The type of a file's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ElementType {
    F32,
    F64,
}

impl ElementType {
    /// The type of a header's `descr`, as Python prints it.
    fn from_descriptor(descriptor: &str) -> anyhow::Result<Self> {
        match descriptor {
            "'<f4'" => Ok(Self::F32),
            "'<f8'" => Ok(Self::F64),
            "'>f4'" | "'>f8'" => {
                bail!("expected little-endian f32 or f64 ('<f4' or '<f8'), found big-endian {descriptor}")
            }
            _ => bail!("expected elements of f32 or f64 ('<f4' or '<f8'), found {descriptor}"),
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => f32::NAME,
            Self::F64 => f64::NAME,
        })
    }
}

/// An open input file whose header fits the file.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) source: Source,
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file.
    pub(crate) size: u64,
    file: File,
}

impl Input {
    /// Opens a file and checks its header.
    pub(crate) fn open(flag: &'static str, path: &Path) -> anyhow::Result<Self> {
        let source = Source::new(flag, path);
        let opened = Self::open_file(path).with_context(|| source.to_string())?;
        let (file, size, element, shape) = opened;
        Ok(Self { source, element, shape, size, file })
    }

    /// Opens the file of an argument that may be missing.
    pub(crate) fn open_optional(flag: &'static str, path: Option<&Path>) -> anyhow::Result<Option<Self>> {
        path.map(|path| Self::open(flag, path)).transpose()
    }

    fn open_file(path: &Path) -> anyhow::Result<(File, u64, ElementType, Vec<usize>)> {
        // Before it is opened: to open a pipe waits for its other end.
        let metadata = std::fs::metadata(path).context("cannot open the file")?;
        ensure!(!metadata.is_dir(), "expected a .npy file, found a directory");
        ensure!(metadata.is_file(), "expected a regular file (its size must be known), found a pipe or a device");
        let file = File::open(path).context("cannot open the file")?;
        let size = file.metadata().context("cannot read the file's size")?.len();
        let (element, shape) = read_header(&mut BufReader::new(&file), size)?;
        Ok((file, size, element, shape))
    }

    /// The type has to be that of another input.
    pub(crate) fn expect_type_of(&self, other: &Input) -> anyhow::Result<()> {
        let (expected, found) = (other.element, self.element);
        ensure!(found == expected, "{}: expected {expected}, the type of {}, found {found}", self.source, other.source);
        Ok(())
    }

    /// The shape has to be that of another input.
    pub(crate) fn expect_shape_of(&self, other: &Input) -> anyhow::Result<()> {
        let (expected, found) = (&other.shape, &self.shape);
        ensure!(
            found == expected,
            "{}: expected shape {expected:?}, that of {}, found {found:?}",
            self.source,
            other.source
        );
        Ok(())
    }

    /// Reads the elements, in the order in which the file has them.
    pub(crate) fn read<T: FileElement>(&self, progress: &Progress) -> anyhow::Result<ArrayD<T>> {
        let whole = |mut file: &File| -> anyhow::Result<ArrayD<T>> {
            file.seek(SeekFrom::Start(0))?;
            ArrayD::read_npy(progress.counting(BufReader::new(file))).map_err(|error| anyhow!("{error}"))
        };
        let array = whole(&self.file).with_context(|| format!("{}: cannot read the data", self.source))?;
        // Another process may have rewritten the file since its header was judged.
        ensure!(array.shape() == self.shape, "{}: the file changed while it was read", self.source);
        Ok(array)
    }
}

/// The type and shape that a header gives, for a file of `size` bytes.
fn read_header(reader: &mut impl Read, size: u64) -> anyhow::Result<(ElementType, Vec<usize>)> {
    let header = header_bytes(reader, size)?;
    let length = header.len() as u64;
    // The dictionary and the tuple of the shape. More would be a structured type, or nesting without end on
    // which a parser can spend all of its time and stack.
    let brackets = header.iter().filter(|byte| b"([{".contains(byte)).count();
    ensure!(brackets <= 2, "expected elements of f32 or f64, found a header with nested values");
    let header = Header::from_reader(&mut &header[..])
        .map_err(|error| anyhow!("expected a .npy header: {}", what_is_wrong(&error)))?;
    let element = ElementType::from_descriptor(&header.type_descriptor.to_string())?;
    let shape = header.shape;
    let Some(data) = data_size(&shape, element) else {
        bail!("expected an array that fits in memory, found a header that claims shape {shape:?}");
    };
    let found = size - length;
    ensure!(
        found == data,
        "expected {data} bytes of data after the header, for {element} and shape {shape:?}, found {found}: {}",
        if found < data { "the file is truncated" } else { "bytes trail after the data" }
    );
    Ok((element, shape))
}

/// The header from the magic string to the newline, as it stands in the file.
fn header_bytes(reader: &mut impl Read, size: u64) -> anyhow::Result<Vec<u8>> {
    const MAGIC: &[u8] = b"\x93NUMPY";
    let mut header = Vec::new();
    reader.by_ref().take(8).read_to_end(&mut header).context("cannot read the header")?;
    ensure!(
        header.len() == 8 && header.starts_with(MAGIC),
        "expected a .npy file, which starts with the bytes \\x93NUMPY and a version, found something else"
    );
    let version = (header[6], header[7]);
    let length_bytes = match version {
        (1, 0) => 2,
        (2 | 3, 0) => 4,
        (major, minor) => bail!("expected version 1.0, 2.0 or 3.0 of the .npy format, found {major}.{minor}"),
    };
    reader.by_ref().take(length_bytes).read_to_end(&mut header).context("cannot read the header")?;
    ensure!(
        header.len() as u64 == 8 + length_bytes,
        "expected the length of the header, found none: the file is truncated"
    );
    let claimed = header[8..].iter().rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
    let present = size.saturating_sub(8 + length_bytes);
    ensure!(claimed <= present, "expected a header of {claimed} bytes, found {present}: the file is truncated");
    ensure!(claimed <= MAX_HEADER, "expected a header of at most {MAX_HEADER} bytes, found one of {claimed}");
    reader.take(claimed).read_to_end(&mut header).context("cannot read the header")?;
    Ok(header)
}

/// The library's words, but for the many lines in which its parser draws the place of a syntax error.
fn what_is_wrong(error: &ReadHeaderError) -> String {
    match error {
        ReadHeaderError::Parse(ParseHeaderError::DictParse(_)) => "it is no Python dictionary".to_owned(),
        ReadHeaderError::Parse(error) => error.to_string(),
        ReadHeaderError::Io(error) => error.to_string(),
    }
}

/// The bytes that an array has, or `None` where its non-empty dimensions alone are more than memory can hold.
fn data_size(shape: &[usize], element: ElementType) -> Option<u64> {
    let lengths = shape.iter().filter(|&&length| length > 0);
    let claimed = lengths.map(|&length| length as u64).try_fold(element.size(), u64::checked_mul)?;
    isize::try_from(claimed).ok()?;
    Some(if shape.contains(&0) { 0 } else { claimed })
}

//! Output files: each complete, or what was there before.
//!
//! Each is written beside its place under a temporary name, and moved there when all of them are complete. So a
//! run that fails leaves what was there before, and an output may take the place of an input. Should one of several
//! moves fail, those before it are undone; what they replaced has a second name until then (where the file system
//! has such).

use crate::npy::{FileElement, Source};
use crate::progress::Progress;
use anyhow::{Context, bail, ensure};
use ndarray::{Array, Dimension};
use ndarray_npy::WriteNpyExt;
use serde::Serialize;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The output files that were asked for.
#[derive(Debug)]
pub(crate) struct Outputs {
    files: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    source: Source,
    /// Where the file goes: an absolute path without symbolic links.
    target: PathBuf,
    /// The complete file under its temporary name, and what is said of it: nothing of a picture.
    written: Option<(NamedTempFile, Option<Written>)>,
}

/// A file that was written.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    /// What the file holds: the flag without its dashes.
    name: &'static str,
    path: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

impl fmt::Display for Written {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} {:?} -> {}", self.name, self.dtype, self.shape, self.path)
    }
}

/// What a run wrote.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) command: &'static str,
    pub(crate) backend: &'static str,
    pub(crate) outputs: Vec<Written>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outputs.iter().try_for_each(|written| writeln!(formatter, "{written}"))
    }
}

impl Outputs {
    /// Checks that a file can be written for each flag that was given. Nothing is written yet.
    pub(crate) fn plan<'a>(flags: impl IntoIterator<Item = (&'static str, Option<&'a Path>)>) -> anyhow::Result<Self> {
        let mut files: Vec<Output> = Vec::new();
        for (flag, path) in flags {
            let Some(path) = path else { continue };
            let source = Source::new(flag, path);
            let target = target(path).with_context(|| source.to_string())?;
            if let Some(same) = files.iter().find(|output| output.target == target) {
                bail!("{source}: expected a file of its own, found the file of {}", same.source);
            }
            // Found now, and not when hours of work are to be written.
            drop(temporary_beside(&target).with_context(|| source.to_string())?);
            files.push(Output { source, target, written: None });
        }
        Ok(Self { files })
    }

    /// Writes an array under a temporary name, where its flag was given.
    pub(crate) fn write<T: FileElement, D: Dimension>(
        &mut self,
        flag: &'static str,
        array: &Array<T, D>,
    ) -> anyhow::Result<()> {
        let Some(output) = self.files.iter_mut().find(|output| output.source.flag == flag) else { return Ok(()) };
        let size = (array.len() * size_of::<T>()) as u64;
        let temporary = write_beside(&output.target, size, |writer| Ok(array.write_npy(writer)?));
        let temporary = temporary.with_context(|| output.source.to_string())?;
        let written = Written {
            name: flag.trim_start_matches('-'),
            path: output.source.path.display().to_string(),
            dtype: T::NAME,
            shape: array.shape().to_vec(),
        };
        output.written = Some((temporary, Some(written)));
        Ok(())
    }

    /// The same for a text.
    pub(crate) fn write_text(&mut self, flag: &'static str, text: &str) -> anyhow::Result<()> {
        let Some(output) = self.files.iter_mut().find(|output| output.source.flag == flag) else { return Ok(()) };
        let temporary =
            write_beside(&output.target, text.len() as u64, |writer| Ok(writer.write_all(text.as_bytes())?));
        output.written = Some((temporary.with_context(|| output.source.to_string())?, None));
        Ok(())
    }

    /// Moves every file to its place.
    pub(crate) fn commit(self) -> anyhow::Result<Vec<Written>> {
        let (mut moved, mut said) = (Vec::new(), Vec::new());
        for Output { source, target, written } in self.files {
            let Some((temporary, written)) = written else { continue };
            let replaced = second_name(&target);
            if let Err(error) = temporary.persist(&target) {
                moved.into_iter().rev().for_each(Moved::undo);
                return Err(error).with_context(|| format!("{source}: cannot move the file to its place"));
            }
            moved.push(Moved { target, replaced });
            said.extend(written);
        }
        Ok(said)
    }
}

/// A file that is in its place.
struct Moved {
    target: PathBuf,
    /// What was there before, under a second name that goes away with this value; none where nothing was.
    replaced: Option<NamedTempFile<()>>,
}

impl Moved {
    /// Brings back what was there before. Another failure is left as it is: there is nothing more to be done.
    fn undo(self) {
        let undone = match self.replaced {
            Some(replaced) => replaced.persist(&self.target).map(drop).map_err(|error| error.error),
            None => std::fs::remove_file(&self.target),
        };
        drop(undone);
    }
}

/// A second name for a file that is about to be replaced.
fn second_name(target: &Path) -> Option<NamedTempFile<()>> {
    temporary_name().make_in(target.parent()?, |name| std::fs::hard_link(target, name)).ok()
}

/// How temporary files are called.
fn temporary_name() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".llm-operator-").suffix(".tmp");
    builder
}

/// An empty temporary file in the target's directory.
fn temporary_beside(target: &Path) -> anyhow::Result<NamedTempFile> {
    let directory = target.parent().context("expected a file in a directory")?;
    with_ordinary_permissions(&mut temporary_name())
        .tempfile_in(directory)
        .with_context(|| format!("cannot create a file in {}", directory.display()))
}

/// Where a file of this path goes, if it can.
fn target(path: &Path) -> anyhow::Result<PathBuf> {
    match std::fs::metadata(path) {
        Ok(metadata) => {
            ensure!(!metadata.is_dir(), "expected a file to write, found a directory");
            ensure!(metadata.is_file(), "expected a regular file to write, found a pipe or a device");
            // The move would take the place of a file that is write-protected.
            OpenOptions::new().write(true).open(path).context("cannot write the file")?;
            path.canonicalize().context("cannot write the file")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => new_target(path),
        Err(error) => Err(error).context("cannot write the file"),
    }
}

/// Where a file of this path goes, which does not exist yet.
fn new_target(path: &Path) -> anyhow::Result<PathBuf> {
    let ends_as_directory = path.to_string_lossy().ends_with(std::path::is_separator);
    let Some(name) = path.file_name().filter(|_| !ends_as_directory) else {
        bail!("expected the name of a file, found none");
    };
    ensure!(!path.is_symlink(), "expected a file to write, found a symbolic link to nothing");
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let missing = || format!("expected a directory that exists, found {}", directory.display());
    let directory = directory.canonicalize().with_context(missing)?;
    Ok(directory.join(name))
}

/// A temporary file in the target's directory that holds what `write` writes, some `size` bytes.
fn write_beside(
    target: &Path,
    size: u64,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<NamedTempFile> {
    let temporary = temporary_beside(target)?;
    let write = || -> anyhow::Result<()> {
        let progress = Progress::bytes("Writing", size);
        let mut writer = BufWriter::new(progress.counting(temporary.as_file()));
        write(&mut writer)?;
        writer.flush()?;
        keep_permissions(target, temporary.as_file())?;
        Ok(())
    };
    write().context("cannot write the file")?;
    Ok(temporary)
}

/// Permissions as those of any new file: temporary files are private otherwise.
fn with_ordinary_permissions<'b, 'p, 's>(
    builder: &'b mut tempfile::Builder<'p, 's>,
) -> &'b mut tempfile::Builder<'p, 's> {
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// A file that takes the place of another has its permissions.
fn keep_permissions(target: &Path, file: &File) -> std::io::Result<()> {
    match std::fs::metadata(target) {
        Ok(metadata) => file.set_permissions(metadata.permissions()),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Two outputs that are complete, of which the second cannot be moved: a folder has taken its place.
    fn refused(folder: &Path, first: &str) -> String {
        let paths = [folder.join(first), folder.join("second.npy")];
        let mut outputs = Outputs::plan([("--y", Some(&*paths[0])), ("--mean", Some(&*paths[1]))]).unwrap();
        outputs.write("--y", &array![1.0_f64]).unwrap();
        outputs.write("--mean", &array![2.0_f64]).unwrap();
        std::fs::create_dir_all(paths[1].join("not empty")).unwrap();
        outputs.commit().unwrap_err().to_string()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn where_one_move_fails_those_before_it_are_undone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("old.npy"), b"before").unwrap();
        let message = refused(folder.path(), "old.npy");
        assert!(message.starts_with("--mean (") && message.ends_with("cannot move the file to its place"), "{message}");
        assert_eq!(std::fs::read(folder.path().join("old.npy")).unwrap(), b"before");
        assert_eq!(names(folder.path()), ["old.npy", "second.npy"]);
        std::fs::remove_dir_all(folder.path().join("second.npy")).unwrap();
        refused(folder.path(), "new.npy");
        assert_eq!(names(folder.path()), ["old.npy", "second.npy"]);
    }
}

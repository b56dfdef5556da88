//! `info`: what the program is and what it runs on.

use crate::layer::explain;
use llm_operator::Backend;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// Print the version, the instruction sets of this CPU and which is used, the threads and the caches
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

/// What the program is and what it runs on.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    /// The backends that the CPU can run, the slowest first.
    backends: Vec<&'static str>,
    backend: &'static str,
    threads: Threads,
    /// `None` where the system does not tell.
    caches: Option<Vec<Cache>>,
}

#[derive(Debug, Serialize)]
struct Threads {
    /// What the system offers to this process.
    available: Option<usize>,
    /// What the kernels use.
    used: usize,
}

/// One cache of the first CPU.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cache {
    level: u32,
    /// `Data`, `Instruction` or `Unified`.
    kind: String,
    bytes: u64,
}

pub(crate) fn run(_: &Arguments) -> anyhow::Result<Report> {
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        backends: Backend::available().iter().map(Backend::name).collect(),
        backend: Backend::chosen().map_err(explain)?.name(),
        threads: Threads {
            available: std::thread::available_parallelism().ok().map(usize::from),
            used: rayon::current_num_threads(),
        },
        caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
    })
}

/// The caches in a folder of Linux's sysfs: one folder `index<n>` for each.
fn caches(folder: &Path) -> Option<Vec<Cache>> {
    let caches: Vec<Cache> = (0..).map_while(|index| cache(&folder.join(format!("index{index}")))).collect();
    if caches.is_empty() { None } else { Some(caches) }
}

fn cache(folder: &Path) -> Option<Cache> {
    let read = |name| Some(std::fs::read_to_string(folder.join(name)).ok()?.trim().to_owned());
    Some(Cache { level: read("level")?.parse().ok()?, kind: read("type")?, bytes: bytes(&read("size")?)? })
}

/// A size as sysfs writes it: `48K`, `32M`, or bytes.
fn bytes(text: &str) -> Option<u64> {
    let unit = |suffix, unit| text.strip_suffix(suffix).map(|number| (number, unit));
    let (number, unit) = unit('K', 1 << 10).or_else(|| unit('M', 1 << 20)).unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "llm-operator {}", self.version)?;
        writeln!(formatter, "backends: {} (used: {})", self.backends.join(", "), self.backend)?;
        let available = self.threads.available.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        writeln!(formatter, "threads: {available} available, {} used", self.threads.used)?;
        let Some(caches) = &self.caches else { return writeln!(formatter, "caches: unknown") };
        let caches: Vec<String> = caches.iter().map(Cache::to_string).collect();
        writeln!(formatter, "caches: {}", caches.join(", "))
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cache { level, kind, bytes } = self;
        write!(formatter, "L{level} {} {} KiB", kind.to_lowercase(), bytes / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_read_as_linux_lists_them() {
        let folder = tempfile::tempdir().unwrap();
        for (index, level, kind, size) in [(0, "1", "Data", "48K"), (1, "2", "Unified", "2M")] {
            let cache = folder.path().join(format!("index{index}"));
            std::fs::create_dir(&cache).unwrap();
            for (name, text) in [("level", level), ("type", kind), ("size", size)] {
                std::fs::write(cache.join(name), format!("{text}\n")).unwrap();
            }
        }
        let found = caches(folder.path()).unwrap();
        assert_eq!(found.iter().map(Cache::to_string).collect::<Vec<_>>(), ["L1 data 48 KiB", "L2 unified 2048 KiB"]);
        assert_eq!(found[0], Cache { level: 1, kind: "Data".to_owned(), bytes: 49152 });
    }

    #[test]
    fn caches_are_unknown_where_the_system_does_not_list_them() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(caches(folder.path()), None);
        assert_eq!(caches(&folder.path().join("missing")), None);
    }

    #[test]
    fn sizes_that_make_no_sense_are_unknown() {
        assert_eq!(bytes("512"), Some(512));
        for text in ["", "K", "-1K", "99999999999999999999K", "18446744073709551615M", "3G4"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}

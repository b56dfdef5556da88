//! The size of the last-level cache, read from the machine.

use std::fs;
use std::sync::OnceLock;

/// What is assumed where the machine does not say: a common size for a desktop CPU.
const ASSUMED: usize = 16 << 20;

/// Bytes of the last-level cache that this CPU's first core sees.
pub(crate) fn last_level() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| from_linux().unwrap_or(ASSUMED))
}

/// The largest cache that Linux lists. (The number of its index differs between CPUs.)
fn from_linux() -> Option<usize> {
    let folder = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    folder.filter_map(|entry| parse(fs::read_to_string(entry.ok()?.path().join("size")).ok()?.trim())).max()
}

/// `32768K` as bytes.
fn parse(size: &str) -> Option<usize> {
    let kibibytes: usize = size.strip_suffix('K')?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::{last_level, parse};

    #[test]
    fn a_size_is_read_as_linux_writes_it() {
        assert_eq!(parse("32768K"), Some(32 << 20));
        assert_eq!(parse("48K"), Some(48 << 10));
        assert_eq!(parse("unknown"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_last_level_is_larger_than_a_first_level() {
        assert!(last_level() >= 128 << 10);
    }
}

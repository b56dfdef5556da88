//! The sizes of caches, read from the machine.

use crate::simd;
use std::fs;
use std::sync::OnceLock;

/// What is assumed where the machine does not say: a common size for a desktop CPU.
const ASSUMED: usize = 16 << 20;

/// Bytes of the last-level cache that this CPU's first core sees.
pub(crate) fn last_level() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| from_linux().unwrap_or(ASSUMED))
}

/// Bytes of a thread that are too many for a cache that cores share: those of all pages whose addresses a core has at hand.
///
/// At least 8 MiB: Xeons say 2048 pages, but in another way, and a virtual machine may say less than its CPU has. On an EPYC
/// (Zen 4) with 32 MiB and 3072 pages, that is 12 MiB, ordinary stores are faster than streaming ones (by this factor) on one
/// thread for forward of 256 columns, 8 MiB (1.03, plain 1.16), not with 12 MiB (0.8 to 1); for backward of 768 columns,
/// 8 MiB (1.04, plain 1.3), not of 256, 12 MiB (0.8, plain 0.75), 15 MiB (0.6, 0.55) or 24 MiB (0.4); on two threads for
/// backward of 4096x256, 12 MiB (1.2, plain 1.6). On one thread of a Xeon with 260 MiB streaming stores are faster from 6
/// MiB on, at 48 MiB by a factor of two.
pub(crate) fn of_thread() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| simd::addressed_pages().unwrap_or(0).max(2048) * (4 << 10))
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
    use super::{last_level, of_thread, parse};

    #[test]
    fn a_size_is_read_as_linux_writes_it() {
        assert_eq!(parse("32768K"), Some(32 << 20));
        assert_eq!(parse("48K"), Some(48 << 10));
        assert_eq!(parse("unknown"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_thread_has_eight_mebibytes_whatever_a_machine_says() {
        assert!(of_thread() >= 8 << 20);
        assert!(of_thread() <= 4095 * (4 << 10));
    }

    #[test]
    fn the_last_level_is_larger_than_a_first_level() {
        assert!(last_level() >= 128 << 10);
    }
}

//! Who holds a database's lock.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that holds RocksDB's lock on the database at `path`, as `process 123 (program)`; None if it cannot be
/// found out, for example because it runs in another container.
///
/// Reads `/proc/locks` and does not open the lock file: closing it again would release the locks that this process
/// itself holds on it.
pub(crate) fn lock_holder(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path.join("LOCK")).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find(&locks, metadata.dev(), metadata.ino())?;
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match program.trim() {
        "" => format!("process {pid}"),
        program => format!("process {pid} ({program})"),
    })
}

/// The process of the POSIX lock on a file, from the text of `/proc/locks`:
/// `1: POSIX  ADVISORY  WRITE 10909 fe:00:9977909 0 EOF`. Some file systems show another device there than `stat`
/// does; then the inode alone decides.
fn find(locks: &str, device: u64, inode: u64) -> Option<i32> {
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff);
    let minor = (device & 0xff) | ((device >> 12) & !0xff);
    let exact = format!("{major:02x}:{minor:02x}:{inode}");
    let any_device = format!(":{inode}");
    let holder = |is_file: &dyn Fn(&str) -> bool| {
        locks.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let is_posix = words.next()? == "POSIX";
            let pid = words.nth(2)?.parse::<i32>().ok()?;
            (is_posix && pid > 0 && is_file(words.next()?)).then_some(pid)
        })
    };
    holder(&|file| file == exact).or_else(|| holder(&|file| file.ends_with(&any_device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "1: FLOCK  ADVISORY  WRITE 7 fe:00:42 0 EOF\n\
                         1: -> POSIX  ADVISORY  WRITE 8 fe:00:42 0 EOF\n\
                         2: POSIX  ADVISORY  WRITE 9 fd:01:42 0 EOF\n\
                         3: POSIX  ADVISORY  WRITE 10 fe:00:42 0 EOF\n\
                         4: POSIX  ADVISORY  WRITE -1 fe:00:43 0 EOF\n";

    #[test]
    fn the_holder_is_the_process_of_the_posix_lock_on_the_inode() {
        assert_eq!(find(LOCKS, 0xfe00, 42), Some(10));
        assert_eq!(find(LOCKS, 0x1234, 42), Some(9), "device shown differently");
        assert_eq!(find(LOCKS, 0xfe00, 43), None, "a process of another container");
        assert_eq!(find(LOCKS, 0xfe00, 2), None);
        assert_eq!(find("", 0, 0), None);
    }
}

//! This process's mappings, from /proc/thread-self/maps and smaps. Those of /proc/self are empty
//! once the first thread has ended.

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::ops::ControlFlow::{Break, Continue};
use std::{fs, io};

use crate::error::{Error, Result};
use crate::os::span::Span;
use crate::status::WB_ERR_INTERNAL;

/// One mapping of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: usize,
    /// One past the last address.
    pub end: usize,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// Whether writes reach the file and other processes.
    pub shared: bool,
    /// Whether it is a mapping of a file: it has an inode, other than that of a device or file
    /// system whose private mappings are anonymous memory.
    pub file_backed: bool,
    /// The file's path, or the kernel's name of the mapping; can be empty.
    pub name: String,
}

/// Parses a line of /proc/self/maps: `start-end rwxp offset device inode   name`.
fn region(line: &str) -> Option<Region> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let flags = fields.next()?.as_bytes();
    let inode = fields.nth(2)?;
    let name = fields.next().unwrap_or("").trim_start();
    let private = flags.get(3) == Some(&b'p');
    Some(Region {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        readable: flags.first() == Some(&b'r'),
        writable: flags.get(1) == Some(&b'w'),
        shared: flags.get(3) == Some(&b's'),
        file_backed: inode != "0" && !(private && is_anonymous_if_private(name)),
        name: name.to_owned(),
    })
}

/// Whether private mappings of this name are anonymous memory: those of MAP_HUGETLB and of
/// /dev/zero.
fn is_anonymous_if_private(name: &str) -> bool {
    matches!(name, "/anon_hugepage" | "/anon_hugepage (deleted)" | "/dev/zero")
}

/// Calls `each` with every line of a file of /proc until it breaks.
fn each_line(path: &str, mut each: impl FnMut(&str) -> ControlFlow<()>) -> Result<()> {
    let failed = |call, error: io::Error| {
        let message = format!("{path} cannot be read: is /proc mounted?");
        Error::system(WB_ERR_INTERNAL, message, call, &error)
    };
    let file = fs::File::open(path).map_err(|error| failed("open", error))?;
    for line in BufReader::with_capacity(1 << 16, file).split(b'\n') {
        let line = line.map_err(|error| failed("read", error))?;
        if each(&String::from_utf8_lossy(&line)).is_break() {
            break;
        }
    }
    Ok(())
}

/// The regions that overlap the span, in order.
pub fn regions(span: Span) -> Result<Vec<Region>> {
    let mut overlapping = Vec::new();
    each_line("/proc/thread-self/maps", |line| {
        let Some(region) = region(line) else { return Continue(()) };
        if region.start >= span.end() {
            return Break(());
        }
        if region.end > span.start() {
            overlapping.push(region);
        }
        Continue(())
    })?;
    Ok(overlapping)
}

/// The counts of smaps for the regions that overlap a span, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RegionCounts {
    /// Transparent huge pages, private or of a file.
    pub huge: u64,
    /// Private anonymous pages, which a silent copy increases.
    pub anonymous: u64,
    /// Pages locked by mlock.
    pub locked: u64,
    /// Bytes of the span itself that are mapped in huge pages of hugetlb.
    pub hugetlb: u64,
}

/// Counts the regions that overlap the span.
pub fn count(span: Span) -> Result<RegionCounts> {
    let mut counts = RegionCounts::default();
    let (mut inside, mut overlap) = (false, 0);
    each_line("/proc/thread-self/smaps", |line| {
        if let Some(region) = region(line) {
            if region.start >= span.end() {
                return Break(());
            }
            inside = region.end > span.start();
            overlap = region.end.min(span.end()).saturating_sub(region.start.max(span.start()));
        } else if inside {
            let Some((key, value)) = line.split_once(':') else { return Continue(()) };
            let kib: u64 = value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            match key {
                "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => counts.huge += kib << 10,
                "Anonymous" => counts.anonymous += kib << 10,
                "Locked" => counts.locked += kib << 10,
                "VmFlags" if value.split(' ').any(|flag| flag == "ht") => {
                    counts.hugetlb += overlap as u64;
                }
                _ => {}
            }
        }
        Continue(())
    })?;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_parsed_from_the_kernels_format() {
        let line = "7f1c2a000000-7f1c2a200000 rw-s 00001000 00:01 42       /memfd:a b (deleted)";
        let expected = Region {
            start: 0x7f1c2a000000,
            end: 0x7f1c2a200000,
            readable: true,
            writable: true,
            shared: true,
            file_backed: true,
            name: "/memfd:a b (deleted)".into(),
        };
        assert_eq!(region(line), Some(expected));
        let anonymous = region("00400000-00401000 r--p 00000000 00:00 0 ").unwrap();
        assert!(!anonymous.file_backed && !anonymous.writable && anonymous.name.is_empty());
        for name in ["/anon_hugepage (deleted)", "/dev/zero"] {
            let line = |flags| format!("00400000-00600000 {flags} 00000000 00:0f 42 {name}");
            assert!(!region(&line("rw-p")).unwrap().file_backed, "private: {name}");
            assert!(region(&line("rw-s")).unwrap().file_backed, "shared: {name}");
        }
        assert!(region("00400000-00401000 rw-p 00000000 08:01 42 /dev/zeros").unwrap().file_backed);
        assert_eq!(region("AnonHugePages:      2048 kB"), None);
        assert_eq!(region("VmFlags: rd wr mr mw me ac sd"), None);
    }
}

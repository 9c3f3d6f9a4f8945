//! Mappings of memory and files, and what is asked of the kernel about them.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::{io, ptr};

use crate::error::{Error, Result, human};
use crate::os::page::{huge_page_bytes, page_bytes};
use crate::os::span::{Span, errno, round_up};
use crate::os::{log, memlock};
use crate::status::{
    WB_ERR_FILE_IO, WB_ERR_HUGE_PAGES, WB_ERR_INTERNAL, WB_ERR_INVALID_ARGUMENT, WB_ERR_MEMLOCK,
    WB_ERR_OUT_OF_MEMORY,
};

/// Whether memory should lie in huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// Small pages only.
    Off,
    /// Huge pages where the kernel gives them.
    Try,
    /// Huge pages for every whole huge page of the range, or an error.
    Require,
}

/// A mapping of whole pages that is ours: unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    span: Span,
    /// What is unmapped: the span, and the guard page behind anonymous memory.
    whole: Span,
}

impl Mapping {
    /// Private anonymous memory of `bytes` bytes rounded up to pages, not yet present.
    ///
    /// It begins on a huge page where it is as large as one, and a guard page lies behind it: an
    /// overrun faults, and the kernel cannot merge it with a neighbour, so that what the kernel
    /// counts for it is its own.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        let page = page_bytes();
        if bytes > isize::MAX as usize - 2 * huge_page_bytes() {
            return Err(no_memory(bytes, "mmap", &io::Error::from_raw_os_error(libc::ENOMEM)));
        }
        let used = round_up(bytes, page);
        let alignment = if used >= huge_page_bytes() { huge_page_bytes() } else { page };
        let reserved = used + page + (alignment - page);
        let start = map(reserved, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
            .map_err(|answer| no_memory(bytes, "mmap", &answer))?;
        let begin = round_up(start, alignment);
        let whole = Span { start: begin, bytes: used + page };
        unmap(Span { start, bytes: begin - start });
        unmap(Span { start: whole.end(), bytes: start + reserved - whole.end() });
        let mapping = Self { span: Span { start: begin, bytes: used }, whole };
        // SAFETY: the range is part of the reservation made above, which nobody else knows of.
        let answer =
            unsafe { libc::mprotect(begin as *mut _, used, libc::PROT_READ | libc::PROT_WRITE) };
        if answer != 0 {
            return Err(no_memory(bytes, "mprotect", &errno()));
        }
        Ok(mapping)
    }

    /// `bytes` bytes of a file from `offset`, a multiple of the page, read-only and shared.
    pub fn file(file: &File, offset: u64, bytes: usize) -> Result<Self> {
        let start = map(bytes, libc::PROT_READ, libc::MAP_SHARED, Some((file, offset))).map_err(
            |answer| match answer.raw_os_error() {
                Some(libc::ENOMEM) => {
                    no_room(&format!("to map {} of a file", human(bytes as u64)), "mmap", &answer)
                }
                _ => {
                    let message = format!("mapping {} of the file failed", human(bytes as u64));
                    Error::system(WB_ERR_FILE_IO, message, "mmap", &answer)
                }
            },
        )?;
        let span = Span { start, bytes: round_up(bytes, page_bytes()) };
        Ok(Self { span, whole: span })
    }

    /// The mapped bytes.
    pub fn span(&self) -> Span {
        self.span
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.whole);
    }
}

fn map(
    bytes: usize,
    protection: i32,
    flags: i32,
    file: Option<(&File, u64)>,
) -> Result<usize, io::Error> {
    let (descriptor, offset) = file.map_or((-1, 0), |(file, at)| (file.as_raw_fd(), at as i64));
    // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing uses.
    let start =
        unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, descriptor, offset) };
    if start == libc::MAP_FAILED { Err(errno()) } else { Ok(start as usize) }
}

fn unmap(span: Span) {
    if span.bytes == 0 {
        return;
    }
    // SAFETY: only ranges that this module mapped come here, once, when nobody uses them any more.
    if unsafe { libc::munmap(span.start as *mut _, span.bytes) } != 0 {
        let message = format!("{} could not be given back", human(span.bytes as u64));
        log::record(&Error::system(WB_ERR_INTERNAL, message, "munmap", &errno()));
    }
}

fn no_memory(bytes: usize, call: &str, answer: &io::Error) -> Error {
    no_room(&format!("{} of host memory", human(bytes as u64)), call, answer)
}

fn no_room(asked: &str, call: &str, answer: &io::Error) -> Error {
    let message = format!(
        "asked {asked}; the kernel refused the mapping: ask for less, or raise RLIMIT_AS, \
         vm.max_map_count or vm.overcommit_memory"
    );
    Error::system(WB_ERR_OUT_OF_MEMORY, message, call, answer)
}

/// Tells the kernel whether to use huge pages. Only `Require` can fail.
pub fn advise_huge_pages(span: Span, huge_pages: HugePages) -> Result<()> {
    let advice = match huge_pages {
        HugePages::Off => libc::MADV_NOHUGEPAGE,
        HugePages::Try | HugePages::Require => libc::MADV_HUGEPAGE,
    };
    // SAFETY: the advice changes how the pages are backed, never what they hold.
    let answer = unsafe { libc::madvise(span.start as *mut _, span.bytes, advice) };
    if answer != 0 && huge_pages == HugePages::Require {
        let message = "huge pages were required and this kernel has no transparent huge pages \
                       (/sys/kernel/mm/transparent_hugepage): use WB_HUGE_PAGES_TRY";
        return Err(Error::system(WB_ERR_HUGE_PAGES, message, "madvise", &errno()));
    }
    Ok(())
}

/// Prefers a NUMA node for pages that are not present yet; when `required`, a node that is not
/// there is an error.
pub fn bind_to_node(span: Span, node: u32, required: bool) -> Result<()> {
    const MPOL_PREFERRED: usize = 1;
    const MASK_WORDS: usize = 16;
    let mut mask = [0u64; MASK_WORDS];
    let bits = MASK_WORDS * 64;
    let known = (node as usize) < bits;
    if known {
        mask[node as usize / 64] |= 1 << (node % 64);
    }
    // SAFETY: the mask outlives the call and has `bits` bits; the policy moves no present page.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            span.start,
            span.bytes,
            MPOL_PREFERRED,
            mask.as_ptr(),
            bits + 1,
            0,
        )
    };
    if required && (answer != 0 || !known) {
        let message = format!(
            "asked memory on NUMA node {node}; the kernel does not have it for this process: see \
             /sys/devices/system/node, or use WB_NUMA_DEVICE"
        );
        return Err(Error::system(WB_ERR_INVALID_ARGUMENT, message, "mbind", &errno()));
    }
    Ok(())
}

/// Locks whole pages in memory.
pub fn lock(pages: Span) -> Result<()> {
    // SAFETY: locking changes no byte of the pages.
    if unsafe { libc::mlock(pages.start as *const _, pages.bytes) } == 0 {
        return Ok(());
    }
    let answer = errno();
    let bytes = human(pages.bytes as u64);
    let limit = memlock::memlock_limit()
        .map_or("RLIMIT_MEMLOCK is unlimited".to_owned(), |limit| {
            format!("RLIMIT_MEMLOCK is {}", human(limit))
        });
    let message = format!(
        "asked {bytes} pinned; {limit}: raise it (ulimit -l), or set \
         WEIGHBRIDGE_DISABLE_PIN_MEMORY=1"
    );
    Err(Error::system(WB_ERR_MEMLOCK, message, "mlock", &answer))
}

/// Unlocks whole pages.
pub fn unlock(pages: Span) -> Result<()> {
    // SAFETY: unlocking changes no byte of the pages.
    if unsafe { libc::munlock(pages.start as *const _, pages.bytes) } == 0 {
        return Ok(());
    }
    let message = format!("{} could not be unpinned", human(pages.bytes as u64));
    Err(Error::system(WB_ERR_INTERNAL, message, "munlock", &errno()))
}

/// Bytes of the pages around the span that are in memory, counted by the kernel (mincore).
pub fn resident_bytes(span: Span) -> Result<u64> {
    const BATCH: usize = 64 << 20;
    let pages = span.pages();
    let page = page_bytes();
    let mut present = vec![0u8; BATCH.min(pages.bytes) / page];
    let mut resident = 0;
    for offset in (0..pages.bytes).step_by(BATCH) {
        let part = pages.part(offset, BATCH);
        // SAFETY: `present` has a byte for each page of the part.
        let answer =
            unsafe { libc::mincore(part.start as *mut _, part.bytes, present.as_mut_ptr()) };
        if answer != 0 {
            let message = "the pages in memory could not be counted: are they mapped?";
            return Err(Error::system(WB_ERR_INTERNAL, message, "mincore", &errno()));
        }
        let counted = &present[..part.bytes / page];
        resident += counted.iter().filter(|flags| **flags & 1 == 1).count() * page;
    }
    Ok(resident as u64)
}

/// A file that lives in memory only, `bytes` long.
pub fn memory_file(bytes: u64) -> Result<File> {
    let failed = |call, answer: &io::Error| {
        Error::system(WB_ERR_FILE_IO, "a file in memory could not be made", call, answer)
    };
    // SAFETY: the name is a NUL-terminated string.
    let descriptor = unsafe { libc::memfd_create(c"weighbridge".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(failed("memfd_create", &errno()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(bytes).map_err(|answer| failed("ftruncate", &answer))?;
    Ok(file)
}

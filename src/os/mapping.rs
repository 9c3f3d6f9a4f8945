//! Mappings of memory and files, and the calls that act on mapped pages.

use std::fs::File;
use std::io::{Error as IoError, Result as IoResult};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

use crate::error::{Error, Result, format_bytes};
use crate::os::page::{huge_page_bytes, page_bytes};
use crate::os::span::Span;
use crate::os::{log, memlock, proc_maps};
use crate::status::{
    WB_ERR_FILE_IO, WB_ERR_HUGE_PAGES, WB_ERR_INTERNAL, WB_ERR_INVALID_ARGUMENT, WB_ERR_MEMLOCK,
    WB_ERR_OUT_OF_MEMORY, WB_ERR_UNMAPPED_RANGE,
};

/// Whether memory uses huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// Small pages only.
    Off,
    /// Huge pages if the kernel has them.
    Try,
    /// Huge pages for every whole huge page of the range, or an error.
    Require,
}

/// An owned mapping of whole pages, which is unmapped when it is dropped.
#[derive(Debug)]
pub struct Mapping {
    span: Span,
    /// The addresses to unmap: those of `span`, and the guard page after anonymous memory.
    whole: Range<usize>,
}

impl Mapping {
    /// Private anonymous memory of `bytes` bytes rounded up to pages, which are not present yet.
    ///
    /// It is aligned to a huge page if it is as large as one. A guard page follows it: an overrun
    /// faults, and the kernel does not merge the mapping with the next one, so that the counts of
    /// /proc/self/smaps are of this mapping alone.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        let page = page_bytes();
        if bytes > isize::MAX as usize - 2 * huge_page_bytes() {
            return Err(no_memory(bytes, "mmap", &IoError::from_raw_os_error(libc::ENOMEM)));
        }
        let used = bytes.next_multiple_of(page);
        let alignment = if used >= huge_page_bytes() { huge_page_bytes() } else { page };
        let reserved = used + page + (alignment - page);
        let start = map(reserved, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
            .map_err(|error| no_memory(bytes, "mmap", &error))?;
        let begin = start.next_multiple_of(alignment);
        let whole = begin..begin + used + page;
        unmap(start..whole.start);
        unmap(whole.end..start + reserved);
        // SAFETY: mapped above; readable and writable below, before anything is given the span.
        let mapping = Self { span: unsafe { Span::new(begin, used) }, whole };
        // SAFETY: the range is part of the reservation above, which only this function knows.
        let result =
            unsafe { libc::mprotect(begin as *mut _, used, libc::PROT_READ | libc::PROT_WRITE) };
        if result != 0 {
            return Err(no_memory(bytes, "mprotect", &IoError::last_os_error()));
        }
        Ok(mapping)
    }

    /// `bytes` addresses from a multiple of `alignment` on, which fault until pages are mapped there.
    /// Addresses without pages follow them.
    pub fn reserved(bytes: usize, alignment: usize) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let guarded = bytes.saturating_add(2 * alignment);
        let start = map(guarded, libc::PROT_NONE, flags, None)
            .map_err(|error| no_memory(bytes, "mmap", &error))?;
        // SAFETY: reserved above; its users access mapped parts only.
        let span = unsafe { Span::new(start.next_multiple_of(alignment), bytes) };
        Ok(Self { span, whole: start..start + guarded })
    }

    /// `bytes` bytes of a file from `offset`, a multiple of the page, read-only and shared.
    pub fn file(file: &File, offset: u64, bytes: usize) -> Result<Self> {
        let start = map(bytes, libc::PROT_READ, libc::MAP_SHARED, Some((file, offset))).map_err(
            |error| match error.raw_os_error() {
                Some(libc::ENOMEM) => {
                    let asked = format!("to map {} of a file", format_bytes(bytes as u64));
                    refused(&asked, "mmap", &error)
                }
                _ => {
                    let message =
                        format!("mapping {} of the file failed", format_bytes(bytes as u64));
                    Error::system(WB_ERR_FILE_IO, message, "mmap", &error)
                }
            },
        )?;
        let used = bytes.next_multiple_of(page_bytes());
        // SAFETY: mapped above, readable; it is never written.
        Ok(Self { span: unsafe { Span::new(start, used) }, whole: start..start + used })
    }

    /// The mapped bytes.
    pub fn span(&self) -> Span {
        self.span
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.whole.clone());
    }
}

fn map(
    bytes: usize,
    protection: i32,
    flags: i32,
    file: Option<(&File, u64)>,
) -> Result<usize, IoError> {
    let (descriptor, offset) = file.map_or((-1, 0), |(file, at)| (file.as_raw_fd(), at as i64));
    // SAFETY: without MAP_FIXED the kernel chooses unused addresses.
    let start =
        unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, descriptor, offset) };
    if start == libc::MAP_FAILED { Err(IoError::last_os_error()) } else { Ok(start as usize) }
}

fn unmap(addresses: Range<usize>) {
    if addresses.is_empty() {
        return;
    }
    // SAFETY: this module mapped the range, unmaps it once, and nothing uses it any more.
    if unsafe { libc::munmap(addresses.start as *mut _, addresses.len()) } != 0 {
        let message = format!("{} could not be unmapped", format_bytes(addresses.len() as u64));
        log::record(&Error::system(WB_ERR_INTERNAL, message, "munmap", &IoError::last_os_error()));
    }
}

fn no_memory(bytes: usize, call: &str, error: &IoError) -> Error {
    refused(&format!("{} of host memory", format_bytes(bytes as u64)), call, error)
}

fn refused(asked: &str, call: &str, error: &IoError) -> Error {
    let message = format!(
        "asked {asked}; the kernel refused the mapping: ask for less, or raise RLIMIT_AS, \
         vm.max_map_count or vm.overcommit_memory"
    );
    Error::system(WB_ERR_OUT_OF_MEMORY, message, call, error)
}

/// Advises the kernel whether to use huge pages. Fails only with [`HugePages::Require`].
pub fn advise_huge_pages(span: Span, huge_pages: HugePages) -> Result<()> {
    let advice = match huge_pages {
        HugePages::Off => libc::MADV_NOHUGEPAGE,
        HugePages::Try | HugePages::Require => libc::MADV_HUGEPAGE,
    };
    // SAFETY: the advice changes which pages are used, never their contents.
    let result = unsafe { libc::madvise(span.start() as *mut _, span.bytes(), advice) };
    if result != 0 && huge_pages == HugePages::Require {
        let message = "huge pages were required and this kernel has no transparent huge pages \
                       (/sys/kernel/mm/transparent_hugepage): use WB_HUGE_PAGES_TRY";
        let error = IoError::last_os_error();
        return Err(Error::system(WB_ERR_HUGE_PAGES, message, "madvise", &error));
    }
    Ok(())
}

/// Prefers a NUMA node for pages that are not present yet. Fails for an unavailable node if it is
/// `required`.
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
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            span.start(),
            span.bytes(),
            MPOL_PREFERRED,
            mask.as_ptr(),
            bits + 1,
            0,
        )
    };
    if required && (result != 0 || !known) {
        let message = format!(
            "asked memory on NUMA node {node}; the kernel does not have it for this process: see \
             /sys/devices/system/node, or use WB_NUMA_DEVICE"
        );
        let error = IoError::last_os_error();
        return Err(Error::system(WB_ERR_INVALID_ARGUMENT, message, "mbind", &error));
    }
    Ok(())
}

/// Locks whole pages in memory.
pub fn lock(pages: Span) -> Result<()> {
    // SAFETY: locking changes no byte of the pages.
    if unsafe { libc::mlock(pages.start() as *const _, pages.bytes()) } == 0 {
        return Ok(());
    }
    let error = IoError::last_os_error();
    let limit = memlock::rlimit().map_or("unlimited".to_owned(), format_bytes);
    let message = format!(
        "asked {} pinned; RLIMIT_MEMLOCK is {limit}: raise it (ulimit -l), or set \
         WEIGHBRIDGE_DISABLE_PIN_MEMORY=1",
        format_bytes(pages.bytes() as u64)
    );
    Err(Error::system(WB_ERR_MEMLOCK, message, "mlock", &error))
}

/// Unlocks whole pages. Those that are not mapped any more are not locked either: the kernel unlocked
/// them when their owner unmapped them.
pub fn unlock(pages: Span) -> Result<()> {
    let unlock = |part: Span| {
        // SAFETY: unlocking changes no byte of the pages, and fails for pages that are not mapped.
        match unsafe { libc::munlock(part.start() as *const _, part.bytes()) } {
            0 => Ok(()),
            _ => Err(IoError::last_os_error()),
        }
    };
    let failed = |error: &IoError| {
        let message = format!("{} could not be unpinned", format_bytes(pages.bytes() as u64));
        Error::system(WB_ERR_INTERNAL, message, "munlock", error)
    };
    match unlock(pages) {
        // The kernel stops at the first gap.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let regions = proc_maps::regions(pages)?;
            let parts = regions.iter().map(|region| {
                let start = region.start.max(pages.start());
                pages.part(start - pages.start(), region.end - start)
            });
            if parts.clone().map(|part| part.bytes()).sum::<usize>() == pages.bytes() {
                return Err(failed(&error));
            }
            for part in parts {
                match unlock(part) {
                    // Unmapped since, by another thread.
                    Err(_) if proc_maps::regions(part)?.is_empty() => {}
                    result => result.map_err(|error| failed(&error))?,
                }
            }
            Ok(())
        }
        result => result.map_err(|error| failed(&error)),
    }
}

/// Bytes of the span's whole pages that are present in memory, by mincore.
pub fn resident_bytes(span: Span) -> Result<u64> {
    const BATCH: usize = 64 << 20;
    let pages = span.pages();
    let page = page_bytes();
    let mut present = vec![0u8; BATCH.min(pages.bytes()) / page];
    let mut resident = 0;
    for offset in (0..pages.bytes()).step_by(BATCH) {
        let part = pages.part(offset, BATCH);
        // SAFETY: `present` has a byte for each page of the part.
        let result =
            unsafe { libc::mincore(part.start() as *mut _, part.bytes(), present.as_mut_ptr()) };
        if result != 0 {
            let error = IoError::last_os_error();
            let (status, message) = match error.raw_os_error() {
                Some(libc::ENOMEM) => (WB_ERR_UNMAPPED_RANGE, "some are not mapped any more"),
                _ => (WB_ERR_INTERNAL, "the kernel refused it"),
            };
            let (start, end) = (part.start(), part.end());
            let message = format!("asked to count the pages of {start:#x}..{end:#x}: {message}");
            return Err(Error::system(status, message, "mincore", &error));
        }
        let counted = &present[..part.bytes() / page];
        resident += counted.iter().filter(|flags| **flags & 1 == 1).count() * page;
    }
    Ok(resident as u64)
}

/// An anonymous file of `bytes` bytes in memory.
pub fn memory_file(bytes: u64) -> Result<File> {
    let failed = |call, error: &IoError| {
        let status = match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOSPC) => WB_ERR_OUT_OF_MEMORY,
            _ => WB_ERR_FILE_IO,
        };
        Error::system(status, "a file in memory could not be created", call, error)
    };
    // SAFETY: the name is a NUL-terminated string.
    let descriptor = unsafe { libc::memfd_create(c"weighbridge".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(failed("memfd_create", &IoError::last_os_error()));
    }
    // SAFETY: the descriptor is new and owned by this function.
    let file = unsafe { File::from_raw_fd(descriptor) };
    set_file_bytes(&file, bytes).map_err(|error| failed("ftruncate", &error))?;
    Ok(file)
}

/// Gives a file in memory a size. Beyond RLIMIT_FSIZE that is EFBIG, as from the kernel, which would
/// also send a signal that ends the process.
pub fn set_file_bytes(file: &File, bytes: u64) -> IoResult<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } == 0;
    if known && bytes > limit.rlim_cur {
        return Err(IoError::from_raw_os_error(libc::EFBIG));
    }
    file.set_len(bytes)
}

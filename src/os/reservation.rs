//! Pages of a file in memory, which are put behind reserved addresses: see [`Mapping::reserved`].

use std::fs::File;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;

use crate::error::{Error, Result, format_bytes};
use crate::os::mapping::{Mapping, memory_file, set_file_bytes};
use crate::os::span::Span;
use crate::os::sync;
use crate::status::{WB_ERR_FILE_IO, WB_ERR_INTERNAL, WB_ERR_OUT_OF_MEMORY};

/// Puts pages behind a part of reserved addresses, readable and writable.
pub fn map(at: Span, reserved: &Mapping, pages: &PageFile, offset: u64) -> Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let file = pages.file.as_raw_fd();
    remap(at, reserved, access, libc::MAP_SHARED, Some((file, offset as i64)))
}

/// Makes a part of reserved addresses fault again.
pub fn unmap(at: Span, reserved: &Mapping) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    remap(at, reserved, libc::PROT_NONE, flags, None)
}

fn remap(
    at: Span,
    reserved: &Mapping,
    access: i32,
    flags: i32,
    file: Option<(i32, i64)>,
) -> Result<()> {
    let reserved = reserved.span();
    if at.start() < reserved.start() || at.end() > reserved.end() {
        let message = format!("{:#x}..{:#x} is not reserved", at.start(), at.end());
        return Err(Error::new(WB_ERR_INTERNAL, message));
    }
    let (descriptor, offset) = file.unwrap_or((-1, 0));
    let (address, flags) = (at.start() as *mut _, flags | libc::MAP_FIXED);
    // SAFETY: MAP_FIXED replaces pages of this reservation only, which nothing uses: the caller
    // knows that the last use has passed.
    let mapped = unsafe { libc::mmap(address, at.bytes(), access, flags, descriptor, offset) };
    match mapped {
        libc::MAP_FAILED => {
            Err(refused(at.bytes(), file.is_some(), "mmap", &IoError::last_os_error()))
        }
        _ => Ok(()),
    }
}

/// Pages of a file in memory. Each is taken once, and freed once.
#[derive(Debug)]
pub struct PageFile {
    file: File,
    /// Where the next pages begin: offsets are never used again.
    end: sync::Mutex<u64>,
}

impl PageFile {
    /// A file without pages.
    pub fn new() -> Result<Self> {
        Ok(Self { file: memory_file(0)?, end: sync::Mutex::new(0) })
    }

    /// Takes whole pages, which are zero. Returns their offset.
    pub fn take(&self, bytes: usize) -> Result<u64> {
        let mut end = sync::lock(&self.end);
        let offset = *end;
        let grown = offset + bytes as u64;
        let taken = set_file_bytes(&self.file, grown);
        taken.map_err(|error| refused(bytes, true, "ftruncate", &error))?;
        *end = grown;
        Ok(offset)
    }

    /// Frees pages.
    pub fn free(&self, offset: u64, bytes: usize) -> Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, bytes) = (offset as i64, bytes as i64);
        // SAFETY: the descriptor is open; the call changes no address space.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) } == 0 {
            return Ok(());
        }
        let message = format!("{} could not be freed", format_bytes(bytes as u64));
        Err(Error::system(WB_ERR_INTERNAL, message, "fallocate", &IoError::last_os_error()))
    }
}

/// The error of a call that was refused addresses or pages. Only the pages of a file are refused for
/// another reason than lack of memory.
fn refused(bytes: usize, of_file: bool, call: &str, error: &IoError) -> Error {
    let asked = format!("asked addresses or pages of {}", format_bytes(bytes as u64));
    if !of_file || matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC)) {
        let message = format!(
            "{asked}; the kernel has none left: ask for less, or raise RLIMIT_AS, vm.max_map_count or \
             vm.overcommit_memory"
        );
        return Error::system(WB_ERR_OUT_OF_MEMORY, message, call, error);
    }
    let message = format!(
        "{asked}; the kernel refused them: look at the limits of the process (RLIMIT_FSIZE, its cgroup, \
         seccomp)"
    );
    Error::system(WB_ERR_FILE_IO, message, call, error)
}

//! Memory for the cases: ranges between inaccessible pages, and files in memory.

use std::ffi::CString;
use std::ptr;

const PAGE: usize = 4096;

/// Readable and writable bytes between two inaccessible pages.
pub struct Guarded {
    start: usize,
    bytes: usize,
}

impl Guarded {
    /// Maps `bytes` bytes, a multiple of the page size.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(PAGE));
        let (flags, all) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, bytes + 2 * PAGE);
        // SAFETY: the kernel chooses the address of the new mapping; mprotect changes a part of it.
        unsafe {
            let mapped = libc::mmap(ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0);
            assert!(mapped != libc::MAP_FAILED);
            let start = mapped.byte_add(PAGE);
            assert_eq!(libc::mprotect(start, bytes, libc::PROT_READ | libc::PROT_WRITE), 0);
            Self { start: start as usize, bytes }
        }
    }

    /// Address of the first byte.
    pub fn start(&self) -> u64 {
        self.start as u64
    }

    /// One past the address of the last byte.
    pub fn end(&self) -> u64 {
        self.start() + self.bytes as u64
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of the last `bytes` bytes.
    pub fn last(&self, bytes: u64) -> u64 {
        assert!(bytes <= self.bytes as u64);
        self.end() - bytes
    }

    /// Fills it with repetitions of `with`, or with zeros if that is empty.
    pub fn fill(&mut self, with: &[u8]) {
        let with = if with.is_empty() { &[0] } else { with };
        // SAFETY: this struct owns the bytes.
        let all = unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.bytes) };
        all.chunks_mut(with.len()).for_each(|part| part.copy_from_slice(&with[..part.len()]));
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: this struct owns the mapping.
        unsafe { libc::munmap((self.start - PAGE) as *mut _, self.bytes + 2 * PAGE) };
    }
}

/// A file in memory that has a path.
pub struct MemoryFile {
    number: i32,
    path: CString,
}

impl MemoryFile {
    /// Creates an empty file.
    pub fn new() -> Self {
        // SAFETY: the name ends in NUL.
        let number = unsafe { libc::memfd_create(c"case".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(number >= 0);
        let path = CString::new(format!("/proc/self/fd/{number}")).expect("it has no NUL");
        Self { number, path }
    }

    /// Its path, valid in this process.
    pub fn path(&self) -> &CString {
        &self.path
    }

    /// Replaces its bytes. It must not be mapped.
    pub fn write(&self, bytes: &[u8]) {
        // SAFETY: the file is open and the bytes can be read.
        unsafe {
            assert_eq!(libc::ftruncate(self.number, bytes.len() as i64), 0);
            let written = libc::pwrite(self.number, bytes.as_ptr().cast(), bytes.len(), 0);
            assert_eq!(written, bytes.len() as isize);
        }
    }
}

impl Default for MemoryFile {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: this struct owns the file descriptor.
        unsafe { libc::close(self.number) };
    }
}

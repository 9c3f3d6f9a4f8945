//! Memory for the cases: ranges between pages that nobody may touch, and a file that is memory.

use std::ffi::CString;
use std::ptr;

const PAGE: usize = 4096;

/// Readable and writable bytes that end where an unmapped page begins; one lies before them, too.
pub struct Guarded {
    start: usize,
    bytes: usize,
}

impl Guarded {
    /// Maps so many bytes, whole pages.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(PAGE));
        let (flags, all) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, bytes + 2 * PAGE);
        // SAFETY: a new mapping at an address of the kernel's choice, and a part of it.
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

    /// Address behind the last byte.
    pub fn end(&self) -> u64 {
        self.start() + self.bytes as u64
    }

    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of the last `bytes` bytes.
    pub fn last(&self, bytes: u64) -> u64 {
        assert!(bytes <= self.bytes as u64);
        self.end() - bytes
    }

    /// Fills it with what a case has, again and again; with zeros where it has nothing.
    pub fn fill(&mut self, with: &[u8]) {
        let with = if with.is_empty() { &[0] } else { with };
        // SAFETY: the bytes are this struct's own.
        let all = unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.bytes) };
        all.chunks_mut(with.len()).for_each(|part| part.copy_from_slice(&with[..part.len()]));
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this struct's own.
        unsafe { libc::munmap((self.start - PAGE) as *mut _, self.bytes + 2 * PAGE) };
    }
}

/// A file without a disk, with a path.
pub struct MemoryFile {
    number: i32,
    path: CString,
}

impl MemoryFile {
    /// An empty one.
    pub fn new() -> Self {
        // SAFETY: the name ends in NUL.
        let number = unsafe { libc::memfd_create(c"case".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(number >= 0);
        let path = CString::new(format!("/proc/self/fd/{number}")).expect("there is no NUL");
        Self { number, path }
    }

    /// Its path, for this process.
    pub fn path(&self) -> &CString {
        &self.path
    }

    /// Gives it other bytes. Nobody has it mapped.
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
        // SAFETY: the file is this struct's own.
        unsafe { libc::close(self.number) };
    }
}

//! Access to the bytes of spans.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result, fail};
use crate::os::page::page_bytes;
use crate::os::span::Span;
use crate::status::{WB_ERR_FILE_IO, WB_ERR_FILE_TRUNCATED, WB_ERR_OUT_OF_MEMORY};

/// Makes every page of the span present.
///
/// Writable memory is touched by swapping a 0 for a 0: this changes nothing, even while other
/// threads write, and the compiler does not remove it (it removes an OR with 0). Reading first
/// would cost a second fault, because the kernel maps its page of zeros for a read.
/// MADV_POPULATE_WRITE is slower: its threads contend. Only bytes of the span are touched; its
/// first and last page can contain bytes of other owners.
///
/// The kernel populates memory that is not `writable`. Of a truncated file it reports an error
/// where a touch would raise SIGBUS.
pub fn fault_in(span: Span, writable: bool) -> Result<()> {
    if !writable {
        return populate(span.pages());
    }
    let mut address = span.start();
    while address < span.end() {
        // SAFETY: the address lies in the span, which is mapped and writable (Span's promise); an
        // AtomicU8 needs no alignment and every access here is atomic.
        let byte = unsafe { &*(address as *const AtomicU8) };
        // A failure means that the byte is not 0: it was written, so the page is present.
        let _ = byte.compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
        address = (address + 1).next_multiple_of(page_bytes());
    }
    Ok(())
}

fn populate(pages: Span) -> Result<()> {
    // SAFETY: MADV_POPULATE_READ makes pages present and changes no byte.
    let result =
        unsafe { libc::madvise(pages.start() as *mut _, pages.bytes(), libc::MADV_POPULATE_READ) };
    if result == 0 {
        return Ok(());
    }
    let error = IoError::last_os_error();
    let (status, message) = match error.raw_os_error() {
        // A kernel before 5.14. A registration makes the pages present, too, but slower.
        Some(libc::EINVAL) => return Ok(()),
        Some(libc::EFAULT | libc::EHWPOISON) => (
            WB_ERR_FILE_TRUNCATED,
            "a page of the mapped file is past its end or unreadable: the file was truncated after \
             it was mapped"
                .into(),
        ),
        _ => (
            WB_ERR_OUT_OF_MEMORY,
            format!("the kernel could not make {} bytes of the mapping present", pages.bytes()),
        ),
    };
    Err(Error::system(status, message, "madvise", &error))
}

/// Copies as many bytes as the shorter span has. The spans may overlap.
pub fn copy(to: Span, from: Span) {
    let bytes = to.bytes().min(from.bytes());
    if bytes > 0 {
        // SAFETY: both spans are mapped for at least `bytes` bytes, `from` is readable and `to` is
        // writable (Span's promise); ptr::copy allows overlap.
        unsafe { ptr::copy(from.start() as *const u8, to.start() as *mut u8, bytes) };
    }
}

/// Fills the span from the file at `offset`.
pub fn read_file(file: &File, offset: u64, to: Span) -> Result<()> {
    if to.bytes() == 0 {
        return Ok(());
    }
    // SAFETY: the span is mapped, writable and initialised (Span's promise), and no other code
    // accesses it while it is filled.
    let slice = unsafe { std::slice::from_raw_parts_mut(to.start() as *mut u8, to.bytes()) };
    match file.read_exact_at(slice, offset) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => fail!(
            WB_ERR_FILE_TRUNCATED,
            "the file ends before byte {}: it was truncated while it was read",
            offset + to.bytes() as u64
        ),
        Err(error) => {
            Err(Error::system(WB_ERR_FILE_IO, "reading the file failed", "pread", &error))
        }
    }
}

/// Sets every byte of the span.
pub fn fill(span: Span, value: u8) {
    // SAFETY: the span is mapped and writable (Span's promise).
    unsafe { ptr::write_bytes(span.start() as *mut u8, value, span.bytes()) };
}

/// A matrix in memory.
#[derive(Debug, Clone, Copy)]
pub struct Strided {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Bytes from a row to the next.
    pub row_stride: i64,
    /// Bytes from a column to the next.
    pub col_stride: i64,
    /// Bytes of an element: 2 or 4.
    pub bytes: u64,
}

/// Copies the elements of a matrix to consecutive bytes in row-major order. `first` is the address
/// of its first element, in `from`.
pub fn gather(to: Span, from: Span, first: u64, matrix: &Strided) {
    let line = (matrix.cols * matrix.bytes) as usize;
    for row in 0..matrix.rows as usize {
        let start = (first as i64 + row as i64 * matrix.row_stride) as usize;
        let target = to.part(row * line, line);
        if matrix.col_stride == matrix.bytes as i64 {
            copy(target, from.part(start - from.start(), line));
            continue;
        }
        for col in 0..matrix.cols as usize {
            let element = (start as i64 + col as i64 * matrix.col_stride) as usize;
            let bytes = matrix.bytes as usize;
            let source = from.part(element - from.start(), bytes);
            copy(target.part(col * bytes, bytes), source);
        }
    }
}

/// Reads the first eight bytes of the span as an integer.
pub fn read_u64(span: Span) -> u64 {
    debug_assert!(span.bytes() >= 8);
    // SAFETY: the span is mapped and readable (Span's promise).
    unsafe { ptr::read_unaligned(span.start() as *const u64) }
}

/// Reads the first four bytes of the span as an integer.
pub fn read_u32(span: Span) -> u32 {
    debug_assert!(span.bytes() >= 4);
    // SAFETY: the span is mapped and readable (Span's promise).
    unsafe { ptr::read_unaligned(span.start() as *const u32) }
}

/// Writes an integer to the first four bytes of the span.
pub fn write_u32(span: Span, value: u32) {
    debug_assert!(span.bytes() >= 4);
    // SAFETY: the span is mapped and writable (Span's promise).
    unsafe { ptr::write_unaligned(span.start() as *mut u32, value) };
}

/// Writes an integer to the first eight bytes of the span.
pub fn write_u64(span: Span, value: u64) {
    debug_assert!(span.bytes() >= 8);
    // SAFETY: the span is mapped and writable (Span's promise).
    unsafe { ptr::write_unaligned(span.start() as *mut u64, value) };
}

/// Writes bytes, as many as the span has.
pub fn write(span: Span, bytes: &[u8]) {
    assert_eq!(span.bytes(), bytes.len());
    // SAFETY: the span is mapped and writable (Span's promise), and as long.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), span.start() as *mut u8, bytes.len()) };
}

/// Reads the bytes of the span.
pub fn read(span: Span) -> Vec<u8> {
    let mut bytes = vec![0; span.bytes()];
    // SAFETY: the span is mapped and readable (Span's promise), and as long.
    unsafe { ptr::copy_nonoverlapping(span.start() as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    bytes
}

/// Whether every byte of the span equals `value`. Compared at once: a loop takes seconds where nothing is
/// optimized.
#[cfg(test)]
pub fn is_filled(span: Span, value: u8) -> bool {
    read(span) == vec![value; span.bytes()]
}

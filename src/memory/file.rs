//! Files in memory: mapped read-only and shared, and registered without a copy where the platform
//! can; else read by many threads into exact pinned memory, and the buffer says so.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::device::device::Device;
use crate::error::{Error, Result, fail, format_bytes};
use crate::memory::buffer::{
    Buffer, BufferOptions, FileMode, MappedFile, Memory, NumaPolicy, Origin, Parts,
};
use crate::memory::pin::Pins;
use crate::os::mapping::{HugePages, Mapping};
use crate::os::page::page_bytes;
use crate::os::parallel::{Phase, Progress, in_pieces, threads_for};
use crate::os::sync::Arc;
use crate::os::{bytes, cgroup};
use crate::status::{
    WB_ERR_DRIVER, WB_ERR_FILE_ACCESS, WB_ERR_FILE_EMPTY, WB_ERR_FILE_IO, WB_ERR_FILE_MISSING,
    WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
};

/// Opens a regular file that is not empty for reading; its size in bytes.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let failed = |call, error: io::Error| {
        let (status, message) = match error.kind() {
            ErrorKind::NotFound => (WB_ERR_FILE_MISSING, format!("{shown} does not exist")),
            ErrorKind::PermissionDenied => {
                (WB_ERR_FILE_ACCESS, format!("{shown} may not be read by this user"))
            }
            _ => (WB_ERR_FILE_IO, format!("{shown} cannot be opened")),
        };
        Error::system(status, message, call, &error)
    };
    // Without waiting: a pipe would wait for its writer before it can be refused. And a terminal
    // must not become this process's own.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| failed("open", error))?;
    let capabilities = file.metadata().map_err(|error| failed("stat", error))?;
    if !capabilities.is_file() {
        fail!(WB_ERR_FILE_ACCESS, "{shown} is no regular file: only those can be mapped");
    }
    if capabilities.len() == 0 {
        fail!(WB_ERR_FILE_EMPTY, "{shown} is empty: there is nothing to map");
    }
    Ok((file, capabilities.len()))
}

impl Buffer {
    /// Maps `bytes` bytes of a file from `offset`; 0 bytes mean all that follow.
    pub fn map_file(
        device: &Arc<Device>,
        path: &Path,
        offset: u64,
        bytes: u64,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        let (file, length) = open(path)?;
        let end = if bytes == 0 { Some(length) } else { offset.checked_add(bytes) };
        match end.filter(|end| offset < *end && *end <= length) {
            Some(end) => Self::map_opened(device, file, offset, end, options, progress),
            None => fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for {bytes} bytes from byte {offset} of {}; it has {}",
                path.display(),
                format_bytes(length)
            ),
        }
    }

    /// Maps or reads the bytes from `offset` to `end` of an open file.
    pub(super) fn map_opened(
        device: &Arc<Device>,
        file: File,
        offset: u64,
        end: u64,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        if options.write_combined {
            fail!(WB_ERR_NOT_SUPPORTED, "a file cannot be mapped write-combined");
        }
        let reason = match map(device, &file, offset, end, options, progress)? {
            Mapped::Yes(parts) => {
                let file = Some(MappedFile { file, end });
                return Ok(Self::assemble(device, Parts { file, ..*parts }));
            }
            Mapped::No(reason) => reason,
        };
        read(device, &file, offset, end, options, progress, reason)
    }
}

enum Mapped {
    Yes(Box<Parts>),
    /// Why it has to be read.
    No(String),
}

fn map(
    device: &Arc<Device>,
    file: &File,
    offset: u64,
    end: u64,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
) -> Result<Mapped> {
    let pinned = options.pins(device);
    if options.file_mode == FileMode::Read {
        return Ok(Mapped::No("read into memory: asked for in the options".into()));
    }
    let no = |error: Error| match options.file_mode {
        FileMode::Map => {
            let message = format!("asked to map and not to read; {}", error.message);
            Err(Error { message, ..error })
        }
        _ => Ok(Mapped::No(format!("read into memory: {}", error.message))),
    };
    if options.huge_pages == HugePages::Require || matches!(options.numa, NumaPolicy::Node(_)) {
        let reason = "huge pages or a node were asked for, and the pages of a mapped file are the \
                      kernel's cache";
        return no(Error::new(WB_ERR_NOT_SUPPORTED, reason));
    }
    if pinned && !device.capabilities().read_only_register {
        let reason = format!("{} cannot register read-only memory", device.capabilities().name);
        return no(Error::new(WB_ERR_NOT_SUPPORTED, reason));
    }
    let before = (offset % page_bytes() as u64) as usize;
    let whole = before + (end - offset) as usize;
    let mapping = match Mapping::file(file, offset - before as u64, whole) {
        Ok(mapping) => mapping,
        // A file system without mappings, or one that forbids them here.
        Err(error) if matches!(error.code, libc::ENODEV | libc::EACCES | libc::EPERM) => {
            return no(error);
        }
        Err(error) => return Err(error),
    };
    let span = mapping.span();
    let (pins, mapping) = if pinned {
        cgroup::check_limit_for(span)?;
        let threads = threads_for(options.threads, span.bytes());
        in_pieces(span, threads, Phase::Fault, progress, &|piece| bytes::fault_in(piece, false))?;
        let pin_options = options.pin_options(device, true);
        let chunk = options.chunk_bytes;
        match Pins::pin_mapping(device, mapping, pin_options, chunk, "a mapped file", progress) {
            Ok((pins, mapping)) => (Some(pins), mapping),
            Err(error) if matches!(error.status, WB_ERR_DRIVER | WB_ERR_NOT_SUPPORTED) => {
                return no(error);
            }
            Err(error) => return Err(error),
        }
    } else {
        (None, mapping)
    };
    let note = if pinned { String::new() } else { options.pageable_note(device) };
    Ok(Mapped::Yes(Box::new(Parts {
        data: span.part(before, (end - offset) as usize),
        memory: Memory::Mapping(mapping),
        pins,
        driver_pinned: None,
        mapped: span.bytes() as u64,
        origin: Origin::FileMapped,
        read_only: true,
        file: None,
        note,
    })))
}

fn read(
    device: &Arc<Device>,
    file: &File,
    offset: u64,
    end: u64,
    options: &BufferOptions,
    progress: &mut Progress<'_>,
    reason: String,
) -> Result<Arc<Buffer>> {
    let bytes = (end - offset) as usize;
    let buffer = Buffer::alloc(device, bytes, options, progress)?;
    let span = buffer.data();
    let threads = threads_for(options.threads, bytes);
    in_pieces(span, threads, Phase::Read, progress, &|piece| {
        bytes::read_file(file, offset + (piece.start() - span.start()) as u64, piece)
    })?;
    Ok(Buffer::mark_read_from_file(buffer, reason))
}

//! Loads files: mapped read-only and shared, and registered in place if the platform can; else read
//! by several threads into memory of exactly their size.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::device::device::Device;
use crate::device::policy::Tristate;
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
    WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
};

/// Opens a regular file that is not empty. Returns it with its bytes.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let failed = |call, error: IoError| {
        let (status, message) = match error.kind() {
            ErrorKind::NotFound => (WB_ERR_FILE_MISSING, format!("{shown} does not exist")),
            ErrorKind::PermissionDenied => {
                (WB_ERR_FILE_ACCESS, format!("{shown} may not be read by this user"))
            }
            _ => (WB_ERR_FILE_IO, format!("{shown} cannot be opened")),
        };
        Error::system(status, message, call, &error)
    };
    // The open of a pipe must not wait for a writer, and a terminal must not become this process's
    // controlling terminal: both are rejected below.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| failed("open", error))?;
    let metadata = file.metadata().map_err(|error| failed("stat", error))?;
    if !metadata.is_file() {
        fail!(WB_ERR_FILE_ACCESS, "{shown} is not a regular file: only those can be mapped");
    }
    if metadata.len() == 0 {
        fail!(WB_ERR_FILE_EMPTY, "{shown} is empty: there is nothing to map");
    }
    Ok((file, metadata.len()))
}

impl Buffer {
    /// Loads `bytes` bytes of a file from `offset`; 0 bytes mean all that follow.
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
            Some(end) => Self::load(device, file, offset..end, options, progress),
            None => fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for {bytes} bytes from byte {offset} of {}; it has {}",
                path.display(),
                format_bytes(length)
            ),
        }
    }

    /// Loads a range of bytes of an open file.
    pub(super) fn load(
        device: &Arc<Device>,
        file: File,
        range: Range<u64>,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        if options.write_combined {
            fail!(WB_ERR_NOT_SUPPORTED, "a file cannot be mapped write-combined");
        }
        let mut options = *options;
        if options.file_mode == FileMode::Source {
            if options.pin == Tristate::On {
                fail!(
                    WB_ERR_INVALID_ARGUMENT,
                    "asked to pin a file with WB_FILE_MODE_SOURCE, which is only copied from and not \
                     pinned: leave one of both out"
                );
            }
            options.pin = Tristate::Off;
        }
        let options = &options;
        let mut load = Load { device, file: &file, range, options, progress };
        let buffer = match load.map()? {
            Mapped::Yes(parts) => {
                let file = Some(MappedFile { end: load.range.end, file });
                Self::assemble(device, Parts { file, ..*parts })
            }
            Mapped::No(reason) => load.read(reason)?,
        };
        Ok(Arc::new(buffer))
    }
}

enum Mapped {
    Yes(Box<Parts>),
    /// The reason why the file is read.
    No(String),
}

/// A file that is being loaded.
struct Load<'a, 'p> {
    device: &'a Arc<Device>,
    file: &'a File,
    range: Range<u64>,
    options: &'a BufferOptions,
    progress: &'a mut Progress<'p>,
}

impl Load<'_, '_> {
    fn map(&mut self) -> Result<Mapped> {
        let (device, options) = (self.device, self.options);
        if options.file_mode == FileMode::Read {
            return Ok(Mapped::No("read into memory: asked for in the options".into()));
        }
        let pinned = options.pins(device);
        if options.huge_pages == HugePages::Require || matches!(options.numa, NumaPolicy::Node(_)) {
            let reason = "huge pages or a node were asked for, and a mapped file uses the pages of \
                          the kernel's page cache";
            return self.cannot_map(Error::new(WB_ERR_NOT_SUPPORTED, reason));
        }
        if pinned && !device.capabilities().read_only_register {
            let reason = format!("{} cannot register read-only memory", device.capabilities().name);
            return self.cannot_map(Error::new(WB_ERR_NOT_SUPPORTED, reason));
        }
        let bytes = (self.range.end - self.range.start) as usize;
        let before = (self.range.start % page_bytes() as u64) as usize;
        let first_page = self.range.start - before as u64;
        let mapping = match Mapping::file(self.file, first_page, before + bytes) {
            Ok(mapping) => mapping,
            // The file system does not support mappings, or forbids this one.
            Err(error) if matches!(error.code, libc::ENODEV | libc::EACCES | libc::EPERM) => {
                return self.cannot_map(error);
            }
            Err(error) => return Err(error),
        };
        let span = mapping.span();
        let (pins, mapping) = if pinned {
            let reservation = cgroup::reserve_for(span)?;
            let threads = threads_for(options.threads, span.bytes());
            in_pieces(span, threads, Phase::Fault, self.progress, &|piece| {
                reservation.fault(piece, || bytes::fault_in(piece, false))
            })?;
            let request = options.pin_request(device, true, "a mapped file");
            match Pins::pin_mapping(device, mapping, request, self.progress) {
                Ok((pins, mapping)) => (Some(pins), mapping),
                Err(error) if matches!(error.status, WB_ERR_DRIVER | WB_ERR_NOT_SUPPORTED) => {
                    return self.cannot_map(error);
                }
                Err(error) => return Err(error),
            }
        } else {
            (None, mapping)
        };
        let fallback_reason = if pinned { String::new() } else { options.pageable_reason(device) };
        let data = span.part(before, bytes);
        Ok(Mapped::Yes(Box::new(Parts {
            pins,
            mapped: span.bytes(),
            read_only: true,
            fallback_reason,
            ..Parts::new(data, Memory::Mapping(mapping), Origin::FileMapped)
        })))
    }

    /// The result where the file cannot be mapped: it is read, unless the options forbid it.
    fn cannot_map(&self, error: Error) -> Result<Mapped> {
        match self.options.file_mode {
            FileMode::Map => {
                let message = format!("asked to map and not to read; {}", error.message);
                Err(Error { message, ..error })
            }
            _ => Ok(Mapped::No(format!("read into memory: {}", error.message))),
        }
    }

    fn read(&mut self, reason: String) -> Result<Buffer> {
        let (file, offset) = (self.file, self.range.start);
        let bytes = (self.range.end - offset) as usize;
        let mut buffer = Buffer::allocate(self.device, bytes, self.options, self.progress)?;
        let span = buffer.data();
        let threads = threads_for(self.options.threads, bytes);
        in_pieces(span, threads, Phase::Read, self.progress, &|piece| {
            bytes::read_file(file, offset + (piece.start() - span.start()) as u64, piece)
        })?;
        buffer.mark_read_from_file(reason);
        Ok(buffer)
    }
}

//! [`SafetensorsFile`]: a safetensors file in one buffer, and its tensors by name.

use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::device::device::Device;
use crate::error::{Error, Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::file;
use crate::memory::view::{Accessor, View};
use crate::os::parallel::Progress;
use crate::os::sync::Arc;
use crate::status::{
    WB_ERR_FILE_IO, WB_ERR_FILE_TRUNCATED, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE,
    WB_ERR_UNALIGNED,
};
use crate::tensor::layout::Layout;
use crate::tensor::safetensors;
use crate::tensor::safetensors::{Header, LENGTH_BYTES, Tensor, header_bytes};

/// An open safetensors file.
pub struct SafetensorsFile {
    buffer: Arc<Buffer>,
    header: Header,
}

impl SafetensorsFile {
    /// Checks the header, then loads the file.
    pub fn open(
        device: &Arc<Device>,
        path: &Path,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        let (file, length) = file::open(path)?;
        let header = read_header(&file, length).map_err(|error| Error {
            message: format!("{}: {}", path.display(), error.message),
            ..error
        })?;
        let buffer = Buffer::load(device, file, 0..length, options, progress)?;
        Ok(Arc::new(Self { buffer, header }))
    }

    /// The buffer over the whole file.
    pub fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// The tensors, in the order of their data.
    pub fn tensors(&self) -> &[Tensor] {
        &self.header.tensors
    }

    /// The header's JSON text.
    pub fn json(&self) -> &CStr {
        &self.header.json
    }

    /// The tensor at an index.
    pub fn tensor(&self, index: u64) -> Result<&Tensor> {
        let found = usize::try_from(index).ok().and_then(|at| self.header.tensors.get(at));
        found.ok_or_else(|| {
            let count = self.header.tensors.len();
            Error::new(WB_ERR_OUT_OF_RANGE, format!("asked for tensor {index} of {count}"))
        })
    }

    /// The index of a tensor by its name.
    pub fn find(&self, name: &str) -> Result<u64> {
        match self.header.find(name) {
            Some(at) => Ok(at as u64),
            None => {
                let (count, lists) = (self.header.tensors.len(), "wb_safetensors_get_tensor_info");
                Err(Error::not_found("tensor", name, count, lists))
            }
        }
    }

    /// A view of a tensor in the file's buffer. Fails with `WB_ERR_UNALIGNED` if its address is not
    /// a multiple of `alignment`.
    pub fn view(&self, index: u64, accessor: Accessor, alignment: u64) -> Result<Arc<View>> {
        let (tensor, layout) = self.with_layout(index)?;
        if !self.is_aligned(tensor, accessor, alignment) {
            fail!(
                WB_ERR_UNALIGNED,
                "{:?} is at byte {} of the file, where its address is not a multiple of \
                 {alignment}: ask for less, or use wb_safetensors_load_view, which copies",
                tensor.name(),
                tensor.offset
            );
        }
        View::new(self.buffer.clone(), layout.clone(), tensor.offset, accessor)
    }

    /// A view of a tensor in the file's buffer if it is aligned, else of a copy. Returns whether it
    /// copied.
    pub fn load(
        &self,
        index: u64,
        accessor: Accessor,
        alignment: u64,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<(Arc<View>, bool)> {
        let (tensor, layout) = self.with_layout(index)?;
        if self.is_aligned(tensor, accessor, alignment) {
            return Ok((self.view(index, accessor, alignment)?, false));
        }
        self.buffer.check_file()?;
        let from = self.buffer.data().part(tensor.offset as usize, tensor.bytes as usize);
        let device = self.buffer.device();
        let view = View::copy_from(device, from, layout.clone(), accessor, options, progress)?;
        Ok((view, true))
    }

    fn with_layout(&self, index: u64) -> Result<(&Tensor, &Layout)> {
        let tensor = self.tensor(index)?;
        if tensor.is_encoded {
            fail!(
                WB_ERR_NOT_SUPPORTED,
                "{:?} is compressed to {} bytes in the file, which has no values to view: decode them with \
                 wb_codec_decode, or give the tensor to a plan with wb_safetensors_get_parameters",
                tensor.name(),
                tensor.bytes
            );
        }
        match &tensor.layout {
            Some(layout) if !layout.dtype().is_opaque() => Ok((tensor, layout)),
            _ => fail!(
                WB_ERR_NOT_SUPPORTED,
                "{:?} has type {}, or a shape that no WB_DTYPE_* of it can express: view its bytes \
                 through wb_safetensors_get_buffer",
                tensor.name(),
                tensor.file_dtype
            ),
        }
    }

    fn is_aligned(&self, tensor: &Tensor, accessor: Accessor, alignment: u64) -> bool {
        let base = match accessor {
            Accessor::Device => self.buffer.device_address().unwrap_or(0),
            Accessor::Host => self.buffer.data().start() as u64,
        };
        (base + tensor.offset).is_multiple_of(alignment.max(1))
    }
}

fn read_header(file: &File, length: u64) -> Result<Header> {
    if length < LENGTH_BYTES {
        fail!(WB_ERR_FILE_TRUNCATED, "{length} bytes are too few for a safetensors file");
    }
    let failed = |error: std::io::Error| {
        Error::system(WB_ERR_FILE_IO, "the header cannot be read", "pread", &error)
    };
    let mut prefix = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut prefix, 0).map_err(failed)?;
    let bytes = header_bytes(prefix, length)? as usize;
    // One more, for the NUL of a C string.
    let mut json = Vec::with_capacity(bytes + 1);
    json.resize(bytes, 0);
    file.read_exact_at(&mut json, LENGTH_BYTES).map_err(failed)?;
    safetensors::parse(json, length)
}
